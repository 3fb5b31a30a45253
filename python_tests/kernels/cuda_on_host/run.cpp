// The CUDA kernels as C functions: every thread of every block, one after the other.
#include "emulation.hpp"

#include "../../../csrc/cuda/add_noise_kernel.hpp"
#include "../../../csrc/cuda/replay_kernel.hpp"
#include "../../../csrc/cuda/update_kernel.hpp"

#include <algorithm>

using namespace zokern;

namespace {

template <class P>
void blocks(void (*kernel)(P), const P& pass) {
    for (blockIdx.x = 0; blockIdx.x < pass.n_spans; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < kThreads; ++threadIdx.x) kernel(pass);
}

template <class P, class KernelOf>
void launch(const P& pass, int storage, const KernelOf& kernel_of) {
    blocks(storage == 0 ? kernel_of(float()) : storage == 1 ? kernel_of(__nv_bfloat16()) : kernel_of(__half()), pass);
}

Numbers numbers(const float* there, const float* here) {
    Numbers all{there, {}};
    std::copy_n(here, kCarried, all.here);
    return all;
}

}  // namespace

#define COMMON \
    int storage, const Span *spans, uint32_t n_spans, bool masked, bool pitched, bool signs, const Key *carried, uint32_t n_keys, \
        const Key *keys, uint32_t groups, const uint32_t *clock

#define PASS \
    Pass common{spans, n_spans, groups, masked, pitched, signs, clock, n_keys, keys, {}}; \
    std::copy_n(carried, kCarried, common.carried)

extern "C" void add_noise(COMMON, int stored, const float* c, const float* few_c, bool decays, const float* decay, const float* few_decays,
                          bool at_random, const Key* rounding) {
    PASS;
    AddNoise p{common, {}, numbers(c, few_c), decays, at_random, numbers(decay, few_decays), {}};
    for (int k = 0; k < kUnrolled; ++k) p.first_keys.set(k, carried[k]);
    p.rounding.set(0, *rounding);
    launch(p, storage, [&](auto element) { return kernel_of<decltype(element)>(p, static_cast<Storage>(stored)); });
}

extern "C" void replay(COMMON, const uint8_t* instructions, uint32_t n_instructions, const float* values) {
    PASS;
    const Replay p{common, instructions, values, n_instructions};
    launch(p, storage, [&](auto element) { return kernel_of<decltype(element)>(p); });
}

extern "C" void update(COMMON, int rule, int state, const int64_t* states, const float* a, const float* few_a, const float* b,
                       const float* few_b, bool decays, const float* decay, const float* few_decays, const float* n, const float* few_n,
                       const Key* rounding) {
    PASS;
    Update p{common, {}, states, numbers(a, few_a), numbers(b, few_b), decays, numbers(decay, few_decays), numbers(n, few_n), {}};
    p.only_key.set(0, *carried);
    for (int slot = 0; slot < kSlots; ++slot) p.rounding.set(slot, rounding[slot]);
    launch(p, storage, [&](auto element) { return kernel_of<decltype(element)>(p, static_cast<Rule>(rule), static_cast<Storage>(state)); });
}
