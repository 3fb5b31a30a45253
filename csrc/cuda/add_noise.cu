// One launch for many tensors.
#include "add_noise_kernel.hpp"
#include "device.hpp"

namespace zokern {
namespace {

/// The kernel of a masked table always multiplies by decay: beside the mask that costs little, and it saves a third of the kernels.
template <class T, int kTerms>
void launch(const Launch& p, bool masked, uint32_t n_spans, cudaStream_t stream) {
    if (masked)
        add_noise_kernel<T, kTerms, true, true><<<n_spans, kThreads, 0, stream>>>(p);
    else if (p.decay)
        add_noise_kernel<T, kTerms, true, false><<<n_spans, kThreads, 0, stream>>>(p);
    else
        add_noise_kernel<T, kTerms, false, false><<<n_spans, kThreads, 0, stream>>>(p);
}

template <class T>
void launch(const AddNoise& pass, cudaStream_t stream) {
    const Launch p = launch_of(pass);
    switch (p.n_terms) {
        case 1: return launch<T, 1>(p, pass.masked, pass.n_spans, stream);
        case 2: return launch<T, 2>(p, pass.masked, pass.n_spans, stream);
        default: return launch<T, 0>(p, pass.masked, pass.n_spans, stream);
    }
}

}  // namespace

const char* add_noise(const AddNoise& pass, Storage storage, int device, void* stream) {
    return on_device(device, [&] {
        with_storage(storage, [&](auto element) { launch<decltype(element)>(pass, static_cast<cudaStream_t>(stream)); });
    });
}

}  // namespace zokern
