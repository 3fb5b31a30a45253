// The CPU backend for any processor.
#include "lanes_scalar.hpp"
#include "kernels.hpp"

namespace zokern {
const Isa& scalar() {
    static constexpr Isa isa{"scalar", kernels<float>(), kernels<bfloat16>(), kernels<float16>()};
    return isa;
}
}  // namespace zokern
