"""Every tolerance of the tests that is no equality of bits, with its reason. None is looser anywhere else."""

import torch

# One rounding to the dtype of a value of size 1 (half a unit in the last place), and the float32 roundings of up to three fmas
# and a decay before it (4 x 2^-24).
ROUNDING = {torch.float32: 5 * 2.0**-24, torch.bfloat16: 2.0**-8 + 2.0**-22, torch.float16: 2.0**-11 + 2.0**-22}

# Weights after the moves of a step of up to two queries (+, -, +, -, back) in float32: five roundings of a value below 8.
RESTORED = 5 * 2.0**-22
