// x = decay * theta + sum_k a_k z(key_k);  a rule's sums of b_k and z(key_k), such as g;  its step: over the lanes of one instruction
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

/// What a rule sums of the noise in the two halves of a tile.
template <class Sums>
struct Summed {
    Float lo[Sums::sums], hi[Sums::sums];
};

/// Not inlined: one copy of the noise serves every rule with such sums, and every type.
template <class Sums, bool signs, bool masked>
__attribute__((noinline)) void add_terms(Pair& x, Summed<Sums>& summed, const Tile& tile, const Run& run, const Step& step) {
    for (size_t k = 0; k < run.n_keys; ++k) {
        const Pair z = noise<float, signs, masked>(tile, run, k);
        const Float a = splat<Float>(step.in_theta[k]);
        x = {fma(a, z.lo, x.lo), fma(a, z.hi, x.hi)};
        float b[Sums::of_key];
        for (int j = 0; j < Sums::of_key; ++j) b[j] = step.in_g[j * run.n_keys + k];
        Sums::add(summed.lo, z.lo, b), Sums::add(summed.hi, z.hi, b);
    }
}

/// One half of a tile: `at` is where it starts there. at_random: whether theta is rounded so.
template <class Rule, bool at_random, class T, class S>
ZK_HD void step_half(T* theta, Float& x, const Float* summed, S* const* state, const uint16_t* random, const uint16_t* state_random,
                     size_t at, const float* numbers) {
    Float s[Rule::slots + 1];
    for (int slot = 0; slot < Rule::slots; ++slot) s[slot] = take(state[slot] + at);
    Rule::step(x, summed, s, numbers);
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
    using Sums = typename Rule::Sums;
    Pair x{take(theta), take(theta + kLanes)};
    Summed<Sums> summed;
    for (int i = 0; i < Sums::sums; ++i) summed.lo[i] = summed.hi[i] = splat<Float>(0.0f);
    if (run.decay) x = {splat<Float>(*run.decay) * x.lo, splat<Float>(*run.decay) * x.hi};
    const auto add = run.signs ? (run.mask ? add_terms<Sums, true, true> : add_terms<Sums, true, false>)
                               : (run.mask ? add_terms<Sums, false, true> : add_terms<Sums, false, false>);
    add(x, summed, tile, run, step);
    const uint16_t* const random = at_random ? run.random + tile.at : nullptr;
    const uint16_t* const state_random = is_bfloat16<S> ? run.state_random + tile.at : nullptr;
    step_half<Rule, at_random>(theta, x.lo, summed.lo, state, random, state_random, 0, step.numbers);
    step_half<Rule, at_random>(theta, x.hi, summed.hi, state, random, state_random, kLanes, step.numbers);
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
