// Many passes over many tensors on a GPU in one read and one write, as the binding asks for them.
#pragma once

#include "span.hpp"

namespace zokern {

struct Replay : Pass {  // keys are in the order in which they are used
    const uint8_t* instructions;  // [n_instructions], bits of Instruction
    const float* values;          // [n_instructions][groups]
    uint32_t n_instructions;
};

/// All passes, theta rounded after each, one launch on `stream` of `device`. -> nullptr or CUDA's message.
const char* replay(const Replay& pass, Storage storage, int device, void* stream);

}  // namespace zokern
