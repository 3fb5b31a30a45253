// What one element does with its g, in float32, each line rounded as it is written. n: the rule's numbers, s: its states.
// zokern/ops/moments.py says what they are, docs/noise_spec.md how they are computed.
#pragma once

namespace zokern {
namespace {

struct Sign {
    static constexpr int numbers = 1, slots = 0;
    __device__ static __forceinline__ void step(float& x, float g, float*, const float* n) {
        x = g > 0 ? x + n[0] : g < 0 ? x - n[0] : x;
    }
};

struct Momentum {
    static constexpr int numbers = 2, slots = 1;
    __device__ static __forceinline__ void step(float& x, float g, float* s, const float* n) {
        s[0] = __fmaf_rn(n[1], s[0], g);
        x = __fmaf_rn(n[0], s[0], x);
    }
};

template <bool kMax>
struct AdamLike {
    static constexpr int numbers = 7, slots = kMax ? 3 : 2;
    __device__ static __forceinline__ void step(float& x, float g, float* s, const float* n) {
        s[0] = __fmaf_rn(n[1], s[0], n[2] * g);
        s[1] = __fmaf_rn(n[3], s[1], n[4] * g * g);
        if (kMax) s[2] = s[1] > s[2] ? s[1] : s[2];
        const float root = __fsqrt_rn(s[kMax ? 2 : 1]);
        x = __fmaf_rn(n[0], __fdiv_rn(s[0], __fmaf_rn(root, n[5], n[6])), x);
    }
};
using Adam = AdamLike<false>;
using Amsgrad = AdamLike<true>;

}  // namespace
}  // namespace zokern
