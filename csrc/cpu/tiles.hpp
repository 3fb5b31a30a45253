// A pass over tiles: as many elements as the lanes of one instruction set take at a time, and the noise of them. Included after the
// lanes; everything is in an anonymous namespace so that the linker cannot merge code of one instruction set into another.
//
// The lanes bring: kRegisters (every operation is applied to that many independent registers, to hide latency), kLanes (floats
// in a register), Word/Product, Bits, Float with the operations that csrc/noise asks for, and
//   pack(Word, Word) -> Bits: the second word beside the first one; pack_high(Product, Product) -> Bits: the same of their high halves,
//     of which the second one is in its place already; xor3(Bits, Bits, first, second): with a uint32_t for each of the two
//   load(const T*, Pair&, i), store(T*, Pair, i): registers i of a Pair, from and to 2 kLanes elements of a storage type. How the
//     elements lie in the two registers is the storage type's own: halves in a row, or the even ones and the odd ones
//   first_products<T>(low), arrange<T>(even, odd) -> Pair: kMultiplier0 times the low counter words of a tile's blocks, in such an
//     order that arrange() puts the normals made of them where load() has put the elements; apart<T>(Pair) -> Pair{even, odd}
//     undoes it
//   rounded(Float, T()): to the storage type and back; a NaN has nothing in its lower half, and stays one
//   kept(Float, Bits, keep_threshold): the float where the word is at most `keep_threshold`, else +0.
#pragma once

#include "../noise/normal.hpp"
#include "backend.hpp"

namespace zokern {
namespace {

constexpr size_t kTile = 2 * kLanes * kRegisters;

/// The words of a tile's blocks. The last round is made on both of a pair at once.
struct Pairs {
    Bits w02, w13;
};

ZK_HD Pairs pairs(const Opening<Word>& opened, const Schedule& s) {
    constexpr int last = kRounds - 1;
    const Words<Word> w = philox<last>(opened, s);
    const Product p0 = mul(kMultiplier0, w.w0), p1 = mul(kMultiplier1, w.w2);
    return {xor3(pack_high(p1, p0), pack(w.w1, w.w3), s.key0[last], s.key1[last]), pack(low(p1), low(p0))};
}
ZK_HD Pairs pairs(const Product& products, const Schedule& s) { return pairs(opening<Word>(products, s.round0_word2), s); }

/// z of one key in a tile, as it comes: `term` is which of the mask's schedules is the key's.
template <bool masked>
ZK_HD Normals<Float> normals(const Opening<Word>& opened, const Schedule& schedule, const Product& products, const Mask* mask, size_t term) {
    const Pairs w = pairs(opened, schedule);
    const Normals<Float> z = box_muller<Float>(w.w02, w.w13);
    if (!masked) return z;
    const Pairs m = pairs(products, mask->schedules[term]);
    return {kept(z.even, m.w02, mask->keep_threshold), kept(z.odd, m.w13, mask->keep_threshold)};
}

/// The same where load() puts the elements.
template <class T, bool masked>
ZK_HD Pair noise(const Product& products, const Schedule& schedule, const Mask* mask, size_t term) {
    const Normals<Float> z = normals<masked>(opening<Word>(products, schedule.round0_word2), schedule, products, mask, term);
    return arrange<T>(z.even, z.odd);
}

template <class T>
ZK_HD Pair load_tile(const T* theta) {
    Pair x;
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) load(theta + 2 * kLanes * i, x, i);
    return x;
}
template <class T>
ZK_HD void store_tile(T* theta, const Pair& x) {
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) store(theta + 2 * kLanes * i, x, i);
}

/// The part of a tile that holds elements skip..skip+count-1, through a buffer of a whole tile.
template <class T, class OnTile>
void on_part(T* theta, size_t skip, size_t count, const Product& products, const OnTile& on_tile) {
    T buffer[kTile] = {};
    for (size_t i = 0; i < count; ++i) buffer[skip + i] = theta[i];
    on_tile(buffer, products);
    for (size_t i = 0; i < count; ++i) theta[i] = buffer[skip + i];
}

/// on_tile(theta, products of its blocks) for all tiles of elements first..first+count-1.
template <class T, class OnTile>
ZK_HD void in_tiles(T* theta, uint64_t first, size_t count, const OnTile& on_tile) {
    Product products = first_products<T>(static_cast<uint32_t>(first >> 2));
    if (const size_t skip = first & 3) {
        const size_t part = count < kTile - skip ? count : kTile - skip;
        on_part(theta, skip, part, products, on_tile);
        theta += part, count -= part, products = next_products(products);
    }
    for (; count >= kTile; theta += kTile, count -= kTile, products = next_products(products)) on_tile(theta, products);
    if (count) on_part(theta, 0, count, products, on_tile);
}

}  // namespace
}  // namespace zokern
