// The kernel: theta <- decay * theta + sum_k c_k z'(key_k) over the span of one thread block. Numbers: docs/noise_spec.md.
#pragma once

#include "add_noise.hpp"
#include "normals.hpp"
#include "vector.hpp"

namespace zokern {
namespace {

struct Launch {
    const Span* spans;
    const Key* keys;
    const uint32_t* clock;
    const float* coefficients;
    const float* decay;
    uint32_t n_terms, groups;
    ConstantKeys<kUnrolled> first_keys;
};

inline Launch launch_of(const Pass& pass) {
    Launch p{pass.spans, pass.keys, pass.clock, pass.coefficients, pass.decay, pass.n_terms, pass.groups, {}};
    for (uint32_t k = 0; k < pass.n_terms && k < kUnrolled; ++k) p.first_keys.set(k, pass.first_keys[k]);
    return p;
}

/// x[0..3] += c z' of block q.
template <bool kMask>
__device__ __forceinline__ void add_block(float* x, uint32_t q, const Schedule& s, float c, uint32_t last) {
    float z[4];
    normals(z, q, s);
    if (kMask) drop(z, q, mask_of(s), last);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = __fmaf_rn(c, z[i], x[i]);
}

/// kTerms = 0: n_terms of them, from memory.
template <class T, int kTerms, bool kDecay, bool kMask>
__global__ void __launch_bounds__(kThreads) add_noise_kernel(const __grid_constant__ Launch p) {
    constexpr int kVectors = kTile / (kThreads * kVector<T>);  // of a thread in a tile
    constexpr int kBlocks = kVector<T> / 4;                    // Philox blocks in a vector
    const Span span = p.spans[blockIdx.x];
    T* const theta = static_cast<T*>(__cvta_global_to_generic(span.address));  // or every access would first look where it points
    const uint64_t first = span.first;
    const uint32_t now = p.clock ? *p.clock : 0, n_terms = kTerms ? kTerms : p.n_terms;
    const float* const coefficients = p.coefficients + span.group;
    const float decay = kDecay && p.decay ? p.decay[span.group] : 1.0f;

    float c[kTerms + 1];  // read here, since the compiler cannot know that theta lies elsewhere
#pragma unroll
    for (int k = 0; k < kTerms; ++k) c[k] = coefficients[k * p.groups];
    const auto coefficient = [&](uint32_t k) { return kTerms ? c[k] : coefficients[k * p.groups]; };
    const auto schedule_of = [&](uint32_t k, uint32_t high) {
        if constexpr (kTerms > 0) {
            return p.first_keys.schedule(k, now, high);
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
                for (int b = 0; b < kBlocks; ++b) add_block<kMask>(x[v] + 4 * b, q + v * kThreads * kBlocks + b, s, c, span.last);
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
            add_block<kMask>(x, static_cast<uint32_t>(block), schedule_of(k, static_cast<uint32_t>(block >> 32)), coefficient(k),
                             span.last);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint64_t i = (block << 2) + j;
            if (first <= i && i < end) narrow(x[j], theta[i - first]);
        }
    }
}

}  // namespace
}  // namespace zokern
