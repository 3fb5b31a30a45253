// Elements of theta or of a state in memory, sixteen bytes at a time or one by one, and their floats.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace zokern {
inline namespace cuda {

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

template <int n, class T>
__device__ __forceinline__ void load(float (&x)[n], const T* at) {
#pragma unroll
    for (int i = 0; i < n / kVector<T>; ++i)
        unpack(reinterpret_cast<const uint4*>(at)[i], reinterpret_cast<float(&)[kVector<T>]>(x[i * kVector<T>]), T());
}
template <int n, class T>
__device__ __forceinline__ void store(const float (&x)[n], T* at) {
#pragma unroll
    for (int i = 0; i < n / kVector<T>; ++i)
        reinterpret_cast<uint4*>(at)[i] = pack(reinterpret_cast<const float(&)[kVector<T>]>(x[i * kVector<T>]), T());
}

/// The bits of x rounded up or down by 16 random bits.
__device__ __forceinline__ uint32_t rounded_at_random(float x, uint32_t r, __nv_bfloat16) {
    const uint32_t u = __float_as_uint(x);
    return (x == x ? u + r : u | 0x00400000u) >> 16;  // a NaN must not lose its last bit; an infinity has none to carry
}
__device__ __forceinline__ uint32_t rounded_at_random(float x, uint32_t r, __half type) {
    narrow(x, type);
    const uint32_t nearest = reinterpret_cast<const uint16_t&>(type), magnitude = __float_as_uint(x) & 0x7FFFFFFFu;
    const uint32_t normal = ((magnitude + (r >> 3)) >> 13) - (112u << 10);  // exponents are off by 112
    const float small = __uint_as_float(magnitude) * 1099511627776.0f;  // 2^40: below 2^-14 float16 counts in steps of 2^-24
    const uint32_t rest = magnitude < 0x38800000u ? (static_cast<uint32_t>(small) + r) >> 16 : normal < 0x7BFFu ? normal : 0x7BFFu;
    return (nearest & 0x7C00u) == 0x7C00u ? nearest : rest | (nearest & 0x8000u);  // infinite where the nearest is
}

/// To the storage type and back.
__device__ __forceinline__ float rounded(float x, float) { return x; }
__device__ __forceinline__ float rounded(float x, __nv_bfloat16 type) { return __uint_as_float(rounded(0.0f, x, type)); }
__device__ __forceinline__ float rounded(float x, __half type) { return narrow(x, type), widen(type); }

}  // namespace cuda
}  // namespace zokern
