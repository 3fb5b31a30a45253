// What one instruction set offers, and how a pass over tensors is asked for. Plain structs: this is all that the translation
// units, each compiled for another instruction set, know of each other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../noise/passes.hpp"
#include "../noise/philox.hpp"

namespace zokern {

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

template <class T> constexpr bool is_bfloat16 = false;
template <> inline constexpr bool is_bfloat16<bfloat16> = true;

/// Which elements keep their noise: those whose word of the key's mask is at most `keep_threshold`.
struct Mask {
    const Schedule* schedules;  // one a key
    uint32_t keep_threshold;
};

/// Elements first..first+count-1 of a tensor, whose blocks share the high word of their counter, and what their noise is made of.
struct Run {
    uint64_t first;
    size_t count;
    const Schedule* schedules;  // one a key
    size_t n_keys;
    const Mask* mask;    // nullptr: all is kept
    const float* decay;  // nullptr: none
};

/// theta[0..run.count) <- decay * theta + sum_k coefficients[k] z(key_k)
template <class T>
using AddNoise = void (*)(T* theta, const Run& run, const float* coefficients);

/// Passes for one run; the keys are in the order in which they are used.
struct Passes {
    const uint8_t* instructions;  // each is bits of Instruction
    size_t n_instructions;
    const float* values;  // one an instruction; a NaN among them has nothing in its lower half
};

template <class T>
using Replay = void (*)(T* theta, const Run& run, const Passes& passes);

/// What the elements of one run of an update share.
struct Step {
    const float *in_theta, *in_g;  // one a key
    const float* numbers;          // the rule's
    const Schedule* rounding;      // one a slot, where the state is in bfloat16
};

/// state[s] + i goes with theta + i.
template <class T>
using Update = void (*)(T* theta, void* const* state, const Run& run, const Step& step);

constexpr int kRules = 4, kSlots = 3;  // so many rules; the most slots that one has

template <class T>
struct Kernels {
    AddNoise<T> add_noise[2];     // all kept, masked
    Replay<T> replay[2];          // likewise
    Update<T> update[kRules][2];  // state in float32, in bfloat16
};

struct Isa {
    const char* name;
    Kernels<float> float32;
    Kernels<zokern::bfloat16> bfloat16;
    Kernels<zokern::float16> float16;
};

extern const Isa scalar, avx2, avx512;  // the last two on x86-64

}  // namespace zokern
