// A pass that adds noise to many tensors on a GPU, as the binding asks for it.
#pragma once

#include "span.hpp"

namespace zokern {

constexpr int kUnrolled = 2;  // up to so many terms have kernels of their own, with their round keys in the constant bank

struct Pass {
    const Span* spans;
    uint32_t n_spans, n_terms, groups;
    bool masked;                // whether some span has a last below kKeepAll
    const uint32_t* clock;      // nullptr, or what is added to the step of every key
    const float* coefficients;  // [n_terms][groups]
    const float* decay;         // [groups] or nullptr
    const Key* keys;            // [n_terms], read where n_terms > kUnrolled
    Key first_keys[kUnrolled];
};

/// theta <- decay * theta + sum_k c_k z'(key_k), one launch on `stream` of `device`. -> nullptr or CUDA's message.
const char* add_noise(const Pass& pass, Storage storage, int device, void* stream);

}  // namespace zokern
