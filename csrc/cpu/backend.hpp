// What one instruction set offers, and how a pass over tensors is asked for. Plain structs: this is all that the translation
// units, each compiled for another instruction set, know of each other.
#pragma once

#include <cstddef>
#include <cstdint>

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

/// theta[0..count) of elements first..first+count-1, whose blocks share the high word of their counter.
template <class T>
using AddNoise = void (*)(T* theta, uint64_t first, size_t count, const Term* terms, size_t n_terms, const float* decay);

struct Isa {
    const char* name;
    AddNoise<float> float32;
    AddNoise<zokern::bfloat16> bfloat16;
    AddNoise<zokern::float16> float16;
};

const Isa& scalar();
#if defined(__x86_64__)
const Isa& avx2();
const Isa& avx512();
#endif

}  // namespace zokern
