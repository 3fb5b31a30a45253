// x = decay * theta + sum_k a_k z(key_k);  g = sum_k b_k z(key_k);  a rule of x, g and the state: over the lanes of one instruction
// set. The lanes bring, beside what tiles.hpp asks for and what csrc/noise/rules.hpp does,
//   take(const T*) -> Float, put(T*, Float): kRegisters registers, each kLanes elements in a row, from and to every other kLanes
//     elements of a storage type: where arrange<float>() puts the normals of a Pair's half
//   put(T*, Float, const uint16_t* random): the same of 16-bit types, rounded stochastically with 16 random bits an element
#pragma once

#include <cstring>

#include "../noise/rules.hpp"
#include "tiles.hpp"

namespace zokern {
namespace {

/// Not inlined: one copy of the noise serves every rule and type.
template <bool signs, bool masked>
__attribute__((noinline)) void add_terms(Pair& x, Pair& g, const Tile& tile, const Run& run, const Step& step) {
    for (size_t k = 0; k < run.n_keys; ++k) {
        const Pair z = noise<float, signs, masked>(tile, run, k);
        const Float a = splat<Float>(step.in_theta[k]), b = splat<Float>(step.in_g[k]);
        x = {fma(a, z.lo, x.lo), fma(a, z.hi, x.hi)};
        g = {fma(b, z.lo, g.lo), fma(b, z.hi, g.hi)};
    }
}

/// One half of a tile: `at` is where it starts there. at_random: whether theta is rounded so.
template <class Rule, bool at_random, class T, class S>
ZK_HD void step_half(T* theta, Float& x, const Float& g, S* const* state, const uint16_t* random, const uint16_t* state_random,
                     size_t at, const float* numbers) {
    Float s[Rule::slots + 1];
    for (int slot = 0; slot < Rule::slots; ++slot) s[slot] = take(state[slot] + at);
    Rule::step(x, g, s, numbers);
    for (int slot = 0; slot < Rule::slots; ++slot) {
        if constexpr (is_bfloat16<S>)
            put(state[slot] + at, s[slot], state_random + slot * kRandom + at);
        else
            put(state[slot] + at, s[slot]);
    }
    if constexpr (at_random)
        put(theta + at, x, random + at);
    else
        put(theta + at, x);
}

template <class Rule, bool at_random, class T, class S>
__attribute__((noinline)) void update_tile(T* theta, S* const* state, const Tile& tile, const Run& run, const Step& step) {
    Pair x{take(theta), take(theta + kLanes)}, g{splat<Float>(0.0f), splat<Float>(0.0f)};
    if (run.decay) x = {splat<Float>(*run.decay) * x.lo, splat<Float>(*run.decay) * x.hi};
    const auto add = run.signs ? (run.mask ? add_terms<true, true> : add_terms<true, false>)
                               : (run.mask ? add_terms<false, true> : add_terms<false, false>);
    add(x, g, tile, run, step);
    const uint16_t* const random = at_random ? run.random + tile.at : nullptr;
    const uint16_t* const state_random = is_bfloat16<S> ? run.state_random + tile.at : nullptr;
    step_half<Rule, at_random>(theta, x.lo, g.lo, state, random, state_random, 0, step.numbers);
    step_half<Rule, at_random>(theta, x.hi, g.hi, state, random, state_random, kLanes, step.numbers);
}

template <class T, class S, class Rule>
void update(T* theta, void* const* slots, const Run& run, const Step& step) {
    const auto state = [&](int slot) { return static_cast<S*>(slots[slot]); };
    auto* on_tile = update_tile<Rule, false, T, S>;
    if constexpr (sizeof(T) == 2)
        if (run.random) on_tile = update_tile<Rule, true, T, S>;
    in_tiles<float>(
        run,
        [&](size_t begin, const Tile& tile) {
            S* here[Rule::slots + 1];
            for (int slot = 0; slot < Rule::slots; ++slot) here[slot] = state(slot) + begin;
            on_tile(theta + begin, here, tile, run, step);
        },
        [&](size_t begin, size_t skip, size_t n, const Tile& tile) {  // through buffers of a whole tile
            T thetas[kTile] = {};
            S states[Rule::slots + 1][kTile] = {};
            S* here[Rule::slots + 1];
            std::memcpy(thetas + skip, theta + begin, n * sizeof(T));
            for (int slot = 0; slot < Rule::slots; ++slot) {
                here[slot] = states[slot];
                std::memcpy(states[slot] + skip, state(slot) + begin, n * sizeof(S));
            }
            on_tile(thetas, here, tile, run, step);
            std::memcpy(theta + begin, thetas + skip, n * sizeof(T));
            for (int slot = 0; slot < Rule::slots; ++slot) std::memcpy(state(slot) + begin, states[slot] + skip, n * sizeof(S));
        });
}

}  // namespace
}  // namespace zokern
