"""A safetensors file: where its tensors lie in it, whose it is to write, and how one is written tensor by tensor."""

import fcntl
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from ..documents import of_json
from ..errors import BadInput, need, refusing, writing
from .marker import Marker

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LINE = 64  # bytes: the first tensor of a file that is written here begins with a cache line
PIECE = 1 << 24  # elements of a tensor that are cast at a time


class Entry(NamedTuple):
    """A tensor of a file: its bytes are those from ``begin`` to ``end``."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def entries(path: Path) -> dict[str, Entry]:
    """Where the tensors of a safetensors file lie in it.

    Raises:
        BadInput: it is none, or not a whole one, or holds a tensor of a dtype or at an offset that torch cannot use where it lies.
    """
    safetensors = need("safetensors")
    with refusing(f"{str(path)!r} is no whole safetensors file", "bring it here again", (safetensors.SafetensorError, OSError)):
        # This checks the header: tensors one after the other, of their shape's size, up to the end. For torch it would map the file as
        # memory of this process, which is refused where that does not fit.
        safetensors.safe_open(str(path), "np")
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    found = {}
    for name, it in header.items():
        dtype, (begin, end) = DTYPES.get(it["dtype"]), (8 + size + offset for offset in it["data_offsets"])
        if dtype is None:
            raise BadInput(f"{str(path)!r}: {name!r} is {it['dtype']}: write the file again in float32, bfloat16 or float16")
        if begin % dtype.itemsize:
            cure = "write it again with zokern.mapped.write"
            raise BadInput(f"{str(path)!r}: {name!r} begins at byte {begin}, no multiple of its {dtype.itemsize} bytes an element: {cure}")
        found[name] = Entry(dtype, tuple(it["shape"]), begin, end)
    return found


def tensors_of(mapped: np.memmap, found: dict[str, Entry]) -> dict[str, torch.Tensor]:
    """The tensors of a mapped file. Each has a storage of its own, which begins where it does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)  # where the file is mapped to be read
        return {name: torch.from_numpy(mapped[it.begin : it.end]).view(it.dtype).view(it.shape) for name, it in found.items()}


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file where they lie, to be looked at only. Errors as of ``entries``."""
    found = entries(path)
    return tensors_of(np.memmap(path, mode="r"), found)


def files_of(path: Path) -> tuple[Path, list[Path]]:
    """-> (the file that stands for all of them, the safetensors files) of a path: of a file, or of a folder that holds one, or an index.

    Raises:
        BadInput: a folder without, or with several and no index; a damaged index.
    """
    if not path.is_dir():
        return path, [path]
    if (path / SINGLE).is_file():
        return path / SINGLE, [path / SINGLE]
    if (path / INDEX).is_file():
        with refusing(f"{str(path / INDEX)!r} cannot be read", "bring it here again", (OSError, ValueError, LookupError, TypeError)):
            index: Any = of_json((path / INDEX).read_text(encoding="utf-8"))
            shards = sorted(set(index["weight_map"].values()))
            if not shards or any(Path(shard).name != shard for shard in shards):
                raise ValueError("its weight_map names no files beside it")
        return path / INDEX, [path / shard for shard in shards]
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        cure = "pass a file, or a folder as save_pretrained of transformers writes it"
        raise BadInput(f"{str(path)!r} holds {len(found)} safetensors files, and no {SINGLE} or {INDEX}: {cure}")
    return found[0], found


def opened(path: Path) -> BinaryIO:
    """A file for reading and writing, which is this process's alone until it is closed.

    Raises:
        BadInput: it is not there, cannot be written, or is another's.
    """
    if not path.is_file():
        raise BadInput(f"{str(path)!r} is no file: check the path")
    with writing(path):
        file = open(path, "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            raise BadInput(f"{str(path)!r} is open for writing already: wait until that is closed, or take a copy") from None
        raise BadInput(f"{str(path)!r} cannot be locked ({error.strerror}): put it on a local disk") from None
    return file


def write(path: str | Path, tensors: Mapping[str, torch.Tensor], values: Callable[[str], torch.Tensor] | None = None) -> None:
    """Write a safetensors file, whole or not at all, tensor by tensor: no more than one of them is held at a time.

    Args:
        path: of the file, which replaces one that is there; its folder is made.
        tensors: by name. With ``values`` their shapes and dtypes are all that is looked at: they may be on the meta device.
        values: name -> the values of a tensor, in any dtype; asked for when they are written. Default None: those of ``tensors``.

    Raises:
        BadInput: the file is open for writing in a ``MappedWeights``.
        Unwritable: there is no room, or another fault. What is there stays as it is.
        ValueError: a tensor of a dtype that a mapped file does not hold, or values of another shape than that of their tensor.
    """
    for name, like in tensors.items():
        if like.dtype not in NAMES:
            raise ValueError(f"tensors[{name!r}] is {like.dtype}: write it in float32, bfloat16 or float16")
    path = Path(path).expanduser().absolute()
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)  # each begins at a multiple of its element's size
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        like, begin = tensors[name], end
        end += like.numel() * like.dtype.itemsize
        header[name] = {"dtype": NAMES[like.dtype], "shape": list(like.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % LINE)
    if path.exists():
        opened(path).close()
    draft = path.with_name(f".zokern-draft.{path.name}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(draft, "wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for name in order:
                    _write_values(file, name, tensors[name], (values or tensors.__getitem__)(name))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException as error:
            draft.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(path)) from None
            raise
        Marker(path).remove()


def _write_values(file: BinaryIO, name: str, like: torch.Tensor, values: torch.Tensor) -> None:
    if values.shape != like.shape:
        raise ValueError(f"the values of {name!r} have shape {tuple(values.shape)}, and {tuple(like.shape)} is to be written: pass such")
    for part in torch.split(values.detach().reshape(-1), PIECE):
        file.write(part.to("cpu", like.dtype).view(torch.uint8).numpy().data)
