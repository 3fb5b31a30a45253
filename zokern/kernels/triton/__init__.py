"""The Triton backend. Triton itself is imported by the first call of ``status`` or of a pass, not with this package."""

import warnings

# The kernels pass keys and coefficients one by one, because tuples are not values there yet.
OLDEST = (3, 2)
# Triton 3.2 and 3.3 take the upper half of a product of Philox for its sign in a few kernels: fp16 by many masked terms, for one. Their
# interpreter does not.
COMPILES = (3, 4)


def status() -> str:
    try:
        import triton
    except ImportError as error:
        return f"not installed ({error}): pip install triton"
    version = tuple(map(int, triton.__version__.split(".")[:2]))
    if version < OLDEST:
        return f"not able to run on triton {triton.__version__}: pip install 'triton>={'.'.join(map(str, OLDEST))}'"
    import torch

    from .noise import INTERPRETED, trial

    if INTERPRETED:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trial[(1,)](1)
        except Exception as error:  # Triton 3.6 and older do not understand NumPy 2.4
            return (
                f"not able to run in the interpreter of triton {triton.__version__} ({error}): pip install 'numpy<2.4', or a newer triton"
            )
        return "available: interpreter"
    if version < COMPILES:
        cure = "pip install 'torch>=2.8' with its triton, or use cuda"
        return f"not able to run on triton {triton.__version__}, which compiles wrong code: {cure}"
    if torch.cuda.is_available():
        return "available"
    return "no GPU: torch.cuda.is_available() is False; set TRITON_INTERPRET=1 to run the kernels in Triton's interpreter"


def devices():
    from .noise import INTERPRETED

    return ("cpu",) if INTERPRETED else ("cuda",)


def add_noise_(table, keys, coefficients, decay, rounding=None):
    from .add_noise import add_noise_

    add_noise_(table, keys, coefficients, decay, rounding)


def replay_(table, keys, instructions, values):
    from .replay import replay_

    replay_(table, keys, instructions, values)


def update_(table, rule, keys, a, b, decay, numbers, state, state_rounding, rounding=None):
    from .update import update_

    update_(table, rule, keys, a, b, decay, numbers, state, state_rounding, rounding)
