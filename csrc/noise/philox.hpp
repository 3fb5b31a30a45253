// Philox4x32-7 (Salmon, Moraes, Dror, Shaw, SC11) over any lane type. Numbers: docs/noise_spec.md.
//
// Word is what holds one 32-bit counter word for each lane: a uint32_t on a CUDA thread, a SIMD register on a CPU. Product
// holds the 64-bit products. A lane type brings four operations: mul(m, Word) -> Product, high(Product) -> Word,
// low(Product) -> Word, and ^ between words and with a uint32_t that all lanes share.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define ZK_HD __host__ __device__ __forceinline__
#define ZK_UNROLL _Pragma("unroll")
#else
#define ZK_HD inline __attribute__((always_inline))
#define ZK_UNROLL _Pragma("GCC unroll 16")
#endif

namespace zokern {

constexpr int kRounds = 7;
constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kIncrement0 = 0x9E3779B9, kIncrement1 = 0xBB67AE85;

struct Key {
    uint64_t seed;
    uint32_t step, stream;
};

/// What all blocks of one key share while the high word of their counters stays the same: the key of every round, and,
/// since counter words 1..3 are the same for all of them too, half of the first three rounds.
struct Schedule {
    uint32_t key0[kRounds], key1[kRounds];
    uint32_t round0_word2;
    uint32_t round1_word0, round1_word2;
    uint32_t round2_word2;
};

/// The shared halves of the first rounds: all that changes from step to step, and where the counter's high word does.
ZK_HD void begin(Schedule& s, uint32_t step, uint32_t stream, uint32_t counter_high) {
    const uint64_t p = static_cast<uint64_t>(kMultiplier1) * step;
    const uint32_t word0 = static_cast<uint32_t>(p >> 32) ^ counter_high ^ s.key0[0];
    const uint64_t p0 = static_cast<uint64_t>(kMultiplier0) * word0;
    s.round0_word2 = stream ^ s.key1[0];
    s.round1_word0 = static_cast<uint32_t>(p) ^ s.key0[1];
    s.round1_word2 = static_cast<uint32_t>(p0 >> 32) ^ s.key1[1];
    s.round2_word2 = static_cast<uint32_t>(p0) ^ s.key1[2];
}

ZK_HD Schedule schedule(const Key& key, uint32_t counter_high) {
    Schedule s;
    ZK_UNROLL
    for (int r = 0; r < kRounds; ++r) {
        s.key0[r] = static_cast<uint32_t>(key.seed) + r * kIncrement0;
        s.key1[r] = static_cast<uint32_t>(key.seed >> 32) + r * kIncrement1;
    }
    begin(s, key.step, key.stream, counter_high);
    return s;
}

template <class Word>
struct Words {
    Word w0, w1, w2, w3;
};

/// What a step leaves unchanged: the parts of the first two rounds that know only a block's place, the seed and the stream. Passes over
/// many steps of one stream make it once.
template <class Word>
struct Opening {
    Word word3;      // after round 0
    Word high, low;  // of round 1's product of word 2
    uint32_t round0_word2;
};

/// Of the blocks whose low counter word times kMultiplier0 is `first_product`: callers step from block to block by adding to it,
/// which saves the first multiplication.
template <class Word, class Product>
ZK_HD Opening<Word> opening(const Product& first_product, uint32_t round0_word2) {
    const Product p1 = mul(kMultiplier1, high(first_product) ^ round0_word2);  // word 2 of the counter after round 0
    return {low(first_product), high(p1), low(p1), round0_word2};
}

/// The words after so many rounds, at least three: words 0 and 1 after round 0, and word 3 after round 1, are shared by all blocks.
template <int rounds = kRounds, class Word>
ZK_HD Words<Word> philox(const Opening<Word>& opened, const Schedule& s) {
    auto p0 = mul(kMultiplier0, opened.high ^ s.round1_word0), p1 = mul(kMultiplier1, opened.word3 ^ s.round1_word2);
    Word w0 = xor3(high(p1), opened.low, s.key0[2]), w1 = low(p1), w2 = high(p0) ^ s.round2_word2, w3 = low(p0);
    ZK_UNROLL
    for (int r = 3; r < rounds; ++r) {
        p0 = mul(kMultiplier0, w0);
        p1 = mul(kMultiplier1, w2);
        w0 = xor3(high(p1), w1, s.key0[r]);
        w2 = xor3(high(p0), w3, s.key1[r]);
        w1 = low(p1);
        w3 = low(p0);
    }
    return {w0, w1, w2, w3};
}

}  // namespace zokern
