// Many passes in one read and one write of theta, over the lanes of one instruction set: an element stays in a register, and is rounded
// to its storage type there after each pass.
#pragma once

#include "tiles.hpp"

namespace zokern {
namespace {

/// Theta is taken apart into the order in which noise comes, and put together again at the end, so that no noise need be arranged.
template <bool masked, class T>
__attribute__((noinline)) void replay_tile(T* theta, const Product& products, const Run& run, const Passes& passes) {
    const Pair x = apart<T>(load_tile(theta));
    Float even = x.lo, odd = x.hi;
    Normals<Float> z{even, odd};  // anything: the first instruction that needs noise makes it
    Opening<Word> opened = opening<Word>(products, 0);
    const float* value = passes.values;
    size_t key = 0;
    const uint8_t* const end = passes.instructions + passes.n_instructions;
    for (const uint8_t* instruction = passes.instructions; instruction != end; ++instruction, ++value) {
        if (*instruction & kNextKey) {
            const Schedule& s = run.schedules[key];
            if (s.round0_word2 != opened.round0_word2) opened = opening<Word>(products, s.round0_word2);
            z = normals<masked>(opened, s, products, run.mask, key);
            ++key;
        }
        const Float v = splat<Float>(*value);
        if (*instruction & kDecay)
            even = v * even, odd = v * odd;
        else
            even = fma(v, z.even, even), odd = fma(v, z.odd, odd);
        if (*instruction & kRound) even = rounded(even, T()), odd = rounded(odd, T());
    }
    store_tile(theta, arrange<T>(even, odd));
}

template <class T, bool masked>
void replay(T* theta, const Run& run, const Passes& passes) {
    in_tiles(theta, run.first, run.count, [&](T* tile, const Product& products) { replay_tile<masked>(tile, products, run, passes); });
}

}  // namespace
}  // namespace zokern
