// Many passes in one read and one write of theta, over the lanes of one instruction set: an element stays in a register, and is rounded
// to its storage type there after each pass.
#pragma once

#include "tiles.hpp"

namespace zokern {
namespace {

/// Theta is taken apart into the order in which noise comes, and put together again at the end, so that no noise need be arranged.
template <bool masked, class T>
__attribute__((noinline)) void retrace_tile(T* theta, const Product& products, const Trace& trace) {
    const Pair x = apart<T>(load_tile(theta));
    Float even = x.lo, odd = x.hi;
    Normals<Float> z{even, odd};  // anything: the first use of noise makes it
    Opening<Word> opened = opening<Word>(products, 0);
    const float* value = trace.values;
    size_t key = 0;
    for (const uint8_t *use = trace.uses, *end = use + trace.n_uses; use != end; ++use, value += trace.stride) {
        if (*use & kFresh) {
            const Schedule& s = trace.schedules[key];
            if (s.round0_word2 != opened.round0_word2) opened = opening<Word>(products, s.round0_word2);
            z = normals<masked>(opened, s, products, trace.mask, key);
            ++key;
        }
        const Float v = splat<Float>(*value);
        if (*use & kDecay)
            even = v * even, odd = v * odd;
        else
            even = fma(v, z.even, even), odd = fma(v, z.odd, odd);
        if (*use & kRound) even = rounded(even, T()), odd = rounded(odd, T());
    }
    store_tile(theta, arrange<T>(even, odd));
}

template <class T, bool masked>
void retrace(T* theta, uint64_t first, size_t count, const Trace& trace) {
    in_tiles(theta, first, count, [&](T* tile, const Product& products) { retrace_tile<masked>(tile, products, trace); });
}

}  // namespace
}  // namespace zokern
