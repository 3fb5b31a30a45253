// The passes over many tensors on a GPU, as the binding asks for them. No CUDA header is needed to include this.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../noise/passes.hpp"
#include "../noise/philox.hpp"

namespace zokern {

constexpr int kTile = 4096;   // every span but a tensor's last is a multiple of so many elements
constexpr int kUnrolled = 2;  // up to so many terms have kernels of their own, with their round keys in the constant bank
constexpr int kCarried = 8;   // up to so many keys of an update go along with the launch: no memory of theirs need outlive it
constexpr int kSlots = 3;     // the most states that a rule has

/// Contiguous elements that one thread block works on, of which the first has index `first` in the layout. In device memory.
struct Span {
    int64_t address, numel, first;
    int64_t group, keep_threshold;  // both below 2^32; keep_threshold is the greatest mask word of an element that keeps its noise
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

/// What every pass is given.
struct Pass {
    const Span* spans;
    uint32_t n_spans, groups;
    bool masked;            // whether some span has a keep_threshold below kKeepAll
    const uint32_t* clock;  // nullptr, or what is added to the step of every key
    const Key* keys;        // of all terms, in device memory, or nullptr where few enough go along with the launch
    const float* decay;     // [groups] or nullptr
};

struct AddNoise : Pass {
    uint32_t n_terms;
    const float* coefficients;           // [n_terms][groups]
    ConstantKeys<kUnrolled> first_keys;  // keys is read where n_terms > kUnrolled
};

struct Replay : Pass {            // keys are in the order in which they are used
    const uint8_t* instructions;  // [n_instructions], bits of Instruction
    const float* values;          // [n_instructions][groups]
    uint32_t n_instructions;
};

enum class Rule { sign, momentum, adam, amsgrad };

struct Update : Pass {
    const int64_t* states;  // [n_spans][the rule's slots]: addresses of what belongs to the first element of the span
    uint32_t n_keys;
    const float* a;                 // [n_keys][groups], what each z' is multiplied by on its way to theta
    const float* b;                 // [n_keys][groups], and to g
    const float* numbers;           // [the rule's][groups]
    Key carried[kCarried];          // keys is read where n_keys > kCarried
    ConstantKeys<1> only_key;       // the first of them
    ConstantKeys<kSlots> rounding;  // one a slot, where states are bfloat16
};

// One launch on `stream` of `device` each. -> nullptr or CUDA's message.

/// theta <- decay * theta + sum_k c_k z'(key_k)
const char* add_noise(const AddNoise& pass, Storage storage, int device, void* stream);

/// All passes, theta rounded after each.
const char* replay(const Replay& pass, Storage storage, int device, void* stream);

/// theta and the states after one step of the rule (docs/noise_spec.md). States are float32 or bfloat16.
const char* update(const Update& pass, Rule rule, Storage storage, Storage state, int device, void* stream);

}  // namespace zokern
