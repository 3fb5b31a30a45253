"""How hard the attacks are: short among the tests, long with ZOKERN_LONG=1. ZOKERN_SEED=n chooses other moments and other damage."""

import os
import random

LONG = os.environ.get("ZOKERN_LONG") == "1"
SEED = int(os.environ.get("ZOKERN_SEED", "0"))


def times(short: int, long: int) -> int:
    return long if LONG else short


def dice(*what) -> random.Random:
    """Of an attack of this name: the same throws in every run with the same seed, whatever else runs."""
    return random.Random(repr((SEED, *what)))
