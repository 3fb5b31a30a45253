// Sixteen bytes of theta or of a state and their floats; one element and its float. Rounds to nearest even.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace zokern {
namespace {

template <class T> constexpr int kVector = 16 / sizeof(T);

__device__ __forceinline__ void unpack(const uint4& raw, float (&x)[4], float) {
    x[0] = __uint_as_float(raw.x), x[1] = __uint_as_float(raw.y), x[2] = __uint_as_float(raw.z), x[3] = __uint_as_float(raw.w);
}
__device__ __forceinline__ uint4 pack(const float (&x)[4], float) {
    return {__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])};
}
__device__ __forceinline__ void unpack(const uint4& raw, float (&x)[8], __nv_bfloat16) {
    const uint32_t words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) x[2 * i] = __uint_as_float(words[i] << 16), x[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
}
__device__ __forceinline__ void unpack(const uint4& raw, float (&x)[8], __half) {
    const uint32_t words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = __half22float2(reinterpret_cast<const __half2&>(words[i]));
        x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
    }
}
__device__ __forceinline__ uint32_t rounded(float low, float high, __nv_bfloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
}
__device__ __forceinline__ uint32_t rounded(float low, float high, __half) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
}
template <class T>
__device__ __forceinline__ uint4 pack(const float (&x)[8], T) {
    return {rounded(x[0], x[1], T()), rounded(x[2], x[3], T()), rounded(x[4], x[5], T()), rounded(x[6], x[7], T())};
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ void narrow(float x, float& y) { y = x; }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(float x, __half& y) { y = __float2half_rn(x); }

/// To the storage type and back.
__device__ __forceinline__ float rounded(float x, float) { return x; }
__device__ __forceinline__ float rounded(float x, __nv_bfloat16 type) { return __uint_as_float(rounded(0.0f, x, type)); }
__device__ __forceinline__ float rounded(float x, __half type) { return narrow(x, type), widen(type); }

}  // namespace
}  // namespace zokern
