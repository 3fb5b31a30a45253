// What the passes of csrc/cuda have in common, as the binding sees it. No CUDA header is needed to include this.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../noise/philox.hpp"

namespace zokern {

enum class Storage { float32, bfloat16, float16 };

constexpr int kTile = 4096;  // every span but a tensor's last is a multiple of so many elements

/// Contiguous elements that one thread block works on, of which the first has index `first` in the layout. In device memory.
struct Span {
    int64_t address, numel, first;
    uint32_t group;
    uint32_t last;  // the greatest mask word of an element that is kept: 2^32 - 1 keeps all
};

constexpr uint32_t kKeepAll = 0xFFFFFFFF;

}  // namespace zokern
