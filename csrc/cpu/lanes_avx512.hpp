// AVX-512 (F, BW, DQ, VL): sixteen floats a register, eight counters a register, one in each 64-bit lane so that
// vpmuludq needs no shuffles. The high half of a Word's lanes is anything: vpmuludq does not read it.
#pragma once

#include "backend.hpp"

namespace zokern {
namespace {

constexpr int kRegisters = 6;  // Sapphire Rapids, passes of replay_ in fp32: 1.90, 1.86, 2.01 cycles an element with 4, 6, 8
constexpr int kLanes = 16;

struct Word { __m512i r[kRegisters]; };
using Product = Word;
struct Bits { __m512i r[kRegisters]; };
struct Float { __m512 r[kRegisters]; };
struct Pair { Float lo, hi; };

template <class Out, class Operation>
ZK_HD Out each(Operation operation) {
    Out out;
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) out.r[i] = operation(i);
    return out;
}

ZK_HD __m512i all(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }

ZK_HD Product mul(uint32_t m, const Word& x) { return each<Product>([&](int i) { return _mm512_mul_epu32(x.r[i], all(m)); }); }
ZK_HD Word high(const Product& x) {  // a shift takes port 0, a shuffle port 5: half of each
    return each<Word>([&](int i) {
        return i % 2 ? _mm512_srli_epi64(x.r[i], 32) : _mm512_castps_si512(_mm512_movehdup_ps(_mm512_castsi512_ps(x.r[i])));
    });
}
ZK_HD Word low(const Product& x) { return x; }
ZK_HD Word operator^(const Word& a, uint32_t b) { return each<Word>([&](int i) { return _mm512_xor_si512(a.r[i], all(b)); }); }
ZK_HD Word xor3(const Word& a, const Word& b, uint32_t c) {
    return each<Word>([&](int i) { return _mm512_ternarylogic_epi32(a.r[i], b.r[i], all(c), 0x96); });
}

// Of two bfloat16 in one 32-bit lane, the even element is the lower half: a Pair of them holds the even elements and the odd ones,
// as the noise comes. Of the other types it holds sixteen elements and the next sixteen; unpacklo and unpackhi, which work in
// 128-bit lanes, put the noise in that order if the counters are in this one.
template <class T>
ZK_HD Product first_products(uint32_t low_word) {
    const __m512i order = is_bfloat16<T> ? _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7) : _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    return each<Product>([&](int i) {
        return _mm512_mullo_epi64(_mm512_add_epi64(_mm512_set1_epi64(low_word + uint64_t{8} * i), order), _mm512_set1_epi64(kMultiplier0));
    });
}
template <class T>
ZK_HD Pair arrange(const Float& even, const Float& odd) {
    if (is_bfloat16<T>) return {even, odd};
    return {each<Float>([&](int i) { return _mm512_unpacklo_ps(even.r[i], odd.r[i]); }),
            each<Float>([&](int i) { return _mm512_unpackhi_ps(even.r[i], odd.r[i]); })};
}
template <class T>
ZK_HD Pair apart(const Pair& x) {
    if (is_bfloat16<T>) return x;
    return {each<Float>([&](int i) { return _mm512_shuffle_ps(x.lo.r[i], x.hi.r[i], 0x88); }),
            each<Float>([&](int i) { return _mm512_shuffle_ps(x.lo.r[i], x.hi.r[i], 0xDD); })};
}
ZK_HD Product next_products(const Product& p) {
    return each<Product>([&](int i) { return _mm512_add_epi64(p.r[i], _mm512_set1_epi64(uint64_t{kMultiplier0} * 8 * kRegisters)); });
}

ZK_HD Bits pack(const Word& even, const Word& odd) {
    return each<Bits>([&](int i) {
        return _mm512_castps_si512(_mm512_mask_moveldup_ps(_mm512_castsi512_ps(even.r[i]), 0xAAAA, _mm512_castsi512_ps(odd.r[i])));
    });
}

ZK_HD Bits pack_high(const Product& even, const Product& odd) {
    return each<Bits>([&](int i) {
        return _mm512_castps_si512(_mm512_mask_movehdup_ps(_mm512_castsi512_ps(odd.r[i]), 0x5555, _mm512_castsi512_ps(even.r[i])));
    });
}
ZK_HD Bits xor3(const Bits& a, const Bits& b, uint32_t even, uint32_t odd) {
    const __m512i c = _mm512_set1_epi64(static_cast<int64_t>(uint64_t{odd} << 32 | even));
    return each<Bits>([&](int i) { return _mm512_ternarylogic_epi32(a.r[i], b.r[i], c, 0x96); });
}

ZK_HD Bits operator>>(const Bits& a, int n) { return each<Bits>([&](int i) { return _mm512_srli_epi32(a.r[i], n); }); }
ZK_HD Bits operator+(const Bits& a, uint32_t b) { return each<Bits>([&](int i) { return _mm512_add_epi32(a.r[i], all(b)); }); }
ZK_HD Bits rsqrt_guess(const Bits& y, const Bits& sign) {
    return each<Bits>([&](int i) {
        const auto h = _mm512_ternarylogic_epi32(y.r[i], sign.r[i], all(1), 0xD8);  // y, its lowest bit the sign's: b & c | a & ~c
        return _mm512_sub_epi32(all(0x5F200000), _mm512_ror_epi32(h, 1));
    });
}
ZK_HD Bits with_exponent_of_one(const Bits& a) {
    return each<Bits>([&](int i) { return _mm512_ternarylogic_epi32(a.r[i], all(0x007FFFFF), all(0x3F800000), 0xEA); });  // a & b | c
}

ZK_HD Float as_float(const Bits& a) { return each<Float>([&](int i) { return _mm512_castsi512_ps(a.r[i]); }); }
ZK_HD Bits as_bits(const Float& a) { return each<Bits>([&](int i) { return _mm512_castps_si512(a.r[i]); }); }
ZK_HD Float to_float(const Bits& a) { return each<Float>([&](int i) { return _mm512_cvtepi32_ps(a.r[i]); }); }
ZK_HD Float operator+(const Float& a, const Float& b) { return each<Float>([&](int i) { return _mm512_add_ps(a.r[i], b.r[i]); }); }
ZK_HD Float operator-(const Float& a, const Float& b) { return each<Float>([&](int i) { return _mm512_sub_ps(a.r[i], b.r[i]); }); }
ZK_HD Float operator*(const Float& a, const Float& b) { return each<Float>([&](int i) { return _mm512_mul_ps(a.r[i], b.r[i]); }); }
ZK_HD Float operator/(const Float& a, const Float& b) { return each<Float>([&](int i) { return _mm512_div_ps(a.r[i], b.r[i]); }); }
ZK_HD Float sqrt(const Float& a) { return each<Float>([&](int i) { return _mm512_sqrt_ps(a.r[i]); }); }
ZK_HD Float where_greater(const Float& a, const Float& b, const Float& yes, const Float& no) {
    return each<Float>([&](int i) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.r[i], b.r[i], _CMP_GT_OQ), no.r[i], yes.r[i]); });
}
ZK_HD Float kept(const Float& z, const Bits& word, uint32_t keep_threshold) {
    return each<Float>([&](int i) { return _mm512_maskz_mov_ps(_mm512_cmple_epu32_mask(word.r[i], all(keep_threshold)), z.r[i]); });
}
ZK_HD Float fma(const Float& a, const Float& b, const Float& c) {
    return each<Float>([&](int i) { return _mm512_fmadd_ps(a.r[i], b.r[i], c.r[i]); });
}
template <class>
ZK_HD Float splat(uint32_t bits) {
    return each<Float>([&](int) { return _mm512_castsi512_ps(all(bits)); });
}
template <class>
ZK_HD Float splat(float x) {
    return each<Float>([&](int) { return _mm512_set1_ps(x); });
}

ZK_HD void load(const float* p, Pair& x, int i) { x.lo.r[i] = _mm512_loadu_ps(p), x.hi.r[i] = _mm512_loadu_ps(p + kLanes); }
ZK_HD void store(float* p, const Pair& x, int i) { _mm512_storeu_ps(p, x.lo.r[i]), _mm512_storeu_ps(p + kLanes, x.hi.r[i]); }

ZK_HD void load(const bfloat16* p, Pair& x, int i) {
    const __m512i both = _mm512_loadu_si512(p);
    x.lo.r[i] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    x.hi.r[i] = _mm512_castsi512_ps(_mm512_and_si512(both, all(0xFFFF0000)));
}
// To the upper half of each lane, the lower being anything. In integers: vcvtneps2bf16 flushes denormals.
ZK_HD __m512i nearest_bfloat16(const __m512i& u) {
    const __m512i up = _mm512_add_epi32(u, all(0x7FFF));
    return _mm512_mask_add_epi32(up, _mm512_test_epi32_mask(u, all(0x10000)), up, all(1));
}
ZK_HD __m512i rounded_to_bfloat16(const __m512& x) {  // a NaN stays one
    const __m512i u = _mm512_castps_si512(x);
    return _mm512_mask_or_epi32(nearest_bfloat16(u), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), u, all(0x00400000));
}
ZK_HD void store(bfloat16* p, const Pair& x, int i) {
    const __m512i lo = _mm512_srli_epi32(rounded_to_bfloat16(x.lo.r[i]), 16);
    _mm512_storeu_si512(p, _mm512_ternarylogic_epi32(lo, rounded_to_bfloat16(x.hi.r[i]), all(0xFFFF0000), 0xF8));  // a | b & c
}

ZK_HD __m512 load(const float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
ZK_HD void load(const float16* p, Pair& x, int i) { x.lo.r[i] = load(p), x.hi.r[i] = load(p + kLanes); }
ZK_HD void store(float16* p, const __m512& x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
ZK_HD void store(float16* p, const Pair& x, int i) { store(p, x.lo.r[i]), store(p + kLanes, x.hi.r[i]); }

// One register, its elements in a row.
ZK_HD __m512 load(const float* p) { return _mm512_loadu_ps(p); }
ZK_HD void store(float* p, const __m512& x) { _mm512_storeu_ps(p, x); }
ZK_HD __m512i load(const uint16_t* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
ZK_HD __m512 load(const bfloat16* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(load(&p->bits), 16)); }
ZK_HD void store_upper(bfloat16* p, const __m512i& x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)));
}
ZK_HD void store(bfloat16* p, const __m512& x) { store_upper(p, rounded_to_bfloat16(x)); }
ZK_HD void store(bfloat16* p, const __m512& x, const uint16_t* random) {
    const __m512i u = _mm512_castps_si512(x), up = _mm512_add_epi32(u, load(random));
    store_upper(p, _mm512_mask_or_epi32(up, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), u, all(0x00400000)));
}

ZK_HD void put(uint16_t* p, const Bits& w02, const Bits& w13) {
    const auto to = [&](int i) { return p + 2 * kLanes * i; };
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) {
        _mm512_storeu_si512(to(2 * i), _mm512_unpacklo_epi32(w02.r[i], w13.r[i]));
        _mm512_storeu_si512(to(2 * i + 1), _mm512_unpackhi_epi32(w02.r[i], w13.r[i]));
    }
}

ZK_HD Float rounded(const Float& x, float) { return x; }
ZK_HD Float rounded(const Float& x, bfloat16) {
    return each<Float>([&](int i) { return _mm512_castsi512_ps(_mm512_and_si512(nearest_bfloat16(_mm512_castps_si512(x.r[i])), all(0xFFFF0000))); });
}
ZK_HD Float rounded(const Float& x, float16) {
    return each<Float>([&](int i) { return _mm512_cvtph_ps(_mm512_cvtps_ph(x.r[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); });
}

}  // namespace
}  // namespace zokern

#include "registers.hpp"
