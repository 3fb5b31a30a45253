// The passes over many tensors on a GPU, as the binding asks for them. No CUDA header is needed to include this.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../noise/passes.hpp"
#include "../noise/philox.hpp"

namespace zokern {

constexpr int kTile = 4096;   // every span but a tensor's last is a multiple of so many elements
constexpr int kUnrolled = 2;  // up to so many terms have kernels of their own, with their round keys in the constant bank
constexpr int kCarried = 8;   // up to so many keys, or numbers, go along with the launch: no memory of theirs need outlive it
constexpr int kSlots = 3;     // the most states that a rule has

/// What one thread block works on: a row of a table (zokern/kernels/tables.py), or a piece of one. In device memory.
struct Span {
    int64_t address, pitch, out, out_pitch;
    int64_t numel, columns, first, step;
    int64_t group, keep_threshold;  // both below 2^32
};

/// Keys in what a kernel is launched with: that lies in the constant bank, from which instructions read round keys at no cost.
template <int n>
struct ConstantKeys {
    uint32_t step[n], stream[n];
    Schedule rounds[n];

    void set(int k, const Key& key) { step[k] = key.step, stream[k] = key.stream, rounds[k] = zokern::schedule(key, 0); }
    ZK_HD Schedule schedule(int k, uint32_t now, uint32_t high) const {
        Schedule s = rounds[k];
        begin(s, step[k] + now, stream[k], high);
        return s;
    }
};

/// A few numbers that the host knows, or the address of numbers in device memory.
struct Numbers {
    const float* there;
    float here[kCarried];

    ZK_HD float operator[](uint32_t i) const { return there ? there[i] : here[i]; }
};

/// What every pass is given.
struct Pass {
    const Span* spans;
    uint32_t n_spans, groups;
    bool masked, pitched, signs;  // whether some span has a keep_threshold below kKeepAll; is several lines; what the noise is
    const uint32_t* clock;        // nullptr, or what is added to the step of every key
    uint32_t n_keys;
    const Key* keys;            // in device memory, where n_keys > kCarried
    Key carried[kCarried];      // those of fewer
    uint32_t one = 0x3F800000;  // the bits of 1.0f, which kernels must not know (lane.hpp)

    ZK_HD Schedule schedule(uint32_t k, uint32_t now, uint32_t high) const {
        Key key = n_keys <= kCarried ? carried[k] : keys[k];
        key.step += now;
        return zokern::schedule(key, high);
    }
};

struct AddNoise : Pass {
    ConstantKeys<kUnrolled> first_keys;
    Numbers coefficients;  // [n_keys][groups]
    bool decays, at_random;
    Numbers decay;             // [groups], where decays
    ConstantKeys<1> rounding;  // where at_random
};

struct Replay : Pass {            // keys are in the order in which they are used
    const uint8_t* instructions;  // [n_instructions], bits of Instruction
    const float* values;          // [n_instructions][groups]
    uint32_t n_instructions;
};

enum class Rule { sign, momentum, adam, amsgrad, windowed_adam };

struct Update : Pass {
    ConstantKeys<1> only_key;  // the first of them
    const int64_t* states;     // [n_spans][the rule's slots]: addresses of what belongs to the first element of the span
    Numbers a;                 // [n_keys][groups], what each z' is multiplied by on its way to theta
    Numbers b;                 // [numbers of a key][n_keys][groups], by which it goes into the rule's sums
    bool decays, at_random;
    Numbers decay;             // [groups], where decays
    Numbers numbers;           // [the rule's][groups]
    ConstantKeys<1> rounding;  // of theta, where at_random
    ConstantKeys<kSlots> state_rounding;  // one a slot, where states are in bfloat16
};

// One launch on `stream` of `device` each. -> nullptr or CUDA's message.

/// out <- decay * theta + sum_k c_k z'(key_k). `stored`: the storage type of out.
const char* add_noise(const AddNoise& pass, Storage storage, Storage stored, int device, void* stream);

/// All passes, theta rounded after each.
const char* replay(const Replay& pass, Storage storage, int device, void* stream);

/// theta and the states after one step of the rule (docs/noise_spec.md). States are float32 or bfloat16.
const char* update(const Update& pass, Rule rule, Storage storage, Storage state, int device, void* stream);

}  // namespace zokern
