// All kernels of one instruction set, after its lanes.
#pragma once

#include "add_noise.hpp"
#include "replay.hpp"
#include "update.hpp"

namespace zokern {
namespace {

template <class T, class Out>
constexpr void fill(AddNoise<T> (&kinds)[2][2]) {
    kinds[0][0] = add_noise<T, Out, false, false>, kinds[0][1] = add_noise<T, Out, false, true>;
    kinds[1][0] = add_noise<T, Out, true, false>, kinds[1][1] = add_noise<T, Out, true, true>;
}

template <class T>
constexpr Kernels<T> kernels(Storage own) {
    Kernels<T> all{{},
                   {{replay<T, false, false>, replay<T, false, true>}, {replay<T, true, false>, replay<T, true, true>}},
                   {{update<T, float, Sign>, nullptr},
                    {update<T, float, Momentum>, update<T, bfloat16, Momentum>},
                    {update<T, float, Adam>, update<T, bfloat16, Adam>},
                    {update<T, float, Amsgrad>, update<T, bfloat16, Amsgrad>},
                    {update<T, float, WindowedAdam>, nullptr}}};
    fill<T, T>(all.add_noise[static_cast<int>(own)]);
    return all;
}

constexpr Kernels<float> float_kernels() {
    Kernels<float> all = kernels<float>(Storage::float32);
    fill<float, bfloat16>(all.add_noise[static_cast<int>(Storage::bfloat16)]);
    fill<float, float16>(all.add_noise[static_cast<int>(Storage::float16)]);
    return all;
}

constexpr Isa isa(const char* name) {
    return {name, draw, float_kernels(), kernels<bfloat16>(Storage::bfloat16), kernels<float16>(Storage::float16)};
}

}  // namespace
}  // namespace zokern
