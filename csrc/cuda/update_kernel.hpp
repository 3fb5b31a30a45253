// The kernel: theta <- decay * theta + sum_k a_k z'(key_k), and then a rule of its sums of b_k and z'(key_k), such as g, over the span of
// one thread block. Numbers: docs/noise_spec.md.
#pragma once

#include "elements.hpp"

#include "../noise/rules.hpp"

namespace zokern {
inline namespace cuda {

/// Element i of several arrays.
template <int count, int rows, int n>
__device__ __forceinline__ void take(Float* mine, const float (&all)[rows][n], int i) {
#pragma unroll
    for (int row = 0; row < count; ++row) mine[row].r = all[row][i];
}
template <int count, int rows, int n>
__device__ __forceinline__ void give(const Float* mine, float (&all)[rows][n], int i) {
#pragma unroll
    for (int row = 0; row < count; ++row) all[row][i] = mine[row].r;
}

/// z of one key into the sums of element i.
template <class Sums, int n>
__device__ __forceinline__ void add(float (&sums)[Sums::sums][n], int i, float z, const float* b) {
    Float mine[Sums::sums];
    take<Sums::sums>(mine, sums, i);
    Sums::add(mine, Float{z}, b);
    give<Sums::sums>(mine, sums, i);
}

/// One step of rule R on n elements: theta, the sums, and the states.
template <class R, int n>
__device__ __forceinline__ void step(float (&x)[n], const float (&sums)[R::Sums::sums][n], float (&s)[R::slots + 1][n],
                                     const float* numbers) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
        Float here{x[i]}, summed[R::Sums::sums], mine[R::slots + 1];
        take<R::Sums::sums>(summed, sums, i);
        take<R::slots>(mine, s, i);
        R::step(here, summed, mine, numbers);
        x[i] = here.r;
        give<R::slots>(mine, s, i);
    }
}

template <int n, class S>
__device__ __forceinline__ void read(float (&s)[n], const Place<true>&, const S* at) {
    load(s, at);
}
template <class S>
__device__ __forceinline__ void read(float (&s)[4], const Place<false>& place, const S* at) {
#pragma unroll
    for (int j = 0; j < 4; ++j) s[j] = place.has(j) ? widen(at[j]) : 0;
}

/// S: the storage type of the states. kOne: one key of normals, no mask, no lines, theta rounded to nearest; else any number of keys,
/// whatever they are, either rounding, and 128 registers, or ptxas spills one of them where it would do better.
template <class T, class S, class R, bool kOne>
__global__ void __launch_bounds__(kThreads, kOne ? 0 : 4) update_kernel(const __grid_constant__ Update p) {
    constexpr int n = kVector<T> > kVector<S> ? kVector<T> : kVector<S>;
    const Span span = p.spans[blockIdx.x];
    const uint32_t group = span.group, keep_threshold = span.keep_threshold, one = p.one;
    const uint32_t now = p.clock ? *p.clock : 0, n_keys = kOne ? 1 : p.n_keys;
    const float decay = p.decays ? p.decay[group] : 1.0f;
    S* states[R::slots + 1];
    bool aligned = true;
#pragma unroll
    for (int slot = 0; slot < R::slots; ++slot) {
        const int64_t address = p.states[blockIdx.x * R::slots + slot];
        states[slot] = in_memory<S>(address);
        aligned = aligned && (address & 15) == 0;
    }
    float numbers[R::numbers];
#pragma unroll
    for (int j = 0; j < R::numbers; ++j) numbers[j] = p.numbers[j * p.groups + group];
    using Sums = typename R::Sums;
    const float a0 = kOne ? p.a[group] : 0, b0 = kOne ? p.b[group] : 0;

    const auto on_under = [&](uint32_t high) {
        Schedule only;
        if (kOne) only = p.only_key.schedule(0, now, high);
        return [&, only](auto& row, const auto& place) {
            auto& x = row[0];
            constexpr int n = sizeof x / sizeof x[0];
            float sums[Sums::sums][n] = {}, s[R::slots + 1][n];
#pragma unroll
            for (int slot = 0; slot < R::slots; ++slot) read(s[slot], place, states[slot] + place.at);
#pragma unroll
            for (int i = 0; i < n; ++i) x[i] *= decay;
#pragma unroll 1
            for (uint32_t k = 0; k < n_keys; ++k) {
                const float a = kOne ? a0 : p.a[k * p.groups + group];
                float b[Sums::of_key];
#pragma unroll
                for (int j = 0; j < Sums::of_key; ++j) b[j] = kOne ? b0 : p.b[(j * n_keys + k) * p.groups + group];
                const auto add_z = [&](int, int i, float z) { x[i] = __fmaf_rn(a, z, x[i]), add<Sums>(sums, i, z, b); };
                const auto schedule = [&](uint32_t high) { return p.schedule(k, now, high); };
                const auto mask = [&] { return mask_of(schedule(place.high)); };
                if (kOne)
                    each_z<false, 1, n>(place.q, place.high, only, one, add_z);
                else if (p.signs)
                    each_z<true, true, 1, n>(place.q, place.high, schedule(high_of<true>(place.high)), mask, keep_threshold, one, add_z);
                else
                    each_z<false, true, 1, n>(place.q, place.high, schedule(place.high), mask, keep_threshold, one, add_z);
            }
            step<R>(x, sums, s, numbers);
#pragma unroll
            for (int slot = 0; slot < R::slots; ++slot) {
                const auto bits_of = [&](uint32_t high) { return p.state_rounding.schedule(slot, now, high); };
                AtRandom<decltype(bits_of)>{true, bits_of}(s[slot], place, states[slot] + place.at);
            }
        };
    };
    if constexpr (kOne) {
        over_span<T, T, false, false, n, 0>(span, aligned, on_under, Nearest());
    } else {
        const auto bits_of = [&](uint32_t high) { return p.rounding.schedule(0, now, high); };
        over_span<T, T, false, true, n, 0>(span, aligned, on_under, AtRandom<decltype(bits_of)>{p.at_random, bits_of});
    }
}

template <class T, class S, class R>
auto kernel_of(const Update& pass) {
    if constexpr (R::Sums::of_key == 1)
        if (pass.n_keys == 1 && !(pass.signs || pass.masked || pass.pitched || pass.at_random)) return update_kernel<T, S, R, true>;
    return update_kernel<T, S, R, false>;
}

template <class T, class R>
auto kernel_of(const Update& pass, Storage state) {
    return state == Storage::bfloat16 ? kernel_of<T, __nv_bfloat16, R>(pass) : kernel_of<T, float, R>(pass);
}

template <class T>
auto kernel_of(const Update& pass, Rule rule, Storage state) {
    switch (rule) {
        case Rule::momentum: return kernel_of<T, Momentum>(pass, state);
        case Rule::adam: return kernel_of<T, Adam>(pass, state);
        case Rule::amsgrad: return kernel_of<T, Amsgrad>(pass, state);
        case Rule::windowed_adam: return kernel_of<T, float, WindowedAdam>(pass);
        default: return kernel_of<T, float, Sign>(pass);  // which has no state
    }
}

}  // namespace cuda
}  // namespace zokern
