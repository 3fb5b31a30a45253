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

// Signs, and what rounds at random, are drawn ahead, for at most so many elements: those of a piece share first / kPiece. A draw writes up
// to kSpare blocks more than it was asked for.
constexpr size_t kPiece = 4096, kSpare = 64;
/// Halves of words of a key's blocks for a piece, where a block serves so many elements.
constexpr size_t halves(size_t elements) { return 8 * (kPiece / elements + kSpare); }
constexpr size_t kSigns = halves(128), kRandom = halves(8);

/// Blocks block, block + 1, ... in memory. `block` is the low word of the counter.
using Draw = void (*)(uint16_t* to, uint32_t block, size_t n_blocks, const Schedule& schedule);

/// Elements first..first+count-1 of a tensor, whose blocks share the high word of their counter, and what their noise is made of.
struct Run {
    uint64_t first;
    size_t count;
    const Schedule* schedules;  // one a key
    size_t n_keys;
    const Mask* mask;    // nullptr: all is kept
    const float* decay;  // nullptr: none
    // What was drawn for a piece, from element first & ~127 on.
    const uint16_t* signs;         // kSigns a key, one bit an element; nullptr: the noise is normals
    const uint16_t* random;        // by which what is written of theta is rounded, one half an element; nullptr: to nearest
    const uint16_t* state_random;  // kRandom a state in bfloat16, likewise
};

/// out[0..run.count) <- decay * theta + sum_k coefficients[k] z(key_k)
template <class T>
using AddNoise = void (*)(const T* theta, void* out, const Run& run, const float* coefficients);

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
    const float *in_theta, *in_g;  // one a key, and as many as the rule's sums ask for: [of_key][keys]
    const float* numbers;          // the rule's
};

/// state[s] + i goes with theta + i.
template <class T>
using Update = void (*)(T* theta, void* const* state, const Run& run, const Step& step);

constexpr int kStorages = 3, kRules = 5, kSlots = 3;  // so many of Storage, of rules; the most slots that one has

template <class T>
struct Kernels {
    AddNoise<T> add_noise[kStorages][2][2];  // by what is written; normals, signs; all kept, masked
    Replay<T> replay[2][2];                  // likewise
    Update<T> update[kRules][2];             // state in float32, in bfloat16
};

struct Isa {
    const char* name;
    Draw draw;
    Kernels<float> float32;
    Kernels<zokern::bfloat16> bfloat16;
    Kernels<zokern::float16> float16;
};

extern const Isa scalar, avx2, avx512;  // the last two on x86-64

}  // namespace zokern
