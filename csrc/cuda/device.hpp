// A launch on a device that need not be the current one, for each storage type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "noise.hpp"

namespace zokern {

/// Launches kernel_of(an element of the storage type) with the pass, with `device` as the current one. -> nullptr or CUDA's message.
template <class Pass, class KernelOf>
const char* launch(const Pass& pass, Storage storage, int device, void* stream, const KernelOf& kernel_of) {
    if (!pass.n_spans) return nullptr;  // tensors without elements
    int before = 0;
    cudaError_t error = cudaGetDevice(&before);
    if (error == cudaSuccess && before != device) error = cudaSetDevice(device);
    if (error != cudaSuccess) return cudaGetLastError(), cudaGetErrorString(error);  // read, or the next launch would report it
    const auto kernel = storage == Storage::float32    ? kernel_of(float())
                        : storage == Storage::bfloat16 ? kernel_of(__nv_bfloat16())
                                                       : kernel_of(__half());
    kernel<<<pass.n_spans, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(pass);
    error = cudaGetLastError();
    if (before != device) cudaSetDevice(before);
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace zokern
