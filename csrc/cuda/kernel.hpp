// The kernel: theta <- decay * theta + sum_k c_k z(key_k) over the span of one thread block. Numbers: docs/noise_spec.md.
#pragma once

#include "add_noise.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "lane.hpp"

#include "../noise/normal.hpp"

namespace zokern {
namespace {

constexpr int kThreads = 128;

/// What the kernel gets. It lies in the constant bank, from which instructions read round keys at no cost.
struct Launch {
    const Span* spans;
    const Key* keys;
    const uint32_t* clock;
    const float* coefficients;
    const float* decay;
    uint32_t n_terms, groups;
    uint32_t step[kUnrolled], stream[kUnrolled];
    Schedule schedule[kUnrolled];
};

inline Launch launch_of(const Pass& pass) {
    Launch p{pass.spans, pass.keys, pass.clock, pass.coefficients, pass.decay, pass.n_terms, pass.groups, {}, {}, {}};
    for (uint32_t k = 0; k < pass.n_terms && k < kUnrolled; ++k) {
        const Key& key = pass.first_keys[k];
        p.step[k] = key.step, p.stream[k] = key.stream, p.schedule[k] = schedule(key, 0);
    }
    return p;
}

// Sixteen bytes of theta and their floats.
template <class T> constexpr int kVector = 16 / sizeof(T);

__device__ __forceinline__ void unpack(const uint4& raw, float (&x)[4], float) {
    x[0] = __uint_as_float(raw.x), x[1] = __uint_as_float(raw.y), x[2] = __uint_as_float(raw.z), x[3] = __uint_as_float(raw.w);
}
__device__ __forceinline__ uint4 pack(const float (&x)[4], float) {
    return {__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])};
}
__device__ __forceinline__ void unpack(const uint4& raw, float (&x)[8], __nv_bfloat16) {
    const uint32_t words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) x[2 * i] = __uint_as_float(words[i] << 16), x[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
}
__device__ __forceinline__ void unpack(const uint4& raw, float (&x)[8], __half) {
    const uint32_t words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = __half22float2(reinterpret_cast<const __half2&>(words[i]));
        x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
    }
}
__device__ __forceinline__ uint32_t rounded(float low, float high, __nv_bfloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
}
__device__ __forceinline__ uint32_t rounded(float low, float high, __half) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
}
template <class T>
__device__ __forceinline__ uint4 pack(const float (&x)[8], T) {
    return {rounded(x[0], x[1], T()), rounded(x[2], x[3], T()), rounded(x[4], x[5], T()), rounded(x[6], x[7], T())};
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ void narrow(float x, float& y) { y = x; }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(float x, __half& y) { y = __float2half_rn(x); }

/// x[0..3] += c z of block q.
__device__ __forceinline__ void add_block(float* x, uint32_t q, const Schedule& s, float c) {
    const Words<Word> w = philox<Word>(mul(kMultiplier0, Word{q}), s);
    const Normals<Float> lower = box_muller<Float>(Bits{w.w0.r}, Bits{w.w1.r}), upper = box_muller<Float>(Bits{w.w2.r}, Bits{w.w3.r});
    x[0] = __fmaf_rn(c, lower.even.r, x[0]);
    x[1] = __fmaf_rn(c, lower.odd.r, x[1]);
    x[2] = __fmaf_rn(c, upper.even.r, x[2]);
    x[3] = __fmaf_rn(c, upper.odd.r, x[3]);
}

/// kTerms = 0: n_terms of them, from memory.
template <class T, int kTerms, bool kDecay>
__global__ void __launch_bounds__(kThreads) add_noise_kernel(const __grid_constant__ Launch p) {
    constexpr int kVectors = kTile / (kThreads * kVector<T>);  // of a thread in a tile
    constexpr int kBlocks = kVector<T> / 4;                    // Philox blocks in a vector
    const Span span = p.spans[blockIdx.x];
    T* const theta = static_cast<T*>(__cvta_global_to_generic(span.address));  // or every access would first look where it points
    const uint64_t first = span.first;
    const uint32_t now = p.clock ? *p.clock : 0, n_terms = kTerms ? kTerms : p.n_terms;
    const float* const coefficients = p.coefficients + span.group;
    const float decay = kDecay ? p.decay[span.group] : 1.0f;

    float c[kTerms + 1];  // read here, since the compiler cannot know that theta lies elsewhere
#pragma unroll
    for (int k = 0; k < kTerms; ++k) c[k] = coefficients[k * p.groups];
    const auto coefficient = [&](uint32_t k) { return kTerms ? c[k] : coefficients[k * p.groups]; };
    const auto schedule_of = [&](uint32_t k, uint32_t high) {
        if constexpr (kTerms > 0) {
            Schedule s = p.schedule[k];
            begin(s, p.step[k] + now, p.stream[k], high);
            return s;
        } else {
            Key key = p.keys[k];
            key.step += now;
            return schedule(key, high);
        }
    };

    // Whole tiles, where 16-byte accesses and Philox blocks fall together and one high counter word serves all.
    const bool whole = (span.address & 15) == 0 && (first & 3) == 0 && first >> 34 == (first + span.numel - 1) >> 34;
    const int64_t tiles = whole ? span.numel / kTile : 0;
    const uint32_t high = static_cast<uint32_t>(first >> 34);
    uint32_t q = static_cast<uint32_t>(first >> 2) + threadIdx.x * kBlocks;
    uint4* vectors = reinterpret_cast<uint4*>(theta) + threadIdx.x;
    for (int64_t tile = 0; tile < tiles; ++tile, q += kTile / 4, vectors += kVectors * kThreads) {
        float x[kVectors][kVector<T>];
#pragma unroll
        for (int v = 0; v < kVectors; ++v) unpack(vectors[v * kThreads], x[v], T());
        if (kDecay) {
#pragma unroll
            for (int v = 0; v < kVectors; ++v)
#pragma unroll
                for (int i = 0; i < kVector<T>; ++i) x[v][i] *= decay;
        }
#pragma unroll(kTerms ? kTerms : 1)
        for (uint32_t k = 0; k < n_terms; ++k) {
            const Schedule s = schedule_of(k, high);
            const float c = coefficient(k);
#pragma unroll
            for (int v = 0; v < kVectors; ++v)
#pragma unroll
                for (int b = 0; b < kBlocks; ++b) add_block(x[v] + 4 * b, q + v * kThreads * kBlocks + b, s, c);
        }
#pragma unroll
        for (int v = 0; v < kVectors; ++v) vectors[v * kThreads] = pack(x[v], T());
    }

    // The ragged end, or all of a span that is misaligned or crosses a multiple of 2^34: block by block, element by element.
    const uint64_t end = first + span.numel;
    for (uint64_t block = (first + tiles * kTile >> 2) + threadIdx.x; block << 2 < end; block += kThreads) {
        float x[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint64_t i = (block << 2) + j;
            x[j] = first <= i && i < end ? widen(theta[i - first]) * decay : 0;
        }
#pragma unroll(kTerms ? kTerms : 1)
        for (uint32_t k = 0; k < n_terms; ++k)
            add_block(x, static_cast<uint32_t>(block), schedule_of(k, static_cast<uint32_t>(block >> 32)), coefficient(k));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint64_t i = (block << 2) + j;
            if (first <= i && i < end) narrow(x[j], theta[i - first]);
        }
    }
}

}  // namespace
}  // namespace zokern
