// zokern._cpu: addresses in, nothing out. Whoever calls has checked the arguments (zokern/ops).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>

#include "../cpu/threads.hpp"
#include "location.hpp"

namespace {

using Keys = std::vector<std::tuple<uint64_t, uint32_t, uint32_t>>;

const zokern::Isa& chosen(const std::string& name) {
    const zokern::Isa* isa = zokern::find_isa(name.c_str());
    if (!isa) throw pybind11::value_error("ZOKERN_CPU_ISA=" + name + ": this processor has none such; set scalar, avx2 or avx512, or unset it");
    return *isa;
}

template <class T>
const T* at(uintptr_t address) {
    return reinterpret_cast<const T*>(address);
}

std::vector<zokern::Key> plain(const Keys& keys) {
    std::vector<zokern::Key> out;
    out.reserve(keys.size());
    for (const auto& [seed, step, stream] : keys) out.push_back({seed, step, stream});
    return out;
}

zokern::Pass pass(int storage, int out_storage, uintptr_t rows, size_t n_rows, const Keys& keys, const Keys& rounding, size_t groups,
                  uintptr_t decay, const Keys& state_rounding = {}) {
    return {static_cast<zokern::Storage>(storage), static_cast<zokern::Storage>(out_storage), at<zokern::Row>(rows), n_rows, plain(keys),
            plain(rounding), plain(state_rounding), groups, at<float>(decay)};
}

void add_noise_(int storage, uintptr_t rows, size_t n_rows, const Keys& keys, int out_storage, uintptr_t coefficients, size_t groups,
                uintptr_t decay, const Keys& rounding, int threads, const std::string& isa) {
    const zokern::Isa& best = chosen(isa);
    const zokern::Pass all = pass(storage, out_storage, rows, n_rows, keys, rounding, groups, decay);
    pybind11::gil_scoped_release release;
    zokern::add_noise(best, all, at<float>(coefficients), threads);
}

void replay_(int storage, uintptr_t rows, size_t n_rows, const Keys& keys, uintptr_t instructions, size_t n_instructions,
             uintptr_t values, size_t groups, int threads, const std::string& isa) {
    const zokern::Isa& best = chosen(isa);
    const zokern::Pass all = pass(storage, storage, rows, n_rows, keys, {}, groups, 0);
    pybind11::gil_scoped_release release;
    zokern::replay(best, all, at<uint8_t>(instructions), n_instructions, at<float>(values), threads);
}

void update_(int storage, uintptr_t rows, size_t n_rows, const Keys& keys, uintptr_t in_theta, uintptr_t in_g, size_t of_key, size_t groups,
             uintptr_t decay, int code, uintptr_t numbers, size_t n_numbers, uintptr_t state, size_t n_slots, const Keys& state_rounding,
             const Keys& rounding, int threads, const std::string& isa) {
    const zokern::Isa& best = chosen(isa);
    const zokern::Pass all = pass(storage, storage, rows, n_rows, keys, rounding, groups, decay, state_rounding);
    const zokern::Rule rule{code, at<float>(in_theta), at<float>(in_g), of_key, at<float>(numbers), n_numbers, at<int64_t>(state), n_slots};
    pybind11::gil_scoped_release release;
    zokern::update(best, all, rule, threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "zokern's CPU kernels";
    m.attr("interface") = zokern::kInterface;
    m.def("isa", [](const std::string& name) { return std::string(chosen(name).name); });
    m.def("add_noise_", &add_noise_);
    m.def("replay_", &replay_);
    m.def("update_", &update_);
    m.def("location_by", &zokern::location_by);
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
}
