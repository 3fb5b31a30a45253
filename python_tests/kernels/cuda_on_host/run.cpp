// The CUDA kernel as a C function: every thread of every block, one after the other.
#include "emulation.hpp"

#include "../../../csrc/cuda/kernel.hpp"

namespace zokern {
template <class T, int kTerms>
void blocks(const Launch& p, uint32_t n_spans) {
    for (blockIdx.x = 0; blockIdx.x < n_spans; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < kThreads; ++threadIdx.x)
            p.decay ? add_noise_kernel<T, kTerms, true>(p) : add_noise_kernel<T, kTerms, false>(p);
}

template <class T>
void terms(const Launch& p, uint32_t n_spans) {
    p.n_terms == 1 ? blocks<T, 1>(p, n_spans) : p.n_terms == 2 ? blocks<T, 2>(p, n_spans) : blocks<T, 0>(p, n_spans);
}
}  // namespace zokern

extern "C" void run(int storage, const zokern::Span* spans, uint32_t n_spans, uint32_t n_terms, const zokern::Key* keys,
                    const float* coefficients, uint32_t groups, const float* decay, const uint32_t* clock) {
    using namespace zokern;
    Launch p = launch_of({spans, n_spans, n_terms, groups, clock, coefficients, decay, keys, {keys[0], keys[n_terms > 1]}});
    storage == 0 ? terms<float>(p, n_spans) : storage == 1 ? terms<__nv_bfloat16>(p, n_spans) : terms<__half>(p, n_spans);
}
