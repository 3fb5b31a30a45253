// How a thread block goes over its span.
#pragma once

#include "noise.hpp"
#include "vector.hpp"

namespace zokern {
inline namespace cuda {

/// Which elements of its span a thread holds: the first has index (high << 32 | q) << 2 in the layout and is number `at` of the span.
/// kWhole: all of them are there; else, of four, those from `begin` to before `end`.
template <bool kWhole>
struct Place {
    uint32_t q, high;
    int64_t at;
    int begin, end;

    __device__ __forceinline__ bool has(int i) const { return kWhole || (begin <= i && i < end); }
};

/// Where a pass writes, rounded to nearest.
struct Nearest {
    template <int n, class T>
    __device__ __forceinline__ void operator()(const float (&x)[n], const Place<true>&, T* at) const {
        store(x, at);
    }
    template <class T>
    __device__ __forceinline__ void operator()(const float (&x)[4], const Place<false>& place, T* at) const {
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (place.has(j)) narrow(x[j], at[j]);
    }
};

/// Or, where `random` says so, what is stored in 16 bits by random bits: schedule_of(high word of the counters of their blocks, each of
/// which serves 8 elements).
template <class ScheduleOf>
struct AtRandom {
    bool random;
    ScheduleOf schedule_of;

    template <bool kWhole>
    __device__ __forceinline__ Words<Word> block(const Place<kWhole>& place) const {
        return words(__funnelshift_r(place.q, place.high, 1), schedule_of(place.high >> 1));
    }
    template <int n, class T>
    __device__ __forceinline__ void operator()(const float (&x)[n], const Place<true>& place, T* at) const {
        if constexpr (kVector<T> == 4) {
            store(x, at);
        } else {
            if (!random) return store(x, at);
            const Words<Word> w = block(place);
            const auto pair = [](float low, float high, Word r) {
                return rounded_at_random(low, r.r & 0xFFFFu, T()) | rounded_at_random(high, r.r >> 16, T()) << 16;
            };
            *reinterpret_cast<uint4*>(at) = {pair(x[0], x[1], w.w0), pair(x[2], x[3], w.w1),
                                             pair(x[4], x[5], w.w2), pair(x[6], x[7], w.w3)};
        }
    }
    template <class T>
    __device__ __forceinline__ void operator()(const float (&x)[4], const Place<false>& place, T* at) const {
        if constexpr (kVector<T> == 4) {
            Nearest()(x, place, at);
        } else {
            if (!random) return Nearest()(x, place, at);
            const Words<Word> w = block(place);
            const uint32_t r[] = {place.q & 1 ? w.w2.r : w.w0.r, place.q & 1 ? w.w3.r : w.w1.r};  // two elements' bits each
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (place.has(j)) reinterpret_cast<uint16_t*>(at)[j] = rounded_at_random(x[j], r[j / 2] >> 16 * (j % 2) & 0xFFFFu, T());
        }
    }
};

template <class T>
__device__ __forceinline__ T* in_memory(int64_t address) {
    return static_cast<T*>(__cvta_global_to_generic(address));  // or every access would first look where it points
}

/// on_under(high)(x, place) for all elements of the span, so many at a time as a thread holds: x[rows][n], read as T, to be changed in
/// place, and then written as O by write(x[row], its place, address). kTogether: how many rows of a tile are held at a time, 0 for no
/// tiles; kLines: the span may be several lines. `aligned`: whether what is read beside theta can be read n elements at a time.
template <class T, class O, bool kSigns, bool kLines, int n, int kTogether, class OnUnder, class Write>
__device__ __forceinline__ void over_span(const Span& span, bool aligned, const OnUnder& on_under, const Write& write) {
    const T* const theta = in_memory<const T>(span.address);
    O* const out = in_memory<O>(span.out);
    const uint64_t first = span.first;
    const bool several = kLines && span.columns < span.numel;  // and then numel is below 2^32
    const uint32_t lines = several ? static_cast<uint32_t>(span.numel) / static_cast<uint32_t>(span.columns) : 1;
    const int64_t columns = several ? span.columns : span.numel;

    // Where 16-byte accesses and Philox blocks fall together and one high counter word serves all.
    const uint32_t high = static_cast<uint32_t>(first >> 34);
    const uint64_t last = first + (lines - 1) * span.step + columns - 1;
    aligned = aligned && ((span.address | span.out) & 15) == 0 && first % n == 0 && high == last >> 34;
    if (several) aligned = aligned && ((span.pitch * sizeof(T) | span.out_pitch * sizeof(O)) & 15) == 0 && (columns | span.step) % n == 0;
    uint32_t vector = threadIdx.x;  // of n elements

    const auto on = on_under(high);
    if constexpr (kTogether > 0) {
        constexpr int kRows = kTile / (kThreads * n), kApart = kNear<kSigns> * n;
        const uint32_t tiles = aligned && !several && first % (kSigns ? 128 : n) == 0 ? span.numel / kTile : 0;
        const uint32_t mine = threadIdx.x / kNear<kSigns> * kNear<kSigns> * kRows * n + threadIdx.x % kNear<kSigns> * n;
        const T* from = theta + mine;
        O* to = out + mine;
        Place<true> place{static_cast<uint32_t>(first + mine >> 2), high, mine};
        for (uint32_t tile = 0; tile < tiles; ++tile, from += kTile, to += kTile, place.q += kTile / 4, place.at += kTile) {
#pragma unroll
            for (int row = 0; row < kRows; row += kTogether) {
                const auto at = [&](int v) { return (row + v) * kApart; };
                const auto there = [&](int v) { return Place<true>{place.q + at(v) / 4, high, place.at + at(v)}; };
                float x[kTogether][n];
#pragma unroll
                for (int v = 0; v < kTogether; ++v) load(x[v], from + at(v));
                on(x, there(0));
#pragma unroll
                for (int v = 0; v < kTogether; ++v) write(x[v], there(v), to + at(v));
            }
        }
        vector += tiles * (kTile / n);
    }

    // The rest by vectors, each of which finds its line. A 32-bit quotient by the rounded reciprocal is exact, or one too small.
    const uint32_t width = columns / n, vectors = aligned ? span.numel / n : 0, reciprocal = several && aligned ? 0xFFFFFFFFu / width : 0;
    for (; vector < vectors; vector += kThreads) {
        uint32_t line = 0, column = vector;
        if (several) {
            line = static_cast<uint64_t>(vector) * reciprocal >> 32, column = vector - line * width;
            if (column >= width) ++line, column -= width;
        }
        const int64_t right = static_cast<int64_t>(column) * n;
        const Place<true> place{static_cast<uint32_t>(first + line * span.step + right >> 2), high, static_cast<int64_t>(vector) * n};
        float x[1][n];
        load(x[0], theta + line * span.pitch + right);
        on(x, place);
        write(x[0], place, out + line * span.out_pitch + right);
    }

    // The ragged end, or all of a span that is not aligned or crosses a multiple of 2^34: by Philox blocks of normals, element by element.
    const int64_t done = static_cast<int64_t>(vectors) * n;
    if (done == span.numel) return;
    const uint32_t blocks = (columns + 6) / 4;  // that a line can have a part of
    for (uint32_t t = (first + done >> 2) - (first >> 2) + threadIdx.x; t < lines * blocks; t += kThreads) {
        const uint32_t line = several ? t / blocks : 0;
        const uint64_t of_line = first + line * span.step, block = (of_line >> 2) + (t - line * blocks);
        const int64_t right = (block << 2) - of_line;
        const Place<false> place{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), line * columns + right,
                                 right < 0 ? static_cast<int>(-right) : 0, columns - right < 4 ? static_cast<int>(columns - right) : 4};
        const T* const from = theta + line * span.pitch + right;
        float x[1][4];
#pragma unroll
        for (int j = 0; j < 4; ++j) x[0][j] = place.has(j) ? widen(from[j]) : 0;
        on_under(place.high)(x, place);
        write(x[0], place, out + line * span.out_pitch + right);
    }
}

}  // namespace cuda
}  // namespace zokern
