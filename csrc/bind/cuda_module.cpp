// zokern._cuda: addresses in, nothing out. Whoever calls has checked the arguments (zokern/ops). Imports without a driver: the CUDA
// runtime is linked statically and looks for one at the first call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
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

/// A device address, or a few numbers.
using Numbers = std::pair<uintptr_t, std::vector<float>>;

zokern::Numbers plain(const Numbers& numbers) {
    zokern::Numbers all{floats(numbers.first), {}};
    std::copy(numbers.second.begin(), numbers.second.end(), all.here);
    return all;
}

/// What every function is given first: storage type; spans, how many, whether some are masked, pitched; whether the noise is signs; the
/// first keys, how many there are, where all of them are; groups; clock; device, stream.
using Common =
    std::tuple<int, uintptr_t, uint32_t, bool, bool, bool, Keys, uint32_t, uintptr_t, uint32_t, uintptr_t, int, uintptr_t>;

struct Launch {
    zokern::Pass pass{};
    zokern::Storage storage;
    int device;
    void* stream;

    explicit Launch(const Common& common) {
        int type;
        uintptr_t spans, all_keys, clock, on;
        Keys keys;
        std::tie(type, spans, pass.n_spans, pass.masked, pass.pitched, pass.signs, keys, pass.n_keys, all_keys, pass.groups, clock, device,
                 on) = common;
        storage = static_cast<zokern::Storage>(type), stream = reinterpret_cast<void*>(on);
        pass.spans = reinterpret_cast<const zokern::Span*>(spans), pass.clock = reinterpret_cast<const uint32_t*>(clock);
        pass.keys = reinterpret_cast<const zokern::Key*>(all_keys);
        for (size_t k = 0; k < keys.size(); ++k) pass.carried[k] = plain(keys[k]);
    }
};

void add_noise_(const Common& common, int stored, const Numbers& coefficients, const std::optional<Numbers>& decay,
                const std::optional<Key>& rounding) {
    const Launch launch(common);
    zokern::AddNoise pass{launch.pass, {}, plain(coefficients), decay.has_value(), rounding.has_value(), {}, {}};
    for (int k = 0; k < zokern::kUnrolled; ++k) pass.first_keys.set(k, pass.carried[k]);
    if (decay) pass.decay = plain(*decay);
    if (rounding) pass.rounding.set(0, plain(*rounding));
    check(zokern::add_noise(pass, launch.storage, static_cast<zokern::Storage>(stored), launch.device, launch.stream));
}

void replay_(const Common& common, uintptr_t instructions, uint32_t n_instructions, uintptr_t values) {
    const Launch launch(common);
    const zokern::Replay pass{launch.pass, reinterpret_cast<const uint8_t*>(instructions), floats(values), n_instructions};
    check(zokern::replay(pass, launch.storage, launch.device, launch.stream));
}

void update_(const Common& common, int rule, int state, uintptr_t states, const Numbers& a, const Numbers& b,
             const std::optional<Numbers>& decay, const Numbers& numbers, const Keys& state_rounding,
             const std::optional<Key>& rounding) {
    const Launch launch(common);
    const auto* slots = reinterpret_cast<const int64_t*>(states);
    zokern::Update pass{launch.pass, {}, slots, plain(a), plain(b), decay.has_value(), rounding.has_value(), {}, plain(numbers), {}, {}};
    pass.only_key.set(0, pass.carried[0]);
    if (decay) pass.decay = plain(*decay);
    if (rounding) pass.rounding.set(0, plain(*rounding));
    for (size_t slot = 0; slot < state_rounding.size(); ++slot) pass.state_rounding.set(slot, plain(state_rounding[slot]));
    check(zokern::update(pass, static_cast<zokern::Rule>(rule), launch.storage, static_cast<zokern::Storage>(state), launch.device,
                         launch.stream));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "zokern's CUDA kernels";
    m.def("add_noise_", &add_noise_);
    m.def("replay_", &replay_);
    m.def("update_", &update_);
    m.attr("interface") = zokern::kInterface;
    m.attr("tile") = zokern::kTile;
    m.attr("carried") = zokern::kCarried;
    m.attr("architectures") = ZOKERN_CUDA_ARCHITECTURES;
    m.attr("version") = ZOKERN_CUDA_VERSION;
}
