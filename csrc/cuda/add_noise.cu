// One launch for many tensors.
#include <cuda_runtime.h>

#include "kernel.hpp"

namespace zokern {
namespace {

template <class T, int kTerms>
void launch(const Launch& p, uint32_t n_spans, cudaStream_t stream) {
    if (p.decay)
        add_noise_kernel<T, kTerms, true><<<n_spans, kThreads, 0, stream>>>(p);
    else
        add_noise_kernel<T, kTerms, false><<<n_spans, kThreads, 0, stream>>>(p);
}

template <class T>
void launch(const Launch& p, uint32_t n_spans, cudaStream_t stream) {
    switch (p.n_terms) {
        case 1: return launch<T, 1>(p, n_spans, stream);
        case 2: return launch<T, 2>(p, n_spans, stream);
        default: return launch<T, 0>(p, n_spans, stream);
    }
}

}  // namespace

const char* add_noise(const Pass& pass, Storage storage, int device, void* stream) {
    int before = 0;
    cudaError_t error = cudaGetDevice(&before);
    if (error == cudaSuccess && before != device) error = cudaSetDevice(device);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    const Launch p = launch_of(pass);
    switch (storage) {
        case Storage::float32: launch<float>(p, pass.n_spans, static_cast<cudaStream_t>(stream)); break;
        case Storage::bfloat16: launch<__nv_bfloat16>(p, pass.n_spans, static_cast<cudaStream_t>(stream)); break;
        case Storage::float16: launch<__half>(p, pass.n_spans, static_cast<cudaStream_t>(stream)); break;
    }
    error = cudaGetLastError();
    if (before != device) cudaSetDevice(before);
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace zokern
