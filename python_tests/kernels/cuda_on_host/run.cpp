// The CUDA kernels as C functions: every thread of every block, one after the other.
#include "emulation.hpp"

#include "../../../csrc/cuda/add_noise_kernel.hpp"
#include "../../../csrc/cuda/replay_kernel.hpp"
#include "../../../csrc/cuda/update_kernel.hpp"

namespace zokern {
template <class Pass>
void blocks(void (*kernel)(Pass), const Pass& p) {
    for (blockIdx.x = 0; blockIdx.x < p.n_spans; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < kThreads; ++threadIdx.x) kernel(p);
}

template <class T, int kTerms>
void run(const AddNoise& p) {
    blocks(p.masked  ? add_noise_kernel<T, kTerms, true, true>
           : p.decay ? add_noise_kernel<T, kTerms, true, false>
                     : add_noise_kernel<T, kTerms, false, false>,
           p);
}

template <class T>
void run(const AddNoise& p) {
    p.n_terms == 1 ? run<T, 1>(p) : p.n_terms == 2 ? run<T, 2>(p) : run<T, 0>(p);
}

template <class T>
void run(const Replay& p) {
    blocks(p.masked ? replay_kernel<T, true> : replay_kernel<T, false>, p);
}

template <class T, class S, class R>
void run(const Update& p) {
    blocks(p.n_keys == 1 && !p.masked ? update_kernel<T, S, R, true> : update_kernel<T, S, R, false>, p);
}

template <class T, class R>
void run(const Update& p, Storage state) {
    state == Storage::float32 ? run<T, float, R>(p) : run<T, __nv_bfloat16, R>(p);
}

template <class T>
void run(const Update& p, Rule rule, Storage state) {
    switch (rule) {
        case Rule::sign: return run<T, float, Sign>(p);
        case Rule::momentum: return run<T, Momentum>(p, state);
        case Rule::adam: return run<T, Adam>(p, state);
        case Rule::amsgrad: return run<T, Amsgrad>(p, state);
    }
}
}  // namespace zokern

using namespace zokern;

extern "C" void add_noise(int storage, const Span* spans, uint32_t n_spans, bool masked, const Key* first_keys, uint32_t n_terms,
                          const Key* keys, const float* coefficients, uint32_t groups, const float* decay, const uint32_t* clock) {
    AddNoise p{{spans, n_spans, groups, masked, clock, keys, decay}, n_terms, coefficients, {}};
    for (int k = 0; k < kUnrolled; ++k) p.first_keys.set(k, first_keys[k]);
    storage == 0 ? run<float>(p) : storage == 1 ? run<__nv_bfloat16>(p) : run<__half>(p);
}

extern "C" void replay(int storage, const Span* spans, uint32_t n_spans, bool masked, const Key* keys, const uint8_t* instructions,
                       uint32_t n_instructions, const float* values, uint32_t groups, const uint32_t* clock) {
    const Replay p{{spans, n_spans, groups, masked, clock, keys, nullptr}, instructions, values, n_instructions};
    storage == 0 ? run<float>(p) : storage == 1 ? run<__nv_bfloat16>(p) : run<__half>(p);
}

extern "C" void update(int rule, int storage, int state, const Span* spans, uint32_t n_spans, bool masked, const int64_t* states,
                       const Key* carried, uint32_t n_keys, const Key* keys, const float* a, const float* b, uint32_t groups,
                       const float* decay, const float* numbers, const Key* rounding, const uint32_t* clock) {
    Update p{{spans, n_spans, groups, masked, clock, keys, decay}, states, n_keys, a, b, numbers, {}, {}, {}};
    for (uint32_t k = 0; k < kCarried; ++k) p.carried[k] = k < n_keys ? carried[k] : Key{};
    p.only_key.set(0, p.carried[0]);
    for (int slot = 0; slot < kSlots; ++slot) p.rounding.set(slot, rounding[slot]);
    const auto kind = static_cast<Rule>(rule);
    const auto slot = static_cast<Storage>(state);
    storage == 0 ? run<float>(p, kind, slot) : storage == 1 ? run<__nv_bfloat16>(p, kind, slot) : run<__half>(p, kind, slot);
}
