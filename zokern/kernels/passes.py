"""What kernels are told of passes in numbers: csrc/noise/passes.hpp has them too."""

import torch

STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

# A run of passes is a list of instructions, each with a value v for every group. What one does is any of these, in this order:
NEXT_KEY = 1  # z is made of the next key; without it, z stays as it is
DECAY = 2  # x = v x; without it, x = fma(v, z, x)
ROUND = 4  # x is rounded to the storage type: a pass ends
