// zokern._cuda: addresses in, nothing out. Whoever calls has checked the arguments (zokern/ops). Imports without a driver: the CUDA
// runtime is linked statically and looks for one at the first call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../cuda/add_noise.hpp"

namespace {

using Keys = std::vector<std::tuple<uint64_t, uint32_t, uint32_t>>;

void add_noise_(int storage, uintptr_t spans, uint32_t n_spans, uint32_t n_terms, const Keys& keys, uintptr_t all_keys,
                uintptr_t coefficients, uint32_t groups, uintptr_t decay, uintptr_t clock, int device, uintptr_t stream) {
    zokern::Pass pass{};
    pass.spans = reinterpret_cast<const zokern::Span*>(spans);
    pass.n_spans = n_spans;
    pass.n_terms = n_terms;
    pass.groups = groups;
    pass.clock = reinterpret_cast<const uint32_t*>(clock);
    pass.coefficients = reinterpret_cast<const float*>(coefficients);
    pass.decay = reinterpret_cast<const float*>(decay);
    pass.keys = reinterpret_cast<const zokern::Key*>(all_keys);
    for (size_t k = 0; k < keys.size() && k < zokern::kUnrolled; ++k)
        pass.first_keys[k] = {std::get<0>(keys[k]), std::get<1>(keys[k]), std::get<2>(keys[k])};
    if (const char* message = zokern::add_noise(pass, static_cast<zokern::Storage>(storage), device, reinterpret_cast<void*>(stream)))
        throw std::runtime_error(std::string("zokern's CUDA kernel could not be launched: ") + message);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "zokern's CUDA kernels";
    m.def("add_noise_", &add_noise_);
    m.attr("tile") = zokern::kTile;
    m.attr("unrolled") = zokern::kUnrolled;
    m.attr("architectures") = ZOKERN_CUDA_ARCHITECTURES;
    m.attr("version") = ZOKERN_CUDA_VERSION;
}
