// Launches on a device that need not be the current one.
#pragma once

#include <cuda_runtime.h>

namespace zokern {

/// Calls launch() with `device` as the current one. -> nullptr or CUDA's message.
template <class Launch>
const char* on_device(int device, const Launch& launch) {
    int before = 0;
    cudaError_t error = cudaGetDevice(&before);
    if (error == cudaSuccess && before != device) error = cudaSetDevice(device);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    launch();
    error = cudaGetLastError();
    if (before != device) cudaSetDevice(before);
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace zokern
