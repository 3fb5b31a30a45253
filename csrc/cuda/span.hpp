// What the passes of csrc/cuda have in common, as the binding sees it. No CUDA header is needed to include this.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../noise/passes.hpp"
#include "../noise/philox.hpp"

namespace zokern {

constexpr int kTile = 4096;  // every span but a tensor's last is a multiple of so many elements

/// Contiguous elements that one thread block works on, of which the first has index `first` in the layout. In device memory.
struct Span {
    int64_t address, numel, first;
    int64_t group, keep_threshold;  // both below 2^32; keep_threshold is the greatest mask word of an element that keeps its noise
};

/// What every pass is given.
struct Pass {
    const Span* spans;
    uint32_t n_spans, groups;
    bool masked;            // whether some span has a keep_threshold below kKeepAll
    const uint32_t* clock;  // nullptr, or what is added to the step of every key
    const Key* keys;        // of all terms, in device memory, or nullptr where few enough go along with the launch
};

}  // namespace zokern
