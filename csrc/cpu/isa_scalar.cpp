// The CPU backend for any processor.
#include "lanes_scalar.hpp"
#include "add_noise.hpp"

namespace zokern {
const Isa& scalar() {
    static constexpr Isa isa{"scalar", add_noise<float>, add_noise<bfloat16>, add_noise<float16>};
    return isa;
}
}  // namespace zokern
