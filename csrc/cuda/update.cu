// One launch for many tensors.
#include "device.hpp"
#include "update_kernel.hpp"

namespace zokern {

const char* update(const Update& pass, Rule rule, Storage storage, Storage state, int device, void* stream) {
    return launch(pass, storage, device, stream, [&](auto element) { return kernel_of<decltype(element)>(pass, rule, state); });
}

}  // namespace zokern
