// As much of CUDA as the kernels of csrc/cuda use, in plain C++: its threads share nothing and never wait for each other, so that
// running them one after the other does what a GPU does. The conversions are written from the IEEE formats, not from CUDA.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(16) uint4 { uint32_t x, y, z, w; };  // as in CUDA: an access elsewhere crashes
struct float2 { float x, y; };
struct Index { unsigned x; };
inline thread_local Index blockIdx, threadIdx;

template <class To, class From>
To bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}

inline float __uint_as_float(uint32_t x) { return bits<float>(x); }
inline uint32_t __float_as_uint(float x) { return bits<uint32_t>(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t n) {
    return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> n);
}
inline void* __cvta_global_to_generic(uintptr_t address) { return reinterpret_cast<void*>(address); }

struct __nv_bfloat16 { uint16_t x; };
struct __nv_bfloat162 { __nv_bfloat16 x, y; };
inline float __bfloat162float(__nv_bfloat16 x) { return bits<float>(uint32_t{x.x} << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    const uint32_t u = bits<uint32_t>(x);
    return {static_cast<uint16_t>((x != x ? u | 0x400000 : u + 0x7FFF + (u >> 16 & 1)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }

struct __half { _Float16 x; };
struct __half2 { __half x, y; };
inline float __half2float(__half x) { return x.x; }
inline float2 __half22float2(__half2 x) { return {__half2float(x.x), __half2float(x.y)}; }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
