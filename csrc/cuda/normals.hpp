// The normals of one Philox block in one CUDA thread.
#pragma once

#include "passes.hpp"

#include "lane.hpp"

#include "../noise/normal.hpp"

namespace zokern {
namespace {

constexpr int kThreads = 128;

/// The schedule of a key's mask. Only the stream differs: the purpose is 2, the probe the same.
__device__ __forceinline__ Schedule mask_of(Schedule s) {
    const uint32_t stream = s.round0_word2 ^ s.key1[0];
    s.round0_word2 = (2u << 24 | (stream & 0xFFFFFFu)) ^ s.key1[0];
    return s;
}

__device__ __forceinline__ Words<Word> words(uint32_t q, const Schedule& s) {
    return philox(opening<Word>(mul(kMultiplier0, Word{q}), s.round0_word2), s);
}

__device__ __forceinline__ void normals(float (&z)[4], uint32_t q, const Schedule& s) {
    const Words<Word> w = words(q, s);
    const Normals<Float> lower = box_muller<Float>(Bits{w.w0.r}, Bits{w.w1.r}), upper = box_muller<Float>(Bits{w.w2.r}, Bits{w.w3.r});
    z[0] = lower.even.r, z[1] = lower.odd.r, z[2] = upper.even.r, z[3] = upper.odd.r;
}

/// +0 where the mask's word is above `keep_threshold`.
__device__ __forceinline__ void drop(float (&z)[4], uint32_t q, const Schedule& mask, uint32_t keep_threshold) {
    const Words<Word> w = words(q, mask);
    z[0] = w.w0.r <= keep_threshold ? z[0] : 0;
    z[1] = w.w1.r <= keep_threshold ? z[1] : 0;
    z[2] = w.w2.r <= keep_threshold ? z[2] : 0;
    z[3] = w.w3.r <= keep_threshold ? z[3] : 0;
}

}  // namespace
}  // namespace zokern
