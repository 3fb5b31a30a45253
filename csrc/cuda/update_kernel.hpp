// The kernel: theta <- decay * theta + sum_k a_k z'(key_k), and then a rule of g = sum_k b_k z'(key_k), over the span of one thread
// block. Numbers: docs/noise_spec.md.
#pragma once

#include "normals.hpp"
#include "rules.hpp"
#include "update.hpp"
#include "vector.hpp"

namespace zokern {
namespace {

struct UpdateLaunch {
    const Span* spans;
    const int64_t* states;
    const Key* keys;
    const uint32_t* clock;
    const float* a;
    const float* b;
    const float* decay;
    const float* numbers;
    uint32_t n_keys, groups;
    ConstantKeys<1> first_key;
    ConstantKeys<kSlots> rounding;
};

inline UpdateLaunch launch_of(const Update& pass) {
    UpdateLaunch p{pass.spans, pass.states, pass.keys, pass.clock, pass.a, pass.b, pass.decay, pass.numbers, pass.n_keys, pass.groups, {}, {}};
    p.first_key.set(0, pass.first_key);
    for (int slot = 0; slot < kSlots; ++slot) p.rounding.set(slot, pass.rounding[slot]);
    return p;
}

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

/// kKeys = 0: n_keys of them, from memory. S: the storage type of the states.
template <class T, class S, class R, int kKeys>
__global__ void __launch_bounds__(kThreads) update_kernel(const __grid_constant__ UpdateLaunch p) {
    constexpr int n = kVector<T> > kVector<S> ? kVector<T> : kVector<S>;  // elements that a thread takes at a time, in a row
    constexpr bool kAtRandom = kVector<S> == 8;
    const Span span = p.spans[blockIdx.x];
    T* const theta = static_cast<T*>(__cvta_global_to_generic(span.address));
    const uint64_t first = span.first;
    const uint32_t now = p.clock ? *p.clock : 0, n_keys = kKeys ? kKeys : p.n_keys;
    const float decay = p.decay ? p.decay[span.group] : 1.0f;
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
    for (int j = 0; j < R::numbers; ++j) numbers[j] = p.numbers[j * p.groups + span.group];

    const float a0 = kKeys ? p.a[span.group] : 0, b0 = kKeys ? p.b[span.group] : 0;
    /// x += a z' and g += b z' of every key, in blocks q ... of four elements.
    const auto add_keys = [&](auto& x, auto& g, uint32_t q, uint32_t high) {
#pragma unroll(kKeys ? kKeys : 1)
        for (uint32_t k = 0; k < n_keys; ++k) {
            Schedule s;
            if constexpr (kKeys > 0) {
                s = p.first_key.schedule(k, now, high);
            } else {
                Key key = p.keys[k];
                key.step += now;
                s = schedule(key, high);
            }
            const float a = kKeys ? a0 : p.a[k * p.groups + span.group], b = kKeys ? b0 : p.b[k * p.groups + span.group];
#pragma unroll
            for (int j = 0; j < int(sizeof x / 16); ++j) {
                float z[4];
                normals(z, q + j, s);
                if (span.last != kKeepAll) drop(z, q + j, mask_of(s), span.last);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    x[4 * j + i] = __fmaf_rn(a, z[i], x[4 * j + i]);
                    g[4 * j + i] = __fmaf_rn(b, z[i], g[4 * j + i]);
                }
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
        float x[n], g[n] = {}, s[R::slots + 1][n];
        load(x, theta + at);
#pragma unroll
        for (int slot = 0; slot < R::slots; ++slot) load(s[slot], states[slot] + at);
#pragma unroll
        for (int i = 0; i < n; ++i) x[i] *= decay;
        add_keys(x, g, static_cast<uint32_t>(first + at >> 2), high);
#pragma unroll
        for (int i = 0; i < n; ++i) {
            float mine[R::slots + 1];
#pragma unroll
            for (int slot = 0; slot < R::slots; ++slot) mine[slot] = s[slot][i];
            R::step(x[i], g[i], mine, numbers);
#pragma unroll
            for (int slot = 0; slot < R::slots; ++slot) s[slot][i] = mine[slot];
        }
        store(x, theta + at);
#pragma unroll
        for (int slot = 0; slot < R::slots; ++slot) {
            if constexpr (kAtRandom) {
                const Words<Word> r = words(static_cast<uint32_t>(first + at >> 3), p.rounding.schedule(slot, now, high >> 1));
                const float(&y)[n] = s[slot];
                *reinterpret_cast<uint4*>(states[slot] + at) = {rounded_at_random(y[0], y[1], r.w0.r), rounded_at_random(y[2], y[3], r.w1.r),
                                                                rounded_at_random(y[4], y[5], r.w2.r), rounded_at_random(y[6], y[7], r.w3.r)};
            } else {
                store(s[slot], states[slot] + at);
            }
        }
    }

    // The ragged end, or all of a span that is misaligned or crosses a multiple of 2^34: block by block, element by element.
    const uint64_t end = first + span.numel;
    for (uint64_t block = (first + rows * kRow >> 2) + threadIdx.x; block << 2 < end; block += kThreads) {
        float x[4] = {}, g[4] = {};
        const auto inside = [&](int j) { return first <= (block << 2) + j && (block << 2) + j < end; };
        const int64_t at = (block << 2) - first;
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (inside(j)) x[j] = widen(theta[at + j]) * decay;
        add_keys(x, g, static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32));
        uint32_t r[R::slots + 1][2];
        if constexpr (kAtRandom) {
#pragma unroll
            for (int slot = 0; slot < R::slots; ++slot) {
                const auto w = words(static_cast<uint32_t>(block >> 1), p.rounding.schedule(slot, now, static_cast<uint32_t>(block >> 33)));
                r[slot][0] = block & 1 ? w.w2.r : w.w0.r, r[slot][1] = block & 1 ? w.w3.r : w.w1.r;
            }
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (!inside(j)) continue;
            float mine[R::slots + 1];
#pragma unroll
            for (int slot = 0; slot < R::slots; ++slot) mine[slot] = widen(states[slot][at + j]);
            R::step(x[j], g[j], mine, numbers);
            narrow(x[j], theta[at + j]);
#pragma unroll
            for (int slot = 0; slot < R::slots; ++slot) {
                if constexpr (kAtRandom) {
                    const uint32_t bits = rounded_at_random(mine[slot], r[slot][j >> 1] >> 16 * (j & 1) & 0xFFFFu) & 0xFFFF0000u;
                    narrow(__uint_as_float(bits), states[slot][at + j]);  // exact
                } else {
                    states[slot][at + j] = mine[slot];
                }
            }
        }
    }
}

}  // namespace
}  // namespace zokern
