// The CUDA kernels as C functions: every thread of every block, one after the other.
#include "emulation.hpp"

#include "../../../csrc/cuda/add_noise_kernel.hpp"
#include "../../../csrc/cuda/replay_kernel.hpp"
#include "../../../csrc/cuda/update_kernel.hpp"

namespace zokern {
template <class Launch>
void blocks(void (*kernel)(Launch), const Launch& p, uint32_t n_spans) {
    for (blockIdx.x = 0; blockIdx.x < n_spans; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < kThreads; ++threadIdx.x) kernel(p);
}

template <class T, int kTerms>
void run(const Launch& p, bool masked, uint32_t n_spans) {
    blocks(masked    ? add_noise_kernel<T, kTerms, true, true>
           : p.decay ? add_noise_kernel<T, kTerms, true, false>
                     : add_noise_kernel<T, kTerms, false, false>,
           p, n_spans);
}

template <class T>
void run(const Launch& p, bool masked, uint32_t n_spans) {
    p.n_terms == 1 ? run<T, 1>(p, masked, n_spans) : p.n_terms == 2 ? run<T, 2>(p, masked, n_spans) : run<T, 0>(p, masked, n_spans);
}

template <class T>
void run(const Replay& p) {
    blocks(p.masked ? replay_kernel<T, true> : replay_kernel<T, false>, p, p.n_spans);
}

template <class T, class S, class R>
void run(const UpdateLaunch& p, bool masked, uint32_t n_spans) {
    blocks(p.n_keys == 1 && !masked ? update_kernel<T, S, R, true> : update_kernel<T, S, R, false>, p, n_spans);
}

template <class T, class R>
void run(const UpdateLaunch& p, Storage state, bool masked, uint32_t n_spans) {
    state == Storage::float32 ? run<T, float, R>(p, masked, n_spans) : run<T, __nv_bfloat16, R>(p, masked, n_spans);
}

template <class T>
void run(const UpdateLaunch& p, Rule rule, Storage state, bool masked, uint32_t n_spans) {
    switch (rule) {
        case Rule::sign: return run<T, float, Sign>(p, masked, n_spans);
        case Rule::momentum: return run<T, Momentum>(p, state, masked, n_spans);
        case Rule::adam: return run<T, Adam>(p, state, masked, n_spans);
        case Rule::amsgrad: return run<T, Amsgrad>(p, state, masked, n_spans);
    }
}
}  // namespace zokern

using namespace zokern;

extern "C" void add_noise(int storage, const Span* spans, uint32_t n_spans, bool masked, const Key* first_keys, uint32_t n_terms,
                          const Key* keys, const float* coefficients, uint32_t groups, const float* decay, const uint32_t* clock) {
    const Pass pass{spans, n_spans, groups, masked, clock, keys};
    const Launch p = launch_of(AddNoise{pass, n_terms, coefficients, decay, {first_keys[0], first_keys[1]}});
    storage == 0 ? run<float>(p, masked, n_spans) : storage == 1 ? run<__nv_bfloat16>(p, masked, n_spans) : run<__half>(p, masked, n_spans);
}

extern "C" void replay(int storage, const Span* spans, uint32_t n_spans, bool masked, const Key* keys, const uint8_t* instructions,
                       uint32_t n_instructions, const float* values, uint32_t groups, const uint32_t* clock) {
    const Replay p{{spans, n_spans, groups, masked, clock, keys}, instructions, values, n_instructions};
    storage == 0 ? run<float>(p) : storage == 1 ? run<__nv_bfloat16>(p) : run<__half>(p);
}

extern "C" void update(int rule, int storage, int state, const Span* spans, uint32_t n_spans, bool masked, const int64_t* states,
                       const Key* carried, uint32_t n_keys, const Key* keys, const float* a, const float* b, uint32_t groups,
                       const float* decay, const float* numbers, const Key* rounding, const uint32_t* clock) {
    Update pass{{spans, n_spans, groups, masked, clock, keys}, states, n_keys, a, b, decay, numbers, {}, {}};
    for (uint32_t k = 0; k < kCarried; ++k) pass.carried[k] = k < n_keys ? carried[k] : Key{};
    for (int slot = 0; slot < kSlots; ++slot) pass.rounding[slot] = rounding[slot];
    const UpdateLaunch p = launch_of(pass);
    const auto kind = static_cast<Rule>(rule);
    const auto slot = static_cast<Storage>(state);
    storage == 0   ? run<float>(p, kind, slot, masked, n_spans)
    : storage == 1 ? run<__nv_bfloat16>(p, kind, slot, masked, n_spans)
                   : run<__half>(p, kind, slot, masked, n_spans);
}
