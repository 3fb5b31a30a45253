"""The constants of the noise specification (docs/noise_spec.md). This file imports nothing; every backend reads it or repeats it."""

SPEC_VERSION = 2
"""The number of the noise specification: with another one, the same keys make other noise."""

# Philox4x32-7 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC11).
ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # of counter words 0 and 2
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)

# stream = purpose << 24 | probe
PERTURBATION, ANCHOR, MASK, ROUNDING, SIGNS, ANCHOR_SIGNS = range(6)
NOISES = {"gaussian": (PERTURBATION, ANCHOR), "rademacher": (SIGNS, ANCHOR_SIGNS)}  # what makes each kind: at theta, at an anchor
CHECK = 254  # counted down from 255, away from those of steps
WEIGHTS = 0xFFFFFF  # the probe under which weights are rounded: no state of an optimizer has it

# The first element of every tensor of a layout is a multiple of this.
ALIGNMENT = 4096

# From two words to two normals. Floats are given by their bits.
RADIUS_BASE = 0x0C800000  # v = f32((a >> 9) + RADIUS_BASE), an even multiple of 2^-126
RADIUS_SHIFT = 0x8C7FFFFF  # u = v + f32(RADIUS_SHIFT), an odd multiple of 2^-126
MANTISSA = 0x007FFFFF
ONE = 0x3F800000
EXPONENT_SCALE = 0xB4317218  # -2 ln(2) / 2^23: turns the bits of u into -2 ln(u), up to Q
RSQRT_GUESS = 0x5F200000  # 1/sqrt(y) is near f32(RSQRT_GUESS - (bits(y) >> 1))
ANGLE_BASE = 0x40000000  # x = f32((b >> 9) + ANGLE_BASE) - 3, in [-1, 1)

# Polynomials, coefficients in ascending powers, evaluated by Horner with one fma each.
Q = (0x4215F11D, 0xC0E2D182, 0x40ECFA7A, 0xC091CB97, 0x3FE0CF3F, 0xBEC34BD7, 0x3D11E18F)
P = (0x401CF931, 0xC045421E, 0x4014A49E, 0xBF31B09B)
C = (0x3F7FFFFF, 0xBF9DE9D3, 0x3E81DE83, 0xBCAA7B0D, 0x3A60F833)
S = (0x3FC90FAE, 0xBF25593C, 0x3DA2AE79, 0xBB8DFCA5)
