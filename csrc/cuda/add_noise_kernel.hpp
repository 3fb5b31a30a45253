// The kernel: out <- decay * theta + sum_k c_k z'(key_k) over the span of one thread block. Numbers: docs/noise_spec.md.
#pragma once

#include "elements.hpp"

namespace zokern {
inline namespace cuda {

/// T, O: the storage types of theta and of out. kTerms = 0: any number of them. kGeneral: masks, lines and stochastic rounding, where the
/// pass asks for them. Those of many terms of signs may have 128 registers, or ptxas spills one.
template <class T, class O, bool kSigns, int kTerms, bool kDecay, bool kGeneral>
__global__ void __launch_bounds__(kThreads, kSigns && !kTerms ? 4 : 0) add_noise_kernel(const __grid_constant__ AddNoise p) {
    constexpr int n = kVector<T> > kVector<O> ? kVector<T> : kVector<O>;
    constexpr int kTogether = !kSigns && kTerms ? 1 : kTile / (kThreads * n);  // rows: the fewer, the more registers are free
    const Span span = p.spans[blockIdx.x];
    const uint32_t group = span.group, keep_threshold = span.keep_threshold, now = p.clock ? *p.clock : 0, one = p.one;
    const float decay = kDecay && p.decays ? p.decay[group] : 1.0f;
    float c[kTerms + 1];  // read here, since the compiler cannot know that theta lies elsewhere
#pragma unroll
    for (int k = 0; k < kTerms; ++k) c[k] = p.coefficients[k * p.groups + group];

    const auto on_under = [&](uint32_t high) {
        Schedule own[kTerms + 1];
#pragma unroll
        for (int k = 0; k < kTerms; ++k) own[k] = p.first_keys.schedule(k, now, high_of<kSigns>(high));
        return [&, own](auto& x, const auto& place) {
            constexpr int rows = sizeof x / sizeof x[0], n = sizeof x[0] / sizeof(float);
            if (kDecay) {
#pragma unroll
                for (int v = 0; v < rows; ++v)
#pragma unroll
                    for (int i = 0; i < n; ++i) x[v][i] *= decay;
            }
#pragma unroll(kTerms ? kTerms : 1)
            for (uint32_t k = 0; k < (kTerms ? kTerms : p.n_keys); ++k) {
                const float weight = kTerms ? c[k] : p.coefficients[k * p.groups + group];
                const Schedule s = kTerms ? own[k] : p.schedule(k, now, high_of<kSigns>(place.high));
                const auto mask = [&] { return mask_of(kSigns ? p.schedule(k, now, place.high) : s); };
                each_z<kSigns, kGeneral, rows, n>(place.q, place.high, s, mask, keep_threshold, one,
                                                  [&](int v, int i, float z) { x[v][i] = __fmaf_rn(weight, z, x[v][i]); });
            }
        };
    };
    if constexpr (kGeneral) {
        const auto bits_of = [&](uint32_t high) { return p.rounding.schedule(0, now, high); };
        over_span<T, O, kSigns, true, n, kTogether>(span, true, on_under, AtRandom<decltype(bits_of)>{p.at_random, bits_of});
    } else {
        over_span<T, O, kSigns, false, n, kTogether>(span, true, on_under, Nearest());
    }
}

template <class T, class O, bool kSigns>
auto kernel_of(const AddNoise& pass) {
    if (pass.masked || pass.pitched || pass.at_random)
        return pass.n_keys == 1 ? add_noise_kernel<T, O, kSigns, 1, true, true> : add_noise_kernel<T, O, kSigns, 0, true, true>;
    if (pass.n_keys == 1)
        return pass.decays ? add_noise_kernel<T, O, kSigns, 1, true, false> : add_noise_kernel<T, O, kSigns, 1, false, false>;
    if constexpr (!kSigns)
        if (pass.n_keys == 2 && !pass.decays) return add_noise_kernel<T, O, kSigns, 2, false, false>;
    return add_noise_kernel<T, O, kSigns, 0, true, false>;
}

template <class T, class O>
auto kernel_of(const AddNoise& pass) {
    return pass.signs ? kernel_of<T, O, true>(pass) : kernel_of<T, O, false>(pass);
}

/// The common passes, of one or two terms, have kernels of their own. Rarer ones share one, to save kernels.
template <class T>
auto kernel_of(const AddNoise& pass, Storage stored) {
    if constexpr (kVector<T> == 4) {
        if (stored == Storage::bfloat16) return kernel_of<T, __nv_bfloat16>(pass);
        if (stored == Storage::float16) return kernel_of<T, __half>(pass);
    }
    return kernel_of<T, T>(pass);
}

}  // namespace cuda
}  // namespace zokern
