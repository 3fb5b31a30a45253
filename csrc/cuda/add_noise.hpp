// A pass that adds noise to many tensors on a GPU, as the binding asks for it.
#pragma once

#include "span.hpp"

namespace zokern {

constexpr int kUnrolled = 2;  // up to so many terms have kernels of their own, with their round keys in the constant bank

struct AddNoise : Pass {
    uint32_t n_terms;
    const float* coefficients;  // [n_terms][groups]
    const float* decay;         // [groups] or nullptr
    Key first_keys[kUnrolled];  // keys is read where n_terms > kUnrolled
};

/// theta <- decay * theta + sum_k c_k z'(key_k), one launch on `stream` of `device`. -> nullptr or CUDA's message.
const char* add_noise(const AddNoise& pass, Storage storage, int device, void* stream);

}  // namespace zokern
