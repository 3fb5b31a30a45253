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

/// c z(key) for one run: `schedule` is the key's, for the high counter word that the run's blocks share.
struct Term {
    Schedule schedule;
    float coefficient;
};

/// Which elements keep their noise: those whose word of the term's mask is at most `keep_threshold`.
struct Mask {
    const Schedule* schedules;  // one a term
    uint32_t keep_threshold;
};

/// theta[0..count) of elements first..first+count-1, whose blocks share the high word of their counter.
template <class T>
using AddNoise = void (*)(T* theta, uint64_t first, size_t count, const Term* terms, size_t n_terms, const float* decay, const Mask* mask);

/// A run of passes for one run of elements.
struct Passes {
    const uint8_t* instructions;  // each is bits of Instruction
    size_t n_instructions;
    const float* values;  // one an instruction, `stride` apart; a NaN among them has nothing in its lower half
    size_t stride;
    const Schedule* schedules;  // of the keys, in the order in which they are used
    const Mask* mask;
};

template <class T>
using Replay = void (*)(T* theta, uint64_t first, size_t count, const Passes& passes);

/// What the elements of one run of an update share.
struct Step {
    const Term* terms;  // with their coefficients in theta
    const float* in_g;  // and in g
    size_t n_terms;
    const float* decay;        // nullptr: none
    const Mask* mask;          // nullptr: all is kept
    const float* numbers;      // the rule's
    const Schedule* rounding;  // one a slot, where the state is in bfloat16
};

/// The same for an update: state[s] + i goes with theta + i.
template <class T>
using Update = void (*)(T* theta, void* const* state, uint64_t first, size_t count, const Step& step);

constexpr int kRules = 4, kSlots = 3, kNumbers = 7;  // at most so many slots and numbers has a rule

template <class T>
struct Kernels {
    AddNoise<T> add_noise[2];     // all kept, masked
    Replay<T> replay[2];        // likewise
    Update<T> update[kRules][2];  // state in float32, in bfloat16
};

struct Isa {
    const char* name;
    Kernels<float> float32;
    Kernels<zokern::bfloat16> bfloat16;
    Kernels<zokern::float16> float16;
};

const Isa& scalar();
#if defined(__x86_64__)
const Isa& avx2();
const Isa& avx512();
#endif

}  // namespace zokern
