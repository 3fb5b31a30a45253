"""Models in GGUF, the format of llama.cpp: transformers reads and dequantises them, and from then on they are like any other."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import BadInput, first_line, need
from ..tasks.rows import GGUF

MAGIC = b"GGUF"
READERS = ("gguf", "accelerate")  # packages that transformers reads it with
SCALED = (b"rope_freqs.weight", b"rope_factors_long.weight")  # tensors of files whose positions are scaled
NAMES = 1 << 26  # bytes at the beginning of a file, among which the names of its tensors are
ORIGINAL = "pass the original checkpoint, a folder with config.json"


def is_gguf(path: str | Path) -> bool:
    """Whether a model is meant as such a file: by its name, or by how it begins."""
    path = Path(path).expanduser()
    if path.is_dir():
        return False
    return path.suffix.lower() == GGUF or path.is_file() and _beginning(path, len(MAGIC)) == MAGIC


@contextmanager
def alone(path: str | Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (folder, options of ``from_pretrained``) by which transformers reads a file, and of what lies beside it, such as the tokenizer
    of another model, nothing.

    Args:
        what: what errors call the model.

    Raises:
        BadInput: it is no such file, or a package is missing.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise BadInput(f"{what} does not exist: check the path")
    begins = _beginning(path, NAMES)
    if not begins.startswith(MAGIC):
        fault = f"it begins with {begins[:4]!r}" if begins else "it is empty"
        raise BadInput(f"{what} is no GGUF file ({fault}): copy or download it again, or {ORIGINAL}")
    for package in READERS:
        if find_spec(package) is None:
            raise BadInput(f"{what} is GGUF, which is read by {package}, and that is not installed: pip install {package}")
    if any(name in begins for name in SCALED):
        leaves = "scales its rotary positions, which transformers leaves out as it reads GGUF: texts of thousands of tokens suffer"
        warnings.warn(f"{what} {leaves}; if yours are, {ORIGINAL}", RuntimeWarning, stacklevel=2)
    with TemporaryDirectory(prefix="zokern-") as folder:
        link = Path(folder) / "model.gguf"  # in its absolute path: of another such name, transformers takes the working directory's file
        link.symlink_to(path)
        yield folder, {"gguf_file": str(link)}


def _beginning(path: Path, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError as error:
        raise BadInput(f"{str(path)!r} cannot be read ({error.strerror}): make it readable") from None


def loading(config: Any) -> dict[str, Any]:
    """More options of a model's ``from_pretrained``: its configuration, which takes seconds to read again, and that no weight stays packed
    as in the file, with which a newer transformers may compute."""
    packed = getattr(need("transformers"), "GgufConfig", None)
    return {"config": config} | ({"quantization_config": packed(dequantize=True)} if packed else {})


def made_ordinary(model: Any, path: str) -> None:
    """A model that was read so is trained and saved like any other: transformers takes it for a quantised one, which can be neither."""
    model.hf_quantizer, model.is_quantized = None, False
    vars(model.config).pop("quantization_config", None)
    model.name_or_path = model.config.name_or_path = path  # by which an adapter knows its base model


def why(what: str, error: Exception) -> str:
    """Why transformers, or the package gguf, could not read a file."""
    said, reason = str(error), re.sub(r"[^\s'\"]*/zokern-\w+/model\.gguf", "it", first_line(error))  # where ``alone`` has it
    if "Dequantization" in said or "GGMLQuantizationType" in said or "ggml type" in said:
        cure = f"have llama.cpp make another of it, llama-quantize --allow-requantize IN OUT f16, or {ORIGINAL}"
        return f"{what} is quantised in a way that cannot be read ({reason}): {cure}"
    if isinstance(error, MemoryError) or "llocate" in said:
        return f"{what} is too large for the memory here, where its weights are float32, or damaged ({reason}): pass a smaller model"
    if "not supported yet" in said or "Unknown gguf model_type" in said:
        return f"{what} is of an architecture that cannot be read from GGUF ({reason}): pip install -U transformers gguf, or {ORIGINAL}"
    return f"{what} is a damaged GGUF file, or not all of one ({reason}): copy or download it again"


def lacking(what: str, name: str) -> str:
    """Of a file without some weights of its model."""
    return f"{what} lacks {name} of the model: pass all of it, of parts what llama.cpp's llama-gguf-split --merge makes, or {ORIGINAL}"
