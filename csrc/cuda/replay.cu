// One launch for many tensors and many passes.
#include "device.hpp"
#include "replay_kernel.hpp"

namespace zokern {

const char* replay(const Replay& pass, Storage storage, int device, void* stream) {
    return launch(pass, storage, device, stream, [&](auto element) { return kernel_of<decltype(element)>(pass); });
}

}  // namespace zokern
