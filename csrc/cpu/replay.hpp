// Many passes in one read and one write of theta, over the lanes of one instruction set: an element stays in a register, and is rounded
// to its storage type there after each pass.
#pragma once

#include "tiles.hpp"

namespace zokern {
namespace {

/// For normals theta is taken apart into the order in which they come, and put together again at the end, so that none need be arranged.
template <bool signs, bool masked, class T>
__attribute__((noinline)) void replay_tile(const T* theta, T* out, const Tile& tile, const Run& run, const Passes& passes) {
    Pair x = load_tile(theta);
    if (!signs) x = apart<T>(x);
    Pair z = x;  // anything: the first instruction that needs noise makes it
    Opening<Word> opened = opening<Word>(tile.products, 0);
    const float* value = passes.values;
    size_t key = 0;
    const uint8_t* const end = passes.instructions + passes.n_instructions;
    for (const uint8_t* instruction = passes.instructions; instruction != end; ++instruction, ++value) {
        if (*instruction & kNextKey) {
            if (signs) {
                z = noise<T, true, masked>(tile, run, key);
            } else {
                const Schedule& s = run.schedules[key];
                if (s.round0_word2 != opened.round0_word2) opened = opening<Word>(tile.products, s.round0_word2);
                const Normals<Float> made = normals<masked>(opened, s, tile.products, run.mask, key);
                z = {made.even, made.odd};
            }
            ++key;
        }
        const Float v = splat<Float>(*value);
        if (*instruction & kDecay)
            x = {v * x.lo, v * x.hi};
        else
            x = {fma(v, z.lo, x.lo), fma(v, z.hi, x.hi)};
        if (*instruction & kRound) x = {rounded(x.lo, T()), rounded(x.hi, T())};
    }
    store_tile<T>(out, signs ? x : arrange<T>(x.lo, x.hi));
}

template <class T, bool signs, bool masked>
void replay(T* theta, const Run& run, const Passes& passes) {
    over_tiles(static_cast<const T*>(theta), theta, run,
               [&](const T* from, T* to, const Tile& tile) { replay_tile<signs, masked>(from, to, tile, run, passes); });
}

}  // namespace
}  // namespace zokern
