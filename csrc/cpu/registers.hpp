// What lanes of SIMD registers have in common, however wide: at their end.
#pragma once

namespace zokern {
namespace {

template <class T>
ZK_HD Float take(const T* p) {
    return each<Float>([&](int i) { return load(p + 2 * kLanes * i); });
}
template <class T, class... Random>
ZK_HD void put(T* p, const Float& x, const Random*... random) {
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) store(p + 2 * kLanes * i, x.r[i], random + 2 * kLanes * i...);
}

}  // namespace
}  // namespace zokern
