// The noise of Philox blocks in one CUDA thread.
#pragma once

#include "passes.hpp"

#include "lane.hpp"

#include "../noise/normal.hpp"

namespace zokern {
inline namespace cuda {

constexpr int kThreads = 128;

/// The schedule of a key's mask. Only the stream differs: the purpose is 2, the probe the same.
__device__ __forceinline__ Schedule mask_of(Schedule s) {
    const uint32_t stream = s.round0_word2 ^ s.key1[0];
    s.round0_word2 = (2u << 24 | (stream & 0xFFFFFFu)) ^ s.key1[0];
    return s;
}

__device__ __forceinline__ Words<Word> words(uint32_t counter, const Schedule& s) {
    return philox(opening<Word>(mul(kMultiplier0, Word{counter}), s.round0_word2), s);
}

/// +0 where the mask's word is above `keep_threshold`.
__device__ __forceinline__ void drop(float (&z)[4], uint32_t q, const Schedule& mask, uint32_t keep_threshold) {
    const Words<Word> w = words(q, mask);
    z[0] = w.w0.r <= keep_threshold ? z[0] : 0;
    z[1] = w.w1.r <= keep_threshold ? z[1] : 0;
    z[2] = w.w2.r <= keep_threshold ? z[2] : 0;
    z[3] = w.w3.r <= keep_threshold ? z[3] : 0;
}

/// A thread holds n elements in a row, or `rows` times so many; from one row to the next are kNear threads' rows. Of signs four threads
/// share the 128 elements of one Philox block, so that none makes two.
template <bool kSigns> constexpr int kNear = kSigns ? 4 : kThreads;

/// What a key's noise is made of: one Philox block for 4 normals, or for 128 signs.
template <bool kSigns> __device__ __forceinline__ uint32_t high_of(uint32_t high) { return kSigns ? high >> 5 : high; }

/// each(row, i, z) for every element that a thread holds. The first has index (high << 32 | q) << 2; s is the schedule of the key under
/// high_of(high).
template <bool kSigns, int rows, int n, class Each>
__device__ __forceinline__ void each_z(uint32_t q, uint32_t high, const Schedule& s, uint32_t one, const Each& each) {
    if constexpr (kSigns) {
        const Words<Word> w = words(__funnelshift_r(q, high, 5), s);
        const uint32_t lower = rows == 1 && q & 8 ? w.w1.r : w.w0.r, upper = q & 8 ? w.w3.r : w.w2.r;
        const uint32_t word[] = {rows == 1 && q & 16 ? upper : lower, w.w1.r, w.w2.r, w.w3.r};  // several rows begin in word 0
#pragma unroll
        for (int v = 0; v < rows; ++v) {
            const uint32_t bits = word[v * kNear<true> * n / 32] >> 4 * (q & 7);
#pragma unroll
            for (int i = 0; i < n; ++i)
                each(v, i, __uint_as_float((bits << 31 - (v * kNear<true> * n % 32 + i) & 0x80000000u) | one));
        }
    } else {
#pragma unroll
        for (int v = 0; v < rows; ++v)
#pragma unroll
            for (int i = 0; i < n; i += 4) {
                const Words<Word> w = words(q + (v * kNear<false> * n + i) / 4, s);
                const Normals<Float> lower = box_muller<Float>(Bits{w.w0.r}, Bits{w.w1.r}, one);
                const Normals<Float> upper = box_muller<Float>(Bits{w.w2.r}, Bits{w.w3.r}, one);
                each(v, i, lower.even.r), each(v, i + 1, lower.odd.r), each(v, i + 2, upper.even.r), each(v, i + 3, upper.odd.r);
            }
    }
}

/// The same, masked where kMask and the span ask for it. mask_of_key(): the schedule of the key's mask.
template <bool kSigns, bool kMask, int rows, int n, class MaskOfKey, class Each>
__device__ __forceinline__ void each_z(uint32_t q, uint32_t high, const Schedule& s, const MaskOfKey& mask_of_key, uint32_t keep_threshold,
                                       uint32_t one, const Each& each) {
    if (!kMask || keep_threshold == kKeepAll) return each_z<kSigns, rows, n>(q, high, s, one, each);
    const Schedule mask = mask_of_key();
#pragma unroll
    for (int v = 0; v < rows; ++v)
#pragma unroll
        for (int i = 0; i < n; i += 4) {
            const uint32_t here = q + (v * kNear<kSigns> * n + i) / 4;
            float z[4];
            each_z<kSigns, 1, 4>(here, high, s, one, [&](int, int j, float value) { z[j] = value; });
            drop(z, here, mask, keep_threshold);
#pragma unroll
            for (int j = 0; j < 4; ++j) each(v, i + j, z[j]);
        }
}

}  // namespace cuda
}  // namespace zokern
