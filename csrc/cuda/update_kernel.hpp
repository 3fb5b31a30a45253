// The kernel: theta <- decay * theta + sum_k a_k z'(key_k), and then a rule of g = sum_k b_k z'(key_k), over the span of one thread
// block. Numbers: docs/noise_spec.md.
#pragma once

#include "normals.hpp"
#include "vector.hpp"

#include "../noise/rules.hpp"

namespace zokern {
namespace {

/// A float rounded up or down to bfloat16, which is the upper half of what is returned. r: 16 random bits.
__device__ __forceinline__ uint32_t rounded_at_random(float x, uint32_t r) {
    const uint32_t u = __float_as_uint(x);
    return x == x ? u + r : u | 0x00400000u;  // a NaN must not lose its last bit; an infinity has none to carry
}
__device__ __forceinline__ uint32_t rounded_at_random(float low, float high, uint32_t r) {
    return rounded_at_random(low, r & 0xFFFFu) >> 16 | (rounded_at_random(high, r >> 16) & 0xFFFF0000u);
}

template <int n, class T>
__device__ __forceinline__ void load(float (&x)[n], const T* at) {
#pragma unroll
    for (int i = 0; i < n / kVector<T>; ++i)
        unpack(reinterpret_cast<const uint4*>(at)[i], reinterpret_cast<float(&)[kVector<T>]>(x[i * kVector<T>]), T());
}
template <int n, class T>
__device__ __forceinline__ void store(const float (&x)[n], T* at) {
#pragma unroll
    for (int i = 0; i < n / kVector<T>; ++i)
        reinterpret_cast<uint4*>(at)[i] = pack(reinterpret_cast<const float(&)[kVector<T>]>(x[i * kVector<T>]), T());
}

__device__ __forceinline__ void store(const float (&x)[8], const Words<Word>& r, __nv_bfloat16* at) {
    *reinterpret_cast<uint4*>(at) = {rounded_at_random(x[0], x[1], r.w0.r), rounded_at_random(x[2], x[3], r.w1.r),
                                     rounded_at_random(x[4], x[5], r.w2.r), rounded_at_random(x[6], x[7], r.w3.r)};
}

/// So many elements of a thread: theta, g, and the states of rule R.
template <class R, int n>
struct Elements {
    float x[n], g[n] = {}, s[R::slots + 1][n];

    __device__ __forceinline__ void step(const float* numbers) {
#pragma unroll
        for (int i = 0; i < n; ++i) {
            Float here{x[i]}, mine[R::slots + 1];
#pragma unroll
            for (int slot = 0; slot < R::slots; ++slot) mine[slot].r = s[slot][i];
            R::step(here, Float{g[i]}, mine, numbers);
            x[i] = here.r;
#pragma unroll
            for (int slot = 0; slot < R::slots; ++slot) s[slot][i] = mine[slot].r;
        }
    }
};

/// S: the storage type of the states. kOne: one key and no mask; else any number of keys, and masks, and 128 registers, or ptxas spills
/// one of them where it would do better.
template <class T, class S, class R, bool kOne>
__global__ void __launch_bounds__(kThreads, kOne ? 0 : 4) update_kernel(const __grid_constant__ Update p) {
    constexpr int n = kVector<T> > kVector<S> ? kVector<T> : kVector<S>;  // elements that a thread takes at a time, in a row
    constexpr bool kAtRandom = kVector<S> == 8;
    const Span span = p.spans[blockIdx.x];
    T* const theta = static_cast<T*>(__cvta_global_to_generic(span.address));
    const uint64_t first = span.first;
    const uint32_t group = span.group, keep_threshold = span.keep_threshold;
    const uint32_t now = p.clock ? *p.clock : 0, n_keys = kOne ? 1 : p.n_keys;
    const float decay = p.decay ? p.decay[group] : 1.0f;
    S* states[R::slots + 1];
    bool whole = (span.address & 15) == 0;
#pragma unroll
    for (int slot = 0; slot < R::slots; ++slot) {
        const int64_t address = p.states[blockIdx.x * R::slots + slot];
        states[slot] = static_cast<S*>(__cvta_global_to_generic(address));
        whole = whole && (address & 15) == 0;
    }
    float numbers[R::numbers];
#pragma unroll
    for (int j = 0; j < R::numbers; ++j) numbers[j] = p.numbers[j * p.groups + group];

    const float a0 = kOne ? p.a[group] : 0, b0 = kOne ? p.b[group] : 0;
    /// x += a z' and g += b z' of every key; q: the first of the Philox blocks that the elements are.
    const auto add_keys = [&](auto& e, uint32_t q, uint32_t high) {
#pragma unroll 1
        for (uint32_t k = 0; k < n_keys; ++k) {
            Schedule s;
            if constexpr (kOne) {
                s = p.only_key.schedule(k, now, high);
            } else {
                Key key = n_keys <= kCarried ? p.carried[k] : p.keys[k];
                key.step += now;
                s = schedule(key, high);
            }
            const float a = kOne ? a0 : p.a[k * p.groups + group], b = kOne ? b0 : p.b[k * p.groups + group];
#pragma unroll
            for (int j = 0; j < int(sizeof e.x / sizeof(float)); j += 4) {
                float z[4];
                normals(z, q + j / 4, s);
                if (!kOne && keep_threshold != kKeepAll) drop(z, q + j / 4, mask_of(s), keep_threshold);
#pragma unroll
                for (int i = 0; i < 4; ++i) e.x[j + i] = __fmaf_rn(a, z[i], e.x[j + i]), e.g[j + i] = __fmaf_rn(b, z[i], e.g[j + i]);
            }
        }
    };

    // Whole rows, where 16-byte accesses and Philox blocks fall together and one high counter word serves all.
    constexpr int kRow = kThreads * n;
    whole = whole && first % n == 0 && first >> 34 == (first + span.numel - 1) >> 34;
    const int64_t rows = whole ? span.numel / kRow : 0;
    const uint32_t high = static_cast<uint32_t>(first >> 34);
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t at = row * kRow + threadIdx.x * n;
        Elements<R, n> e;
        load(e.x, theta + at);
#pragma unroll
        for (int slot = 0; slot < R::slots; ++slot) load(e.s[slot], states[slot] + at);
#pragma unroll
        for (int i = 0; i < n; ++i) e.x[i] *= decay;
        add_keys(e, static_cast<uint32_t>(first + at >> 2), high);
        e.step(numbers);
        store(e.x, theta + at);
#pragma unroll
        for (int slot = 0; slot < R::slots; ++slot) {
            if constexpr (kAtRandom) {
                const auto r = words(static_cast<uint32_t>(first + at >> 3), p.rounding.schedule(slot, now, high >> 1));
                store(e.s[slot], r, states[slot] + at);
            } else {
                store(e.s[slot], states[slot] + at);
            }
        }
    }

    // The ragged end, or all of a span that is misaligned or crosses a multiple of 2^34: block by block, element by element.
    const uint64_t end = first + span.numel;
    for (uint64_t block = (first + rows * kRow >> 2) + threadIdx.x; block << 2 < end; block += kThreads) {
        const int64_t at = (block << 2) - first;
        const auto inside = [&](int j) { return 0 <= at + j && at + j < span.numel; };
        Elements<R, 4> e;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            e.x[j] = inside(j) ? widen(theta[at + j]) * decay : 0;
#pragma unroll
            for (int slot = 0; slot < R::slots; ++slot) e.s[slot][j] = inside(j) ? widen(states[slot][at + j]) : 0;
        }
        add_keys(e, static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32));
        e.step(numbers);
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (inside(j)) narrow(e.x[j], theta[at + j]);
#pragma unroll
        for (int slot = 0; slot < R::slots; ++slot) {
            uint32_t r[2] = {};  // two elements' bits each
            if constexpr (kAtRandom) {
                const auto w = words(static_cast<uint32_t>(block >> 1), p.rounding.schedule(slot, now, static_cast<uint32_t>(block >> 33)));
                r[0] = block & 1 ? w.w2.r : w.w0.r, r[1] = block & 1 ? w.w3.r : w.w1.r;
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float y = e.s[slot][j];
                if (kAtRandom) y = __uint_as_float(rounded_at_random(y, r[j / 2] >> 16 * (j % 2) & 0xFFFFu) & 0xFFFF0000u);
                if (inside(j)) narrow(y, states[slot][at + j]);
            }
        }
    }
}

}  // namespace
}  // namespace zokern
