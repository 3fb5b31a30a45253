// The CPU backend for AVX-512. Nothing of the standard library's templates may be instantiated below the pragma.
#if defined(__x86_64__)
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#include "lanes_avx512.hpp"
#include "kernels.hpp"

namespace zokern {
const Isa& avx512() {
    static constexpr Isa isa{"avx512", kernels<float>(), kernels<bfloat16>(), kernels<float16>()};
    return isa;
}
}  // namespace zokern

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
