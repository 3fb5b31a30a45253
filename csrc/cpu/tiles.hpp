// A pass over tiles: as many elements as the lanes of one instruction set take at a time, and the noise of them. Included after the
// lanes; everything is in an anonymous namespace so that the linker cannot merge code of one instruction set into another.
//
// The lanes bring: kRegisters (every operation is applied to that many independent registers, to hide latency), kLanes (floats
// in a register), Word/Product, Bits, Float with the operations that csrc/noise asks for, and
//   pack(Word, Word) -> Bits: the second word beside the first one; pack_high(Product, Product) -> Bits: the same of their high halves,
//     of which the second one is in its place already; xor3(Bits, Bits, first, second): with a uint32_t for each of the two
//   load(const T*, Pair&, i): register i of a Pair from 2 kLanes elements of a storage type. How the elements lie in the two halves is
//     the storage type's own: halves in a row, or the even ones and the odd ones
//   store<T>(Out*, Pair, i), with or without 16 random bits an element: what load() took from elements of T, to those of a type
//   first_products<T>(low), arrange<T>(even, odd) -> Pair: kMultiplier0 times the low counter words of a tile's blocks, in such an
//     order that arrange() puts the normals made of them where load() has put the elements; apart<T>(Pair) -> Pair{even, odd}
//     undoes it
//   add(c, z, x, i): x <- fma(c, z, x) in register i of Pairs
//   drawn_signs<T>(bits, at) -> Pair: -1 and +1 of bits at, at + 1, ... where load() puts the elements
//   put(uint16_t*, Bits, Bits): the words of blocks in the order of first_products<float>()
//   rounded(Float, T()): to the storage type and back; a NaN has nothing in its lower half, and stays one
//   kept(Float, Bits, keep_threshold): the float where the word is at most `keep_threshold`, else +0.
#pragma once

#include <cstring>

#include "../noise/normal.hpp"
#include "backend.hpp"

namespace zokern {
namespace {

constexpr size_t kTile = 2 * kLanes * kRegisters;
constexpr size_t kBlocks = kTile / 4;  // of one tile's normals
static_assert(kBlocks <= kSpare);

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

/// As many blocks at a time as a tile has.
void draw(uint16_t* to, uint32_t block, size_t n_blocks, const Schedule& schedule) {
    Product products = first_products<float>(block);
    for (size_t drawn = 0; drawn < n_blocks; drawn += kBlocks, to += 8 * kBlocks, products = next_products(products)) {
        const Pairs w = pairs(products, schedule);
        put(to, w.w02, w.w13);
    }
}

/// Where a tile is: kMultiplier0 times its blocks, and how far it is from element first & ~127 of its run.
struct Tile {
    Product products;
    size_t at;
};
ZK_HD Tile next(const Tile& tile) { return {next_products(tile.products), tile.at + kTile}; }

/// z of one key in a tile, as it comes: `term` is which of the mask's schedules is the key's.
template <bool masked>
ZK_HD Normals<Float> normals(const Opening<Word>& opened, const Schedule& schedule, const Product& products, const Mask* mask, size_t term) {
    const Pairs w = pairs(opened, schedule);
    const Normals<Float> z = box_muller<Float>(w.w02, w.w13);
    if (!masked) return z;
    const Pairs m = pairs(products, mask->schedules[term]);
    return {kept(z.even, m.w02, mask->keep_threshold), kept(z.odd, m.w13, mask->keep_threshold)};
}

/// 1 where the noise of a term is kept, else 0.
template <class T>
ZK_HD Pair kept_ones(const Product& products, const Mask& mask, size_t term) {
    const Pairs m = pairs(products, mask.schedules[term]);
    const Float one = splat<Float>(1.0f);
    return arrange<T>(kept(one, m.w02, mask.keep_threshold), kept(one, m.w13, mask.keep_threshold));
}

/// z of term k where load() puts the elements.
template <class T, bool signs, bool masked>
ZK_HD Pair noise(const Tile& tile, const Run& run, size_t k) {
    if (!signs) {
        const Schedule& schedule = run.schedules[k];
        const Normals<Float> z = normals<masked>(opening<Word>(tile.products, schedule.round0_word2), schedule, tile.products, run.mask, k);
        return arrange<T>(z.even, z.odd);
    }
    const Pair z = drawn_signs<T>(run.signs + k * kSigns, tile.at);
    if (!masked) return z;
    const Pair one = kept_ones<T>(tile.products, *run.mask, k);
    const Float zero = splat<Float>(0.0f);  // added: what is not kept is +0
    return {fma(z.lo, one.lo, zero), fma(z.hi, one.hi, zero)};
}

template <class T>
ZK_HD Pair load_tile(const T* theta) {
    Pair x;
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) load(theta + 2 * kLanes * i, x, i);
    return x;
}
/// A tile as it was loaded from elements of T.
template <class T, class Out>
ZK_HD void store_tile(Out* out, const Pair& x) {
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) store<T>(out + 2 * kLanes * i, x, i);
}
template <class T, class Out>
__attribute__((noinline)) void store_at_random(Out* out, Pair x, const uint16_t* random) {
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) store<T>(out + 2 * kLanes * i, x, i, random + 2 * kLanes * i);
}

/// whole(begin, its tile) for each whole tile of a run, its blocks in the order for T; part(begin, skip, n, its tile) for elements
/// skip..skip+n-1 of a tile at the start or the end. `begin` is how far the elements are from the run's first.
template <class T, class Whole, class Part>
ZK_HD void in_tiles(const Run& run, const Whole& whole, const Part& part) {
    const uint64_t first = run.first;
    const size_t count = run.count, skip = first % (run.signs && kTile > 4 ? 8 : 4);  // tiles begin with a byte of signs, or a block
    Tile tile{first_products<T>(static_cast<uint32_t>((first - skip) >> 2)), first % 128 - skip};
    size_t begin = 0;
    if (skip) {
        begin = count < kTile - skip ? count : kTile - skip;
        part(0, skip, begin, tile);
        tile = next(tile);
    }
    for (; count - begin >= kTile; begin += kTile, tile = next(tile)) whole(begin, tile);
    if (begin < count) part(begin, 0, count - begin, tile);
}

/// on_tile(theta, out, its tile) for all tiles of a run; a part of a tile goes through buffers of a whole one.
template <class T, class Out, class OnTile>
ZK_HD void over_tiles(const T* theta, Out* out, const Run& run, const OnTile& on_tile) {
    in_tiles<T>(
        run, [&](size_t begin, const Tile& tile) __attribute__((always_inline)) { on_tile(theta + begin, out + begin, tile); },
        [&](size_t begin, size_t skip, size_t n, const Tile& tile) __attribute__((noinline)) {
            T from[kTile] = {};
            Out to[kTile];
            std::memcpy(from + skip, theta + begin, n * sizeof(T));
            on_tile(from, to, tile);
            std::memcpy(out + begin, to + skip, n * sizeof(Out));
        });
}

}  // namespace
}  // namespace zokern
