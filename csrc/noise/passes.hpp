// What passes are told in numbers, on every backend: zokern/kernels/passes.py has them too.
#pragma once

#include <cstdint>

namespace zokern {

constexpr int kInterface = 5;  // raised when what Python hands over changes its form: kernels/passes.py has the same

enum class Storage { float32, bfloat16, float16 };

constexpr uint32_t kKeepAll = 0xFFFFFFFF;  // the keep_threshold that keeps the noise of every element

/// What one instruction of a run of passes does with its value v, in the order of the bits.
enum Instruction : uint8_t {
    kNextKey = 1,  // the noise z is made of the next key; without it, z stays as it is
    kDecay = 2,  // x = v x; without it, x = fma(v, z, x)
    kRound = 4,  // x is rounded to the storage type: a pass ends
};

}  // namespace zokern
