"""Every tolerance of the tests that is no equality of bits, with its reason. None is looser anywhere else."""

import torch

# One rounding to the dtype of a value of size 1 (half a unit in the last place), and the float32 roundings of up to three fmas
# and a decay before it (4 x 2^-24).
ROUNDING = {torch.float32: 5 * 2.0**-24, torch.bfloat16: 2.0**-8 + 2.0**-22, torch.float16: 2.0**-11 + 2.0**-22}

# Weights after the moves of a step of up to two queries (+, -, +, -, back) in float32: five roundings of a value below 8.
RESTORED = 5 * 2.0**-22

# The mean of n errors of stochastic rounding, in units of the spacing, is within this / sqrt(n): each error's standard deviation is at
# most a half, and 5 of them is a false alarm in 1.7 million.
STOCHASTIC = 2.5

# Moments after three steps: up to four float32 roundings each, in units of the largest value.
STATE = 12 * 2.0**-24
