// zokern._cuda: addresses in, nothing out. Whoever calls has checked the arguments (zokern/ops). Imports without a driver: the CUDA
// runtime is linked statically and looks for one at the first call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../cuda/add_noise.hpp"
#include "../cuda/update.hpp"

namespace {

using Keys = std::vector<std::tuple<uint64_t, uint32_t, uint32_t>>;

void copy(const Keys& keys, zokern::Key* to, size_t most) {
    for (size_t k = 0; k < keys.size() && k < most; ++k) to[k] = {std::get<0>(keys[k]), std::get<1>(keys[k]), std::get<2>(keys[k])};
}

void check(const char* message) {
    if (message) throw std::runtime_error(std::string("zokern's CUDA kernel could not be launched: ") + message);
}

void add_noise_(int storage, uintptr_t spans, uint32_t n_spans, bool masked, const Keys& keys, uint32_t n_terms, uintptr_t all_keys,
                uintptr_t coefficients, uint32_t groups, uintptr_t decay, uintptr_t clock, int device, uintptr_t stream) {
    zokern::Pass pass{};
    pass.spans = reinterpret_cast<const zokern::Span*>(spans);
    pass.n_spans = n_spans;
    pass.n_terms = n_terms;
    pass.groups = groups;
    pass.masked = masked;
    pass.clock = reinterpret_cast<const uint32_t*>(clock);
    pass.coefficients = reinterpret_cast<const float*>(coefficients);
    pass.decay = reinterpret_cast<const float*>(decay);
    pass.keys = reinterpret_cast<const zokern::Key*>(all_keys);
    copy(keys, pass.first_keys, zokern::kUnrolled);
    check(zokern::add_noise(pass, static_cast<zokern::Storage>(storage), device, reinterpret_cast<void*>(stream)));
}

void update_(int rule, int storage, int state, uintptr_t spans, uint32_t n_spans, bool masked, uintptr_t states, const Keys& keys,
             uint32_t n_keys, uintptr_t all_keys, uintptr_t a, uintptr_t b, uint32_t groups, uintptr_t decay, uintptr_t numbers,
             const Keys& rounding, uintptr_t clock, int device, uintptr_t stream) {
    zokern::Update pass{};
    pass.spans = reinterpret_cast<const zokern::Span*>(spans);
    pass.states = reinterpret_cast<const int64_t*>(states);
    pass.n_spans = n_spans;
    pass.n_keys = n_keys;
    pass.masked = masked;
    pass.groups = groups;
    pass.clock = reinterpret_cast<const uint32_t*>(clock);
    pass.a = reinterpret_cast<const float*>(a);
    pass.b = reinterpret_cast<const float*>(b);
    pass.decay = reinterpret_cast<const float*>(decay);
    pass.numbers = reinterpret_cast<const float*>(numbers);
    pass.keys = reinterpret_cast<const zokern::Key*>(all_keys);
    copy(keys, pass.carried, zokern::kCarried);
    copy(rounding, pass.rounding, zokern::kSlots);
    check(zokern::update(pass, static_cast<zokern::Rule>(rule), static_cast<zokern::Storage>(storage), static_cast<zokern::Storage>(state),
                         device, reinterpret_cast<void*>(stream)));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "zokern's CUDA kernels";
    m.def("add_noise_", &add_noise_);
    m.def("update_", &update_);
    m.attr("tile") = zokern::kTile;
    m.attr("unrolled") = zokern::kUnrolled;
    m.attr("carried") = zokern::kCarried;
    m.attr("architectures") = ZOKERN_CUDA_ARCHITECTURES;
    m.attr("version") = ZOKERN_CUDA_VERSION;
}
