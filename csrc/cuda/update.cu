// One launch for many tensors.
#include "device.hpp"
#include "update_kernel.hpp"

namespace zokern {
namespace {

template <class T, class S, class R>
void launch(const Update& pass, cudaStream_t stream) {
    const UpdateLaunch p = launch_of(pass);
    if (p.n_keys == 1 && !pass.masked)
        update_kernel<T, S, R, true><<<pass.n_spans, kThreads, 0, stream>>>(p);
    else
        update_kernel<T, S, R, false><<<pass.n_spans, kThreads, 0, stream>>>(p);
}

template <class T, class R>
void launch(const Update& pass, Storage state, cudaStream_t stream) {
    if constexpr (R::slots > 0) {
        if (state == Storage::bfloat16) return launch<T, __nv_bfloat16, R>(pass, stream);
    }
    launch<T, float, R>(pass, stream);
}

template <class T>
void launch(const Update& pass, Rule rule, Storage state, cudaStream_t stream) {
    switch (rule) {
        case Rule::sign: return launch<T, Sign>(pass, state, stream);
        case Rule::momentum: return launch<T, Momentum>(pass, state, stream);
        case Rule::adam: return launch<T, Adam>(pass, state, stream);
        case Rule::amsgrad: return launch<T, Amsgrad>(pass, state, stream);
    }
}

}  // namespace

const char* update(const Update& pass, Rule rule, Storage storage, Storage state, int device, void* stream) {
    return on_device(device, [&] {
        with_storage(storage, [&](auto element) { launch<decltype(element)>(pass, rule, state, static_cast<cudaStream_t>(stream)); });
    });
}

}  // namespace zokern
