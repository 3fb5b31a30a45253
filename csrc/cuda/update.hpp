// A pass that moves many tensors on a GPU by a rule of their noise, as the binding asks for it.
#pragma once

#include "span.hpp"

namespace zokern {

enum class Rule { sign, momentum, adam, amsgrad };

constexpr int kSlots = 3;    // the most states that a rule has
constexpr int kCarried = 8;  // up to so many keys go along with the launch: no memory of theirs need outlive it

struct Update : Pass {
    const int64_t* states;  // [n_spans][the rule's slots]: addresses of what belongs to the first element of the span
    uint32_t n_keys;
    const float* a;        // [n_keys][groups], what each z' is multiplied by on its way to theta
    const float* b;        // [n_keys][groups], and to g
    const float* decay;    // [groups] or nullptr
    const float* numbers;  // [the rule's][groups]
    Key carried[kCarried];  // keys is read where n_keys > kCarried
    Key rounding[kSlots];   // one a slot, where states are bfloat16
};

/// theta and the states after one step of the rule (docs/noise_spec.md), one launch on `stream` of `device`. States are float32 or
/// bfloat16. -> nullptr or CUDA's message.
const char* update(const Update& pass, Rule rule, Storage storage, Storage state, int device, void* stream);

}  // namespace zokern
