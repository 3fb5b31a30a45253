// How a thread block goes over its span, for passes that read and write theta alone.
#pragma once

#include "normals.hpp"
#include "vector.hpp"

namespace zokern {
namespace {

/// Block j of n elements in a row, of those that a thread holds as x[.][n], when block 0 of its first row is q.
template <int n>
__device__ __forceinline__ uint32_t block_of(uint32_t q, int row, int j) {
    return q + row * kThreads * (n / 4) + j;
}

/// on(x, q, high) for all elements of the span, so many at a time as a thread holds: x[rows][n], theta times decay, to be changed in
/// place. The counters of their Philox blocks are block_of<n>(q, row, j), under the high word high. kDecay = false: decay is 1.
template <class T, bool kDecay, class OnElements>
__device__ __forceinline__ void over_span(const Span& span, float decay, const OnElements& on) {
    constexpr int kVectors = kTile / (kThreads * kVector<T>);  // of a thread in a tile
    constexpr int kBlocks = kVector<T> / 4;                    // Philox blocks in a vector
    T* const theta = static_cast<T*>(__cvta_global_to_generic(span.address));  // or every access would first look where it points
    const uint64_t first = span.first;

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
        on(x, q, high);
#pragma unroll
        for (int v = 0; v < kVectors; ++v) vectors[v * kThreads] = pack(x[v], T());
    }

    // The ragged end, or all of a span that is misaligned or crosses a multiple of 2^34: block by block, element by element.
    const uint64_t end = first + span.numel;
    for (uint64_t block = (first + tiles * kTile >> 2) + threadIdx.x; block << 2 < end; block += kThreads) {
        float x[1][4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint64_t i = (block << 2) + j;
            x[0][j] = first <= i && i < end ? widen(theta[i - first]) * decay : 0;
        }
        on(x, static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint64_t i = (block << 2) + j;
            if (first <= i && i < end) narrow(x[0][j], theta[i - first]);
        }
    }
}

}  // namespace
}  // namespace zokern
