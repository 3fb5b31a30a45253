// A pass over many tensors, on many threads, with the best instruction set.
#pragma once

#include <vector>

#include "backend.hpp"

namespace zokern {

/// One tensor: `numel` elements in lines of `columns`. Element c of line r is r * pitch + c elements after `address`, is written
/// r * out_pitch + c after `out`, and has index first + r * step + c in the layout. Its noise is kept where the mask's word is at most
/// `keep_threshold`.
struct Row {
    int64_t address, pitch, out, out_pitch, numel, columns, first, step, group, keep_threshold;
};

/// What every pass is given.
struct Pass {
    Storage storage, out_storage;  // of what is read, of what is written
    const Row* rows;
    size_t n_rows;
    std::vector<Key> keys;
    std::vector<Key> rounding, state_rounding;  // of what is stored at random in 16 bits: at most one for weights, one a slot of an update
    size_t groups;
    const float* decay;  // [groups] or nullptr
};

/// What an update is given beside it. Numbers and coefficients are [...][groups].
struct Rule {
    int code;
    const float* in_theta;  // [keys]
    const float* in_g;      // [of_key][keys]
    size_t of_key;          // numbers of a key there
    const float* numbers;   // [n_numbers]
    size_t n_numbers;
    const int64_t* state;  // addresses [rows][n_slots]
    size_t n_slots;
};

/// The instruction set of this name; for "" the best one here. nullptr where the processor has no such.
const Isa* find_isa(const char* name);

/// out <- decay * theta + sum_k c_k z(key_k). coefficients is [keys][groups].
void add_noise(const Isa& isa, const Pass& pass, const float* coefficients, int max_threads);

/// Passes in one read and one write: instruction i, bits of Instruction, has the values[i][groups]; keys are in the order of their use.
void replay(const Isa& isa, const Pass& pass, const uint8_t* instructions, size_t n_instructions, const float* values, int max_threads);

/// x = decay * theta + sum_k a_k z(key_k);  g = sum_k b_k z(key_k);  and the rule. The state is in bfloat16 where it is rounded at random.
void update(const Isa& isa, const Pass& pass, const Rule& rule, int max_threads);

}  // namespace zokern
