// One launch for many tensors.
#include "device.hpp"
#include "update_kernel.hpp"

namespace zokern {
namespace {

template <class T, class S, class R>
auto kernel_of(const Update& pass) {
    return pass.n_keys == 1 && !pass.masked ? update_kernel<T, S, R, true> : update_kernel<T, S, R, false>;
}

template <class T, class R>
auto kernel_of(const Update& pass, Storage state) {
    return state == Storage::bfloat16 ? kernel_of<T, __nv_bfloat16, R>(pass) : kernel_of<T, float, R>(pass);
}

}  // namespace

const char* update(const Update& pass, Rule rule, Storage storage, Storage state, int device, void* stream) {
    return launch(pass, storage, device, stream, [&](auto element) {
        using T = decltype(element);
        switch (rule) {
            case Rule::momentum: return kernel_of<T, Momentum>(pass, state);
            case Rule::adam: return kernel_of<T, Adam>(pass, state);
            case Rule::amsgrad: return kernel_of<T, Amsgrad>(pass, state);
            default: return kernel_of<T, float, Sign>(pass);  // which has no state
        }
    });
}

}  // namespace zokern
