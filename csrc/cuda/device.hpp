// Launches on a device that need not be the current one, for each storage type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../noise/passes.hpp"

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

/// body(an element of the storage type)
template <class Body>
void with_storage(Storage storage, const Body& body) {
    switch (storage) {
        case Storage::float32: return body(float());
        case Storage::bfloat16: return body(__nv_bfloat16());
        case Storage::float16: return body(__half());
    }
}

}  // namespace zokern
