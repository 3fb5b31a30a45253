// zokern._cpu: addresses in, nothing out. Whoever calls has checked the arguments (zokern/ops).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>

#include "../cpu/threads.hpp"

namespace {

const zokern::Isa& chosen(const std::string& name) {
    const zokern::Isa* isa = zokern::find_isa(name.c_str());
    if (!isa) throw pybind11::value_error("ZOKERN_CPU_ISA=" + name + ": this processor has none such; set scalar, avx2 or avx512, or unset it");
    return *isa;
}

void add_noise_(int storage, uintptr_t rows, size_t n_rows, const std::vector<std::tuple<uint64_t, uint32_t, uint32_t>>& keys,
                uintptr_t coefficients, size_t groups, uintptr_t decay, int threads, const std::string& isa) {
    const zokern::Isa& best = chosen(isa);
    std::vector<zokern::Key> plain;
    plain.reserve(keys.size());
    for (const auto& [seed, step, stream] : keys) plain.push_back({seed, step, stream});
    pybind11::gil_scoped_release release;
    zokern::add_noise(best, static_cast<zokern::Storage>(storage), reinterpret_cast<const zokern::Row*>(rows), n_rows, plain,
                      reinterpret_cast<const float*>(coefficients), groups, reinterpret_cast<const float*>(decay), threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "zokern's CPU kernels";
    m.def("isa", [](const std::string& name) { return std::string(chosen(name).name); });
    m.def("add_noise_", &add_noise_);
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
}
