// theta <- decay * theta + sum_k c_k z(key_k) over the lanes of one instruction set. Included once by each isa_*.cpp, after its
// lanes; everything is in an anonymous namespace so that the linker cannot merge code of one instruction set into another.
//
// The lanes bring: kRegisters (every operation is applied to that many independent registers, to hide latency), kLanes (floats
// in a register), Word/Product, Bits, Float with the operations that csrc/noise asks for, and
//   pack(Word, Word) -> Bits: the second word beside the first one
//   load(const T*, Pair&, i), store(T*, Pair, i): registers i of a Pair, from and to 2 kLanes elements of a storage type. How the
//     elements lie in the two registers is the storage type's own: halves in a row, or the even ones and the odd ones
//   first_products<T>(low), arrange<T>(even, odd) -> Pair: kMultiplier0 times the low counter words of a tile's blocks, in such an
//     order that arrange() puts the normals made of them where load() has put the elements
//   kept(Float, Bits, last): the float where the word is at most `last`, else +0.
#pragma once

#include "../noise/normal.hpp"
#include "backend.hpp"

namespace zokern {
namespace {

constexpr size_t kTile = 2 * kLanes * kRegisters;

/// z of one term in a tile.
template <class T, bool masked>
ZK_HD Pair noise(const Product& products, const Schedule& schedule, const Mask* mask, size_t term) {
    const Words<Word> w = philox<Word>(products, schedule);
    Normals<Float> z = box_muller<Float>(pack(w.w0, w.w2), pack(w.w1, w.w3));
    if (masked) {
        const Words<Word> m = philox<Word>(products, mask->schedules[term]);
        z = {kept(z.even, pack(m.w0, m.w2), mask->last), kept(z.odd, pack(m.w1, m.w3), mask->last)};
    }
    return arrange<T>(z.even, z.odd);
}

template <bool masked, class T>
ZK_HD void add_noise_to_tile(T* theta, const Product& products, const Term* terms, size_t n_terms, const float* decay, const Mask* mask) {
    // Before theta is loaded: with one term, as nearly always, no register need hold theta while the noise is made.
    Pair z;
    if (n_terms) z = noise<T, masked>(products, terms->schedule, mask, 0);
    Pair x;
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) load(theta + 2 * kLanes * i, x, i);
    if (decay) {
        x.lo = splat<Float>(*decay) * x.lo;
        x.hi = splat<Float>(*decay) * x.hi;
    }
    for (const Term* term = terms; n_terms--; ++term) {
        const Float c = splat<Float>(term->coefficient);
        x.lo = fma(c, z.lo, x.lo);
        x.hi = fma(c, z.hi, x.hi);
        if (n_terms) z = noise<T, masked>(products, term[1].schedule, mask, term + 1 - terms);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) store(theta + 2 * kLanes * i, x, i);
}

/// The part of a tile that holds elements skip..skip+count-1, through a buffer of a whole tile.
template <bool masked, class T>
void add_noise_to_part(T* theta, size_t skip, size_t count, const Product& products, const Term* terms, size_t n_terms,
                       const float* decay, const Mask* mask) {
    T buffer[kTile] = {};
    for (size_t i = 0; i < count; ++i) buffer[skip + i] = theta[i];
    add_noise_to_tile<masked>(buffer, products, terms, n_terms, decay, mask);
    for (size_t i = 0; i < count; ++i) theta[i] = buffer[skip + i];
}

template <class T, bool masked>
void add_noise(T* theta, uint64_t first, size_t count, const Term* terms, size_t n_terms, const float* decay, const Mask* mask) {
    Product products = first_products<T>(static_cast<uint32_t>(first >> 2));
    if (const size_t skip = first & 3) {
        const size_t part = count < kTile - skip ? count : kTile - skip;
        add_noise_to_part<masked>(theta, skip, part, products, terms, n_terms, decay, mask);
        theta += part, count -= part, products = next_products(products);
    }
    for (; count >= kTile; theta += kTile, count -= kTile, products = next_products(products))
        add_noise_to_tile<masked>(theta, products, terms, n_terms, decay, mask);
    if (count) add_noise_to_part<masked>(theta, 0, count, products, terms, n_terms, decay, mask);
}

}  // namespace
}  // namespace zokern
