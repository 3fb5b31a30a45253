// x = decay * theta + sum_k a_k z(key_k);  g = sum_k b_k z(key_k);  a rule of x, g and the state: over the lanes of one instruction
// set. The lanes bring, beside what tiles.hpp asks for and what csrc/noise/rules.hpp does,
//   take(const T*) -> Float, put(T*, Float): kRegisters registers, each kLanes elements in a row, from and to every other kLanes
//     elements of a storage type: where arrange<float>() puts the normals of a Pair's half
//   put(bfloat16*, Float, const uint16_t* random): the same, rounded stochastically with 16 random bits an element
//   put(uint16_t*, Bits, Bits): the halves of the words of blocks in the order of first_products<float>().
#pragma once

#include <cstring>

#include "../noise/rules.hpp"
#include "tiles.hpp"

namespace zokern {
namespace {

// A block of Philox makes four normals, but rounds eight numbers.
constexpr size_t kUnit = 2 * kTile;

/// The blocks of a unit's first tile, and those that its state is rounded with.
struct Blocks {
    Product noise, rounding;
};

/// Not inlined: one copy of the noise serves every rule and type.
template <bool masked>
__attribute__((noinline)) void add_terms(Pair& x, Pair& g, const Product& products, const Run& run, const Step& step) {
    for (size_t k = 0; k < run.n_keys; ++k) {
        const Pair z = noise<float, masked>(products, run.schedules[k], run.mask, k);
        const Float a = splat<Float>(step.in_theta[k]), b = splat<Float>(step.in_g[k]);
        x = {fma(a, z.lo, x.lo), fma(a, z.hi, x.hi)};
        g = {fma(b, z.lo, g.lo), fma(b, z.hi, g.hi)};
    }
}

__attribute__((noinline)) void draw(uint16_t* random, const Product& products, const Schedule& schedule) {
    const Pairs w = pairs(products, schedule);
    put(random, w.w02, w.w13);
}

/// One half of a tile: `at` is where it starts in the unit.
template <class Rule, class T, class S>
ZK_HD void step_half(T* theta, Float& x, const Float& g, S* const* state, const uint16_t (*random)[kUnit], size_t at,
                     const float* numbers) {
    Float s[Rule::slots + 1];
    for (int slot = 0; slot < Rule::slots; ++slot) s[slot] = take(state[slot] + at);
    Rule::step(x, g, s, numbers);
    for (int slot = 0; slot < Rule::slots; ++slot) {
        if constexpr (is_bfloat16<S>)
            put(state[slot] + at, s[slot], random[slot] + at);
        else
            put(state[slot] + at, s[slot]);
    }
    put(theta + at, x);
}

template <class Rule, class T, class S>
__attribute__((noinline)) void update_unit(T* theta, S* const* state, Blocks blocks, const Run& run, const Step& step) {
    uint16_t random[Rule::slots + 1][kUnit];
    if (is_bfloat16<S>)
        for (int slot = 0; slot < Rule::slots; ++slot) draw(random[slot], blocks.rounding, step.rounding[slot]);
    for (size_t at = 0; at < kUnit; at += kTile, blocks.noise = next_products(blocks.noise)) {
        Pair x{take(theta + at), take(theta + at + kLanes)}, g{splat<Float>(0.0f), splat<Float>(0.0f)};
        if (run.decay) x = {splat<Float>(*run.decay) * x.lo, splat<Float>(*run.decay) * x.hi};
        (run.mask ? add_terms<true> : add_terms<false>)(x, g, blocks.noise, run, step);
        step_half<Rule>(theta, x.lo, g.lo, state, random, at, step.numbers);
        step_half<Rule>(theta, x.hi, g.hi, state, random, at + kLanes, step.numbers);
    }
}

/// The part of a unit that holds elements skip..skip+count-1, through buffers of a whole unit.
template <class Rule, class T, class S>
void update_part(T* theta, S* const* state, size_t skip, size_t count, const Blocks& blocks, const Run& run, const Step& step) {
    T thetas[kUnit] = {};
    S states[Rule::slots + 1][kUnit] = {};
    S* slots[Rule::slots + 1];
    std::memcpy(thetas + skip, theta, count * sizeof(T));
    for (int slot = 0; slot < Rule::slots; ++slot) {
        slots[slot] = states[slot];
        std::memcpy(states[slot] + skip, state[slot], count * sizeof(S));
    }
    update_unit<Rule>(thetas, slots, blocks, run, step);
    std::memcpy(theta, thetas + skip, count * sizeof(T));
    for (int slot = 0; slot < Rule::slots; ++slot) std::memcpy(state[slot], states[slot] + skip, count * sizeof(S));
}

template <class T, class S, class Rule>
void update(T* theta, void* const* slots, const Run& run, const Step& step) {
    S* state[Rule::slots + 1];
    for (int slot = 0; slot < Rule::slots; ++slot) state[slot] = static_cast<S*>(slots[slot]);
    const uint32_t eighth = static_cast<uint32_t>(run.first >> 3);
    Blocks blocks{first_products<float>(2 * eighth), first_products<float>(eighth)};
    size_t skip = run.first & 7, count = run.count;
    while (count) {
        const size_t part = count < kUnit - skip ? count : kUnit - skip;
        if (part == kUnit)
            update_unit<Rule>(theta, state, blocks, run, step);
        else
            update_part<Rule>(theta, state, skip, part, blocks, run, step);
        theta += part, count -= part, skip = 0;
        for (int slot = 0; slot < Rule::slots; ++slot) state[slot] += part;
        blocks = {next_products(next_products(blocks.noise)), next_products(blocks.rounding)};
    }
}

}  // namespace
}  // namespace zokern
