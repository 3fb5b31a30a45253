// The CPU backend for AVX2 with FMA and F16C: eight floats, or four counters, in a register. registers.hpp makes several of it.
// Nothing of the standard library's templates may be instantiated below the pragma.
#if defined(__x86_64__)
#include <cstring>
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "backend.hpp"

namespace zokern {
namespace {

constexpr int kRegisters = 4;  // Sapphire Rapids, data in L2, fp32: 4.0, 3.5, 3.3 cycles an element with 2, 3, 4
constexpr int kLanes = 8;

using Integers = __m256i;
using Floats = __m256;

ZK_HD Integers all(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
ZK_HD Integers all64(uint64_t x) { return _mm256_set1_epi64x(static_cast<int64_t>(x)); }
ZK_HD Floats all_floats(float x) { return _mm256_set1_ps(x); }
ZK_HD Floats as_floats(const Integers& x) { return _mm256_castsi256_ps(x); }
ZK_HD Integers as_integers(const Floats& x) { return _mm256_castps_si256(x); }
ZK_HD Floats to_floats(const Integers& x) { return _mm256_cvtepi32_ps(x); }
ZK_HD Integers to_integers(const Floats& x) { return _mm256_cvttps_epi32(x); }  // towards 0
ZK_HD Integers numbers() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }

ZK_HD Integers mul(const Integers& a, const Integers& b) { return _mm256_mul_epu32(a, b); }
ZK_HD Integers first_product(const Integers& counters) { return mul(counters, all(kMultiplier0)); }
ZK_HD Integers high(const Integers& x, int) { return _mm256_srli_epi64(x, 32); }
ZK_HD Integers xor3(const Integers& a, const Integers& b, const Integers& c) { return a ^ c ^ b; }
ZK_HD Integers pack(const Integers& even, const Integers& odd) { return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA); }
ZK_HD Integers pack_high(const Integers& even, const Integers& odd) { return _mm256_blend_epi32(high(even, 0), odd, 0xAA); }
template <bool in_a_row>
ZK_HD Integers counters() {
    return in_a_row ? _mm256_setr_epi64x(0, 1, 2, 3) : _mm256_setr_epi64x(0, 2, 1, 3);
}
ZK_HD Floats unpack_low(const Floats& a, const Floats& b) { return _mm256_unpacklo_ps(a, b); }
ZK_HD Floats unpack_high(const Floats& a, const Floats& b) { return _mm256_unpackhi_ps(a, b); }
ZK_HD Integers unpack_low(const Integers& a, const Integers& b) { return _mm256_unpacklo_epi32(a, b); }
ZK_HD Integers unpack_high(const Integers& a, const Integers& b) { return _mm256_unpackhi_epi32(a, b); }
ZK_HD Floats even_lanes(const Floats& a, const Floats& b) { return _mm256_shuffle_ps(a, b, 0x88); }
ZK_HD Floats odd_lanes(const Floats& a, const Floats& b) { return _mm256_shuffle_ps(a, b, 0xDD); }

ZK_HD Integers add(const Integers& a, const Integers& b) { return _mm256_add_epi32(a, b); }
ZK_HD Integers min(const Integers& a, const Integers& b) { return _mm256_min_epu32(a, b); }
ZK_HD Integers add64(const Integers& a, const Integers& b) { return _mm256_add_epi64(a, b); }
ZK_HD Integers shift_left(const Integers& a, int n) { return _mm256_slli_epi32(a, n); }
ZK_HD Integers shift_left(const Integers& a, const Integers& n) { return _mm256_sllv_epi32(a, n); }
ZK_HD Integers shift_right(const Integers& a, int n) { return _mm256_srli_epi32(a, n); }
ZK_HD Integers rsqrt_guess(const Integers& y, const Integers& sign) {
    return _mm256_sub_epi32(all(0x5F200000), shift_right(y, 1)) ^ shift_left(sign, 31);
}
ZK_HD Integers and_or(const Integers& a, const Integers& b, const Integers& c) { return (a & b) | c; }

ZK_HD Floats sqrt(const Floats& a) { return _mm256_sqrt_ps(a); }
ZK_HD Floats fma(const Floats& a, const Floats& b, const Floats& c) { return _mm256_fmadd_ps(a, b, c); }
ZK_HD Floats where_greater(const Floats& a, const Floats& b, const Floats& yes, const Floats& no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
ZK_HD Floats kept(const Floats& z, const Integers& word, const Integers& keep_threshold) {
    return _mm256_and_ps(z, as_floats(_mm256_cmpeq_epi32(_mm256_min_epu32(word, keep_threshold), word)));
}

// To the upper half of each lane, the lower being anything. Nearest even, in integers.
ZK_HD Integers nearest_bfloat16(const Integers& u) { return add(add(u, all(0x7FFF)), shift_right(u, 16) & all(1)); }
/// `bits`, but of an x that is a NaN its own, and such that it stays one without its lower half.
ZK_HD Integers or_quiet_nan(const Floats& x, const Integers& bits) {
    return _mm256_blendv_epi8(bits, as_integers(x) | all(0x00400000), as_integers(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
ZK_HD Integers upper_halves(const Integers& even, const Integers& odd) { return _mm256_blend_epi16(shift_right(even, 16), odd, 0xAA); }

ZK_HD Integers load_integers(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
ZK_HD void store(void* p, const Integers& x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
ZK_HD Integers load(const uint16_t* p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
ZK_HD Integers broadcast(const void* p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return all(word);
}
/// The lower halves, where the upper ones are 0.
ZK_HD void store_halves(uint16_t* p, const Integers& x) {
    const __m128i both = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), both);
}
ZK_HD Floats load(const float* p) { return _mm256_loadu_ps(p); }
ZK_HD void store(float* p, const Floats& x) { _mm256_storeu_ps(p, x); }
ZK_HD Floats widen(const __m128i& x) { return _mm256_cvtph_ps(x); }
ZK_HD __m128i narrow(const Floats& x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
ZK_HD Integers float16_bits(const Floats& x) { return _mm256_cvtepu16_epi32(narrow(x)); }
ZK_HD Floats load(const float16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
ZK_HD void store(float16* p, const Floats& x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(x)); }

}  // namespace
}  // namespace zokern

#include "registers.hpp"
#include "kernels.hpp"

namespace zokern {
constexpr Isa avx2 = isa("avx2");
}  // namespace zokern

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
