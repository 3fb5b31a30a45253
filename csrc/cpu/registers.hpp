// What a pass works with: kRegisters SIMD registers at a time, every operation on each of them, whatever their width. Included at the end
// of the lanes of one register, which bring its two types, Integers and Floats, and the operations on them that are called here.
//
// A Word holds a counter in each 64-bit lane, so that mul() needs no shuffles; its high half is anything, mul() does not read it. Bits
// and Floats hold a number in each 32-bit lane.
#pragma once

namespace zokern {
namespace {

struct Word { Integers r[kRegisters]; };
using Product = Word;
struct Bits { Integers r[kRegisters]; };
struct Float { Floats r[kRegisters]; };
struct Pair { Float lo, hi; };

template <class Out, class Operation>
ZK_HD Out each(Operation operation) {
    Out out;
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) out.r[i] = operation(i);
    return out;
}

ZK_HD Product mul(uint32_t m, const Word& x) { return each<Product>([&](int i) { return mul(x.r[i], all(m)); }); }
ZK_HD Word high(const Product& x) { return each<Word>([&](int i) { return high(x.r[i], i); }); }
ZK_HD Word low(const Product& x) { return x; }
ZK_HD Word operator^(const Word& a, uint32_t b) { return each<Word>([&](int i) { return a.r[i] ^ all(b); }); }
ZK_HD Word xor3(const Word& a, const Word& b, uint32_t c) { return each<Word>([&](int i) { return xor3(a.r[i], b.r[i], all(c)); }); }
ZK_HD Bits pack(const Word& even, const Word& odd) { return each<Bits>([&](int i) { return pack(even.r[i], odd.r[i]); }); }
ZK_HD Bits pack_high(const Product& even, const Product& odd) { return each<Bits>([&](int i) { return pack_high(even.r[i], odd.r[i]); }); }
ZK_HD Bits xor3(const Bits& a, const Bits& b, uint32_t even, uint32_t odd) {
    return each<Bits>([&](int i) { return xor3(a.r[i], b.r[i], all64(uint64_t{odd} << 32 | even)); });
}

// Of two bfloat16 in one 32-bit lane, the even element is the lower half: a Pair of them holds the even elements and the odd ones,
// as the noise comes. Of the other types it holds kLanes elements and the next kLanes; unpack_low and unpack_high, which work in
// 128-bit lanes, put the noise in that order if the counters are in this one.
template <class T>
ZK_HD Product first_products(uint32_t low_word) {
    const Integers order = counters<is_bfloat16<T>>();
    return each<Product>([&](int i) { return first_product(add64(all64(low_word + uint64_t{kLanes / 2} * i), order)); });
}
ZK_HD Product next_products(const Product& p) {
    return each<Product>([&](int i) { return add64(p.r[i], all64(uint64_t{kMultiplier0} * (kLanes / 2) * kRegisters)); });
}
template <class T>
ZK_HD Pair arrange(const Float& even, const Float& odd) {
    if (is_bfloat16<T>) return {even, odd};
    return {each<Float>([&](int i) { return unpack_low(even.r[i], odd.r[i]); }),
            each<Float>([&](int i) { return unpack_high(even.r[i], odd.r[i]); })};
}
template <class T>
ZK_HD Pair apart(const Pair& x) {
    if (is_bfloat16<T>) return x;
    return {each<Float>([&](int i) { return even_lanes(x.lo.r[i], x.hi.r[i]); }),
            each<Float>([&](int i) { return odd_lanes(x.lo.r[i], x.hi.r[i]); })};
}

ZK_HD Bits operator>>(const Bits& a, int n) { return each<Bits>([&](int i) { return shift_right(a.r[i], n); }); }
ZK_HD Bits operator+(const Bits& a, uint32_t b) { return each<Bits>([&](int i) { return add(a.r[i], all(b)); }); }
ZK_HD Bits rsqrt_guess(const Bits& y, const Bits& sign) { return each<Bits>([&](int i) { return rsqrt_guess(y.r[i], sign.r[i]); }); }
ZK_HD Bits with_exponent_of_one(const Bits& a) {
    return each<Bits>([&](int i) { return and_or(a.r[i], all(0x007FFFFF), all(0x3F800000)); });
}

ZK_HD Float as_float(const Bits& a) { return each<Float>([&](int i) { return as_floats(a.r[i]); }); }
ZK_HD Bits as_bits(const Float& a) { return each<Bits>([&](int i) { return as_integers(a.r[i]); }); }
ZK_HD Float to_float(const Bits& a) { return each<Float>([&](int i) { return to_floats(a.r[i]); }); }
ZK_HD Float operator+(const Float& a, const Float& b) { return each<Float>([&](int i) { return a.r[i] + b.r[i]; }); }
ZK_HD Float operator-(const Float& a, const Float& b) { return each<Float>([&](int i) { return a.r[i] - b.r[i]; }); }
ZK_HD Float operator*(const Float& a, const Float& b) { return each<Float>([&](int i) { return a.r[i] * b.r[i]; }); }
ZK_HD Float operator/(const Float& a, const Float& b) { return each<Float>([&](int i) { return a.r[i] / b.r[i]; }); }
ZK_HD Float sqrt(const Float& a) { return each<Float>([&](int i) { return sqrt(a.r[i]); }); }
ZK_HD Float fma(const Float& a, const Float& b, const Float& c) { return each<Float>([&](int i) { return fma(a.r[i], b.r[i], c.r[i]); }); }
ZK_HD void add(const Float& c, const Pair& z, Pair& x, int i) {
    x.lo.r[i] = fma(c.r[i], z.lo.r[i], x.lo.r[i]), x.hi.r[i] = fma(c.r[i], z.hi.r[i], x.hi.r[i]);
}
ZK_HD Float where_greater(const Float& a, const Float& b, const Float& yes, const Float& no) {
    return each<Float>([&](int i) { return where_greater(a.r[i], b.r[i], yes.r[i], no.r[i]); });
}
ZK_HD Float kept(const Float& z, const Bits& word, uint32_t keep_threshold) {
    return each<Float>([&](int i) { return kept(z.r[i], word.r[i], all(keep_threshold)); });
}
template <class>
ZK_HD Float splat(uint32_t bits) {
    return each<Float>([&](int) { return as_floats(all(bits)); });
}
template <class>
ZK_HD Float splat(float x) {
    return each<Float>([&](int) { return all_floats(x); });
}

// Each lane of a Pair has its bit shifted to where a float has its sign.
template <class T>
ZK_HD Pair drawn_signs(const uint16_t* bits, size_t at) {
    const Integers places = is_bfloat16<T> ? shift_left(numbers(), 1) : numbers();
    const Integers to_sign_lo = all(31) ^ places, to_sign_hi = all(is_bfloat16<T> ? 30 : 31 - kLanes) ^ places;
    const char* const p = reinterpret_cast<const char*>(bits) + at / 8;
    const auto sign = [](const Integers& shifted) { return as_floats(and_or(shifted, all(0x80000000), all(0x3F800000))); };
    Pair z;
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) {
        const Integers word = broadcast(p + kLanes / 4 * i);
        z.lo.r[i] = sign(shift_left(word, to_sign_lo)), z.hi.r[i] = sign(shift_left(word, to_sign_hi));
    }
    return z;
}

// bfloat16 is the upper half of a float. One register, its elements in a row, as of the other types.
ZK_HD Integers rounded_to_bfloat16(const Floats& x) { return or_quiet_nan(x, nearest_bfloat16(as_integers(x))); }
ZK_HD Integers rounded_to_bfloat16(const Floats& x, const Integers& random) { return or_quiet_nan(x, add(as_integers(x), random)); }
ZK_HD Floats load(const bfloat16* p) { return as_floats(shift_left(load(&p->bits), 16)); }
ZK_HD void store(bfloat16* p, const Floats& x) { store_halves(&p->bits, shift_right(rounded_to_bfloat16(x), 16)); }
ZK_HD void store(bfloat16* p, const Floats& x, const uint16_t* random) {
    store_halves(&p->bits, shift_right(rounded_to_bfloat16(x, load(random)), 16));
}
ZK_HD void store(float16* p, const Floats& x, const uint16_t* random) {
    const Integers u = as_integers(x), magnitude = u & all(0x7FFFFFFF), r = load(random);
    const Floats m = as_floats(magnitude);
    const Integers below = shift_right(add(to_integers(m * all_floats(0x1p40f)), r), 16);  // in steps of 2^-24
    const Integers above = add(shift_right(add(magnitude, shift_right(r, 3)), 13), all(-(112u << 10)));  // exponents are off by 112
    const Floats rest = where_greater(all_floats(0x1p-14f), m, as_floats(below), as_floats(min(above, all(0x7BFF))));
    const Integers either = as_integers(rest) | (shift_right(u, 16) & all(0x8000));
    // Infinite, or not a number, where the nearest is.
    store_halves(&p->bits, as_integers(where_greater(all_floats(65520), m, as_floats(either), as_floats(float16_bits(x)))));
}

template <class T>
ZK_HD void load(const T* p, Pair& x, int i) {
    x.lo.r[i] = load(p), x.hi.r[i] = load(p + kLanes);
}
ZK_HD void load(const bfloat16* p, Pair& x, int i) {
    const Integers both = load_integers(p);
    x.lo.r[i] = as_floats(shift_left(both, 16)), x.hi.r[i] = as_floats(both & all(0xFFFF0000));
}
ZK_HD void store_both(bfloat16* p, const Floats& even, const Floats& odd) {
    store(p, upper_halves(rounded_to_bfloat16(even), rounded_to_bfloat16(odd)));
}
ZK_HD void store_both(bfloat16* p, const Floats& even, const Floats& odd, const uint16_t* random) {
    const Integers r = load_integers(random);
    store(p, upper_halves(rounded_to_bfloat16(even, r & all(0xFFFF)), rounded_to_bfloat16(odd, shift_right(r, 16))));
}
template <class T, class Out, class... Random>
ZK_HD void store(Out* p, const Pair& x, int i, const Random*... random) {
    if constexpr (is_bfloat16<T>)
        store_both(p, x.lo.r[i], x.hi.r[i], random...);
    else
        store(p, x.lo.r[i], random...), store(p + kLanes, x.hi.r[i], random + kLanes...);
}

template <class T>
ZK_HD Float take(const T* p) {
    return each<Float>([&](int i) { return load(p + 2 * kLanes * i); });
}
template <class T, class... Random>
ZK_HD void put(T* p, const Float& x, const Random*... random) {
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) store(p + 2 * kLanes * i, x.r[i], random + 2 * kLanes * i...);
}
ZK_HD void put(uint16_t* p, const Bits& w02, const Bits& w13) {
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i, p += 4 * kLanes)
        store(p, unpack_low(w02.r[i], w13.r[i])), store(p + 2 * kLanes, unpack_high(w02.r[i], w13.r[i]));
}

ZK_HD Float rounded(const Float& x, float) { return x; }
ZK_HD Float rounded(const Float& x, bfloat16) {
    return each<Float>([&](int i) { return as_floats(nearest_bfloat16(as_integers(x.r[i])) & all(0xFFFF0000)); });
}
ZK_HD Float rounded(const Float& x, float16) { return each<Float>([&](int i) { return widen(narrow(x.r[i])); }); }

}  // namespace
}  // namespace zokern
