// One launch for many tensors and many passes.
#include "device.hpp"
#include "replay_kernel.hpp"

namespace zokern {

const char* replay(const Replay& pass, Storage storage, int device, void* stream) {
    return on_device(device, [&] {
        with_storage(storage, [&](auto element) {
            using T = decltype(element);
            const auto kernel = pass.masked ? replay_kernel<T, true> : replay_kernel<T, false>;
            kernel<<<pass.n_spans, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(pass);
        });
    });
}

}  // namespace zokern
