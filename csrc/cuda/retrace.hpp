// Many passes over many tensors on a GPU in one read and one write, as the binding asks for them.
#pragma once

#include "span.hpp"

namespace zokern {

struct Retrace : Pass {  // keys are in the order in which they are used
    const uint8_t* uses;  // [n_uses], bits of Use
    const float* values;  // [n_uses][groups]
    uint32_t n_uses;
};

/// All passes, theta rounded after each, one launch on `stream` of `device`. -> nullptr or CUDA's message.
const char* retrace(const Retrace& pass, Storage storage, int device, void* stream);

}  // namespace zokern
