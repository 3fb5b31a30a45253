// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC11) over any lane type. Numbers: docs/noise_spec.md.
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

constexpr int kRounds = 10;
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

/// The words of the blocks whose low counter word times kMultiplier0 is `first_product`: callers step from block to block by
/// adding to it, which saves the first multiplication.
template <class Word, class Product>
ZK_HD Words<Word> philox(Product first_product, const Schedule& s) {
    const Word word2 = high(first_product) ^ s.round0_word2;  // of the counter after round 0; words 0 and 1 are shared
    Product p1 = mul(kMultiplier1, word2);
    Product p0 = mul(kMultiplier0, high(p1) ^ s.round1_word0);  // word 3 after round 1 is shared
    const Product q1 = mul(kMultiplier1, low(first_product) ^ s.round1_word2);
    Word w0 = xor3(high(q1), low(p1), s.key0[2]), w1 = low(q1), w2 = high(p0) ^ s.round2_word2, w3 = low(p0);
    ZK_UNROLL
    for (int r = 3; r < kRounds; ++r) {
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
