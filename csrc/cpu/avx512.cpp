// The CPU backend for AVX-512 (F, BW, DQ, VL): sixteen floats, or eight counters, in a register. registers.hpp makes several of it.
// Nothing of the standard library's templates may be instantiated below the pragma.
#if defined(__x86_64__)
#include <cstring>
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#include "backend.hpp"

namespace zokern {
namespace {

constexpr int kRegisters = 4;  // Sapphire Rapids, passes of replay_ in fp32: 1.90, 1.86, 2.01 cycles an element with 4, 6, 8
constexpr int kLanes = 16;

using Integers = __m512i;
using Floats = __m512;

ZK_HD Integers all(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
ZK_HD Integers all64(uint64_t x) { return _mm512_set1_epi64(static_cast<int64_t>(x)); }
ZK_HD Floats all_floats(float x) { return _mm512_set1_ps(x); }
ZK_HD Floats as_floats(const Integers& x) { return _mm512_castsi512_ps(x); }
ZK_HD Integers as_integers(const Floats& x) { return _mm512_castps_si512(x); }
ZK_HD Floats to_floats(const Integers& x) { return _mm512_cvtepi32_ps(x); }
ZK_HD Integers to_integers(const Floats& x) { return _mm512_cvttps_epi32(x); }  // towards 0
ZK_HD Integers numbers() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

ZK_HD Integers mul(const Integers& a, const Integers& b) { return _mm512_mul_epu32(a, b); }
ZK_HD Integers first_product(const Integers& counters) { return _mm512_mullo_epi64(counters, all64(kMultiplier0)); }
ZK_HD Integers high(const Integers& x, int i) {  // a shift takes port 0, a shuffle port 5: half of each
    return i % 2 ? _mm512_srli_epi64(x, 32) : as_integers(_mm512_movehdup_ps(as_floats(x)));
}
ZK_HD Integers xor3(const Integers& a, const Integers& b, const Integers& c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
ZK_HD Integers pack(const Integers& even, const Integers& odd) {
    return as_integers(_mm512_mask_moveldup_ps(as_floats(even), 0xAAAA, as_floats(odd)));
}
ZK_HD Integers pack_high(const Integers& even, const Integers& odd) {
    return as_integers(_mm512_mask_movehdup_ps(as_floats(odd), 0x5555, as_floats(even)));
}
template <bool in_a_row>
ZK_HD Integers counters() {
    return in_a_row ? _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7) : _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
}
ZK_HD Floats unpack_low(const Floats& a, const Floats& b) { return _mm512_unpacklo_ps(a, b); }
ZK_HD Floats unpack_high(const Floats& a, const Floats& b) { return _mm512_unpackhi_ps(a, b); }
ZK_HD Integers unpack_low(const Integers& a, const Integers& b) { return _mm512_unpacklo_epi32(a, b); }
ZK_HD Integers unpack_high(const Integers& a, const Integers& b) { return _mm512_unpackhi_epi32(a, b); }
ZK_HD Floats even_lanes(const Floats& a, const Floats& b) { return _mm512_shuffle_ps(a, b, 0x88); }
ZK_HD Floats odd_lanes(const Floats& a, const Floats& b) { return _mm512_shuffle_ps(a, b, 0xDD); }

ZK_HD Integers add(const Integers& a, const Integers& b) { return _mm512_add_epi32(a, b); }
ZK_HD Integers min(const Integers& a, const Integers& b) { return _mm512_min_epu32(a, b); }
ZK_HD Integers add64(const Integers& a, const Integers& b) { return _mm512_add_epi64(a, b); }
ZK_HD Integers shift_left(const Integers& a, int n) { return _mm512_slli_epi32(a, n); }
ZK_HD Integers shift_left(const Integers& a, const Integers& n) { return _mm512_sllv_epi32(a, n); }
ZK_HD Integers shift_right(const Integers& a, int n) { return _mm512_srli_epi32(a, n); }
ZK_HD Integers rsqrt_guess(const Integers& y, const Integers& sign) {
    const auto h = _mm512_ternarylogic_epi32(y, sign, all(1), 0xD8);  // y, its lowest bit the sign's: b & c | a & ~c
    return _mm512_sub_epi32(all(0x5F200000), _mm512_ror_epi32(h, 1));
}
ZK_HD Integers and_or(const Integers& a, const Integers& b, const Integers& c) { return _mm512_ternarylogic_epi32(a, b, c, 0xEA); }

ZK_HD Floats sqrt(const Floats& a) { return _mm512_sqrt_ps(a); }
ZK_HD Floats fma(const Floats& a, const Floats& b, const Floats& c) { return _mm512_fmadd_ps(a, b, c); }
ZK_HD Floats where_greater(const Floats& a, const Floats& b, const Floats& yes, const Floats& no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes);
}
ZK_HD Floats kept(const Floats& z, const Integers& word, const Integers& keep_threshold) {
    return _mm512_maskz_mov_ps(_mm512_cmple_epu32_mask(word, keep_threshold), z);
}

// To the upper half of each lane, the lower being anything. In integers: vcvtneps2bf16 flushes denormals.
ZK_HD Integers nearest_bfloat16(const Integers& u) {
    const Integers up = add(u, all(0x7FFF));
    return _mm512_mask_add_epi32(up, _mm512_test_epi32_mask(u, all(0x10000)), up, all(1));
}
/// `bits`, but of an x that is a NaN its own, made quiet.
ZK_HD Integers or_quiet_nan(const Floats& x, const Integers& bits) {
    constexpr int quiet = 2;  // for a signalling NaN too: the classes of the lowest two hexadecimal digits
    return as_integers(_mm512_fixupimm_ps(as_floats(bits), x, all(quiet << 4 | quiet), 0));
}
ZK_HD Integers upper_halves(const Integers& even, const Integers& odd) {
    return and_or(odd, all(0xFFFF0000), shift_right(even, 16));
}

ZK_HD Integers load_integers(const void* p) { return _mm512_loadu_si512(p); }
ZK_HD void store(void* p, const Integers& x) { _mm512_storeu_si512(p, x); }
ZK_HD Integers load(const uint16_t* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
ZK_HD Integers broadcast(const void* p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return all(word);
}
/// The lower halves.
ZK_HD void store_halves(uint16_t* p, const Integers& x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x));
}
ZK_HD Floats load(const float* p) { return _mm512_loadu_ps(p); }
ZK_HD void store(float* p, const Floats& x) { _mm512_storeu_ps(p, x); }
ZK_HD Floats widen(const __m256i& x) { return _mm512_cvtph_ps(x); }
ZK_HD __m256i narrow(const Floats& x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
ZK_HD Integers float16_bits(const Floats& x) { return _mm512_cvtepu16_epi32(narrow(x)); }
ZK_HD Floats load(const float16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
ZK_HD void store(float16* p, const Floats& x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x)); }

}  // namespace
}  // namespace zokern

#include "registers.hpp"
#include "kernels.hpp"

namespace zokern {
constexpr Isa avx512 = isa("avx512");
}  // namespace zokern

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
