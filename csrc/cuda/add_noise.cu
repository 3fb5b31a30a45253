// One launch for many tensors.
#include "add_noise_kernel.hpp"
#include "device.hpp"

namespace zokern {
namespace {

/// The kernel of a masked table always multiplies by decay: beside the mask that costs little, and it saves a third of the kernels.
template <class T, int kTerms>
auto kernel_of(const AddNoise& pass) {
    return pass.masked  ? add_noise_kernel<T, kTerms, true, true>
           : pass.decay ? add_noise_kernel<T, kTerms, true, false>
                        : add_noise_kernel<T, kTerms, false, false>;
}

}  // namespace

const char* add_noise(const AddNoise& pass, Storage storage, int device, void* stream) {
    return launch(pass, storage, device, stream, [&](auto element) {
        using T = decltype(element);
        return pass.n_terms == 1 ? kernel_of<T, 1>(pass) : pass.n_terms == 2 ? kernel_of<T, 2>(pass) : kernel_of<T, 0>(pass);
    });
}

}  // namespace zokern
