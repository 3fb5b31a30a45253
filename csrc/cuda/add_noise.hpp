// A pass over many tensors on a GPU, as the binding asks for it. No CUDA header is needed to include this.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../noise/philox.hpp"

namespace zokern {

enum class Storage { float32, bfloat16, float16 };

constexpr int kTile = 4096;   // elements that a thread block takes at a time
constexpr int kUnrolled = 2;  // up to so many terms have kernels of their own, with their round keys in the constant bank

/// Up to kTile * n contiguous elements, of which the first has index `first` in the layout. In device memory.
struct Span {
    int64_t address, numel, first, group;
};

struct Pass {
    const Span* spans;
    uint32_t n_spans, n_terms, groups;
    const uint32_t* clock;      // nullptr, or what is added to the step of every key
    const float* coefficients;  // [n_terms][groups]
    const float* decay;         // [groups] or nullptr
    const Key* keys;            // [n_terms], read where n_terms > kUnrolled
    Key first_keys[kUnrolled];
};

/// theta <- decay * theta + sum_k c_k z(key_k), one launch on `stream` of `device`. -> nullptr or CUDA's message.
const char* add_noise(const Pass& pass, Storage storage, int device, void* stream);

}  // namespace zokern
