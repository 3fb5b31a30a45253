// The CPU backend for every processor, one counter at a time: the last resort, and the plainest reading of csrc/noise.
#include <cmath>
#include <cstring>

#include "backend.hpp"

namespace zokern {
namespace {

constexpr int kRegisters = 1;
constexpr int kLanes = 2;  // a counter's four words make two pairs

struct Word { uint32_t r; };
struct Product { uint64_t r; };
struct Bits { uint32_t r[kLanes]; };
struct Float { float r[kLanes]; };
struct Pair { Float lo, hi; };

template <class To, class From>
ZK_HD To cast(From x) {
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}

ZK_HD Product mul(uint32_t m, Word x) { return {uint64_t{m} * x.r}; }
ZK_HD Word high(Product x) { return {static_cast<uint32_t>(x.r >> 32)}; }
ZK_HD Word low(Product x) { return {static_cast<uint32_t>(x.r)}; }
ZK_HD Word operator^(Word a, uint32_t b) { return {a.r ^ b}; }
ZK_HD Word xor3(Word a, Word b, uint32_t c) { return {a.r ^ b.r ^ c}; }
template <class>
ZK_HD Product first_products(uint32_t low_word) {
    return {uint64_t{kMultiplier0} * low_word};
}
ZK_HD Product next_products(Product p) { return {p.r + kMultiplier0}; }

ZK_HD Bits pack(Word even, Word odd) { return {even.r, odd.r}; }
ZK_HD Bits pack_high(Product even, Product odd) { return {high(even).r, high(odd).r}; }
ZK_HD Bits xor3(Bits a, Bits b, uint32_t even, uint32_t odd) { return {a.r[0] ^ b.r[0] ^ even, a.r[1] ^ b.r[1] ^ odd}; }
template <class>
ZK_HD Pair arrange(Float even, Float odd) {
    return {{even.r[0], odd.r[0]}, {even.r[1], odd.r[1]}};
}

template <class>
ZK_HD Pair apart(Pair x) {
    return {{x.lo.r[0], x.hi.r[0]}, {x.lo.r[1], x.hi.r[1]}};
}

ZK_HD Bits operator>>(Bits a, int n) { return {a.r[0] >> n, a.r[1] >> n}; }
ZK_HD Bits operator+(Bits a, uint32_t b) { return {a.r[0] + b, a.r[1] + b}; }
ZK_HD uint32_t rsqrt_guess(uint32_t y, uint32_t sign) { return (0x5F200000 - (y >> 1)) ^ (sign << 31); }
ZK_HD Bits rsqrt_guess(Bits y, Bits sign) { return {rsqrt_guess(y.r[0], sign.r[0]), rsqrt_guess(y.r[1], sign.r[1])}; }
ZK_HD uint32_t with_exponent_of_one(uint32_t a) { return (a & 0x007FFFFF) | 0x3F800000; }
ZK_HD Bits with_exponent_of_one(Bits a) { return {with_exponent_of_one(a.r[0]), with_exponent_of_one(a.r[1])}; }

ZK_HD Float as_float(Bits a) { return {cast<float>(a.r[0]), cast<float>(a.r[1])}; }
ZK_HD Bits as_bits(Float a) { return {cast<uint32_t>(a.r[0]), cast<uint32_t>(a.r[1])}; }
ZK_HD float to_float(uint32_t a) { return static_cast<float>(static_cast<int32_t>(a)); }
ZK_HD Float to_float(Bits a) { return {to_float(a.r[0]), to_float(a.r[1])}; }
ZK_HD Float operator+(Float a, Float b) { return {a.r[0] + b.r[0], a.r[1] + b.r[1]}; }
ZK_HD Float operator-(Float a, Float b) { return {a.r[0] - b.r[0], a.r[1] - b.r[1]}; }
ZK_HD Float operator*(Float a, Float b) { return {a.r[0] * b.r[0], a.r[1] * b.r[1]}; }
ZK_HD Float operator/(Float a, Float b) { return {a.r[0] / b.r[0], a.r[1] / b.r[1]}; }
ZK_HD Float sqrt(Float a) { return {std::sqrt(a.r[0]), std::sqrt(a.r[1])}; }
ZK_HD Float where_greater(Float a, Float b, Float yes, Float no) {
    return {a.r[0] > b.r[0] ? yes.r[0] : no.r[0], a.r[1] > b.r[1] ? yes.r[1] : no.r[1]};
}
ZK_HD Float kept(Float z, Bits word, uint32_t keep_threshold) {
    return {word.r[0] <= keep_threshold ? z.r[0] : 0, word.r[1] <= keep_threshold ? z.r[1] : 0};
}
ZK_HD Float fma(Float a, Float b, Float c) { return {std::fma(a.r[0], b.r[0], c.r[0]), std::fma(a.r[1], b.r[1], c.r[1])}; }
ZK_HD void add(Float c, const Pair& z, Pair& x, int) { x = {fma(c, z.lo, x.lo), fma(c, z.hi, x.hi)}; }
template <class>
ZK_HD Float splat(uint32_t bits) {
    return {cast<float>(bits), cast<float>(bits)};
}
template <class>
ZK_HD Float splat(float x) {
    return {x, x};
}

ZK_HD float widen(float x) { return x; }
ZK_HD float widen(bfloat16 x) { return cast<float>(uint32_t{x.bits} << 16); }
ZK_HD float widen(float16 x) {
    const uint32_t sign = uint32_t{x.bits} >> 15 << 31, rest = x.bits & 0x7FFF;
    if (rest >= 0x7C00) return cast<float>(sign | 0x7F800000 | (rest & 0x3FF) << 13 | (rest > 0x7C00 ? 0x00400000 : 0));
    // A float16 is a small float32 with its exponent off by 112; the product is exact, denormals included.
    return cast<float>(sign | cast<uint32_t>(cast<float>(rest << 13) * 0x1p112f));
}

ZK_HD void narrow(float x, float& y) { y = x; }
ZK_HD void narrow(float x, bfloat16& y) {
    const uint32_t u = cast<uint32_t>(x);
    y.bits = static_cast<uint16_t>((x != x ? u | 0x00400000 : u + 0x7FFF + (u >> 16 & 1)) >> 16);
}
ZK_HD void narrow(float x, float16& y) {
    const uint32_t u = cast<uint32_t>(x), sign = u >> 31 << 15, magnitude = u & 0x7FFFFFFF;
    uint32_t rest;
    if (magnitude > 0x7F800000) {
        rest = 0x7E00 | (magnitude >> 13 & 0x3FF);
    } else if (magnitude < 0x38800000) {
        // Below 2^-14 float16 counts in steps of 2^-24; adding 0.5 leaves that many bits of the sum, rounded to nearest even.
        rest = cast<uint32_t>(cast<float>(magnitude) + 0.5f) - 0x3F000000;
    } else {
        const uint32_t rounded = ((magnitude + 0xFFF + (magnitude >> 13 & 1)) >> 13) - (112 << 10);  // exponents are off by 112
        rest = rounded < 0x7C00 ? rounded : 0x7C00;
    }
    y.bits = static_cast<uint16_t>(sign | rest);
}

template <class T>
ZK_HD Float rounded(Float x, T narrowed) {
    for (float& value : x.r) narrow(value, narrowed), value = widen(narrowed);
    return x;
}

template <class T>
ZK_HD void load(const T* p, Pair& x, int) {
    x = {{widen(p[0]), widen(p[1])}, {widen(p[2]), widen(p[3])}};
}
// With r, 16 random bits: rounded up with the probability that keeps the mean.
ZK_HD void narrow(float x, bfloat16& y, uint16_t r) {
    const uint32_t u = cast<uint32_t>(x);
    y.bits = static_cast<uint16_t>((x != x ? u | 0x00400000 : u + r) >> 16);
}
ZK_HD void narrow(float x, float16& y, uint16_t r) {
    narrow(x, y);
    if ((y.bits & 0x7C00) == 0x7C00) return;  // infinite where the nearest is
    const uint32_t u = cast<uint32_t>(x), magnitude = u & 0x7FFFFFFF;
    uint32_t rest = static_cast<uint32_t>(-(112 << 10)) + ((magnitude + (r >> 3)) >> 13);  // exponents are off by 112
    if (rest > 0x7BFF) rest = 0x7BFF;
    if (magnitude < 0x38800000) rest = (static_cast<uint32_t>(cast<float>(magnitude) * 0x1p40f) + r) >> 16;  // in steps of 2^-24
    y.bits = static_cast<uint16_t>(u >> 31 << 15 | rest);
}

template <class T, class Out, class... Random>
ZK_HD void store(Out* p, const Pair& x, int, const Random*... random) {
    narrow(x.lo.r[0], p[0], random[0]...), narrow(x.lo.r[1], p[1], random[1]...);
    narrow(x.hi.r[0], p[2], random[2]...), narrow(x.hi.r[1], p[3], random[3]...);
}

template <class>
ZK_HD Pair drawn_signs(const uint16_t* bits, size_t at) {
    const auto sign = [&](size_t i) { return bits[(at + i) / 16] >> (at + i) % 16 & 1 ? -1.0f : 1.0f; };
    return {{sign(0), sign(1)}, {sign(2), sign(3)}};
}

template <class T>
ZK_HD Float take(const T* p) {
    return {widen(p[0]), widen(p[1])};
}
template <class T, class... Random>
ZK_HD void put(T* p, Float x, const Random*... random) {
    narrow(x.r[0], p[0], random[0]...), narrow(x.r[1], p[1], random[1]...);
}
ZK_HD void put(uint16_t* p, Bits w02, Bits w13) {
    const uint32_t words[] = {w02.r[0], w13.r[0], w02.r[1], w13.r[1]};
    for (int i = 0; i < 8; ++i) p[i] = static_cast<uint16_t>(words[i / 2] >> i % 2 * 16);
}

}  // namespace
}  // namespace zokern

#include "kernels.hpp"

namespace zokern {
constexpr Isa scalar = isa("scalar");
}  // namespace zokern
