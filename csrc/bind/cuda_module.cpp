// zokern._cuda: addresses in, nothing out. Whoever calls has checked the arguments (zokern/ops). Imports without a driver: the CUDA
// runtime is linked statically and looks for one at the first call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../cuda/passes.hpp"

namespace {

using Key = std::tuple<uint64_t, uint32_t, uint32_t>;
using Keys = std::vector<Key>;

zokern::Key plain(const Key& key) { return {std::get<0>(key), std::get<1>(key), std::get<2>(key)}; }

void check(const char* message) {
    if (message) throw std::runtime_error(std::string("zokern's CUDA kernel could not be launched: ") + message);
}

const float* floats(uintptr_t address) { return reinterpret_cast<const float*>(address); }

zokern::Pass common(uintptr_t spans, uint32_t n_spans, uint32_t groups, bool masked, uintptr_t clock, uintptr_t keys, uintptr_t decay) {
    return {reinterpret_cast<const zokern::Span*>(spans), n_spans, groups, masked, reinterpret_cast<const uint32_t*>(clock),
            reinterpret_cast<const zokern::Key*>(keys), floats(decay)};
}

void add_noise_(int storage, uintptr_t spans, uint32_t n_spans, bool masked, const Keys& keys, uint32_t n_terms, uintptr_t all_keys,
                uintptr_t coefficients, uint32_t groups, uintptr_t decay, uintptr_t clock, int device, uintptr_t stream) {
    zokern::AddNoise pass{common(spans, n_spans, groups, masked, clock, all_keys, decay), n_terms, floats(coefficients), {}};
    for (size_t k = 0; k < keys.size(); ++k) pass.first_keys.set(k, plain(keys[k]));
    check(zokern::add_noise(pass, static_cast<zokern::Storage>(storage), device, reinterpret_cast<void*>(stream)));
}

void replay_(int storage, uintptr_t spans, uint32_t n_spans, bool masked, uintptr_t all_keys, uintptr_t instructions,
             uint32_t n_instructions, uintptr_t values, uint32_t groups, uintptr_t clock, int device, uintptr_t stream) {
    const zokern::Replay pass{common(spans, n_spans, groups, masked, clock, all_keys, 0), reinterpret_cast<const uint8_t*>(instructions),
                              floats(values), n_instructions};
    check(zokern::replay(pass, static_cast<zokern::Storage>(storage), device, reinterpret_cast<void*>(stream)));
}

void update_(int rule, int storage, int state, uintptr_t spans, uint32_t n_spans, bool masked, uintptr_t states, const Keys& keys,
             uint32_t n_keys, uintptr_t all_keys, uintptr_t a, uintptr_t b, uint32_t groups, uintptr_t decay, uintptr_t numbers,
             const Keys& rounding, uintptr_t clock, int device, uintptr_t stream) {
    const zokern::Pass all = common(spans, n_spans, groups, masked, clock, all_keys, decay);
    zokern::Update pass{all, reinterpret_cast<const int64_t*>(states), n_keys, floats(a), floats(b), floats(numbers), {}, {}, {}};
    for (size_t k = 0; k < keys.size(); ++k) pass.carried[k] = plain(keys[k]);
    pass.only_key.set(0, pass.carried[0]);
    for (size_t slot = 0; slot < rounding.size(); ++slot) pass.rounding.set(slot, plain(rounding[slot]));
    check(zokern::update(pass, static_cast<zokern::Rule>(rule), static_cast<zokern::Storage>(storage), static_cast<zokern::Storage>(state),
                         device, reinterpret_cast<void*>(stream)));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "zokern's CUDA kernels";
    m.def("add_noise_", &add_noise_);
    m.def("replay_", &replay_);
    m.def("update_", &update_);
    m.attr("interface") = zokern::kInterface;
    m.attr("tile") = zokern::kTile;
    m.attr("unrolled") = zokern::kUnrolled;
    m.attr("carried") = zokern::kCarried;
    m.attr("architectures") = ZOKERN_CUDA_ARCHITECTURES;
    m.attr("version") = ZOKERN_CUDA_VERSION;
}
