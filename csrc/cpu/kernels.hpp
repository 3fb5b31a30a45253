// All kernels of one instruction set, after its lanes.
#pragma once

#include "add_noise.hpp"
#include "replay.hpp"
#include "update.hpp"

namespace zokern {
namespace {

template <class T>
constexpr Kernels<T> kernels() {
    return {{add_noise<T, false>, add_noise<T, true>},
            {replay<T, false>, replay<T, true>},
            {{update<T, float, Sign>, nullptr},
             {update<T, float, Momentum>, update<T, bfloat16, Momentum>},
             {update<T, float, Adam>, update<T, bfloat16, Adam>},
             {update<T, float, Amsgrad>, update<T, bfloat16, Amsgrad>}}};
}

}  // namespace
}  // namespace zokern
