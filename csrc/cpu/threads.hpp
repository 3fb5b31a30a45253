// A pass over many tensors, on many threads, with the best instruction set.
#pragma once

#include <vector>

#include "backend.hpp"

namespace zokern {

enum class Storage { float32, bfloat16, float16 };

/// One tensor: `count` contiguous elements, of which the first has index `first` in the layout.
struct Row {
    int64_t address, count, first, group;
};

/// The instruction set of this name; for "" the best one here. nullptr where the processor has no such.
const Isa* find_isa(const char* name);

/// theta <- decay * theta + sum_k c_k z(key_k). coefficients is [keys][groups]; decay [groups] or nullptr.
void add_noise(const Isa& isa, Storage storage, const Row* rows, size_t n_rows, const std::vector<Key>& keys, const float* coefficients,
               size_t groups, const float* decay, int max_threads);

}  // namespace zokern
