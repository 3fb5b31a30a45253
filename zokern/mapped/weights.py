"""The weights of a model as memory-mapped tensors of safetensors files."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from .. import memory
from ..errors import BadInput, writing
from .file import entries, files_of, opened, tensors_of
from .marker import UPDATING, WRITTEN, Marker
from .match import CURE, matched


class MappedWeights:
    """A model's parameters as memory-mapped tensors of safetensors files: read where they lie, updated where they lie.

    The system reads pages of the files as they are looked at, keeps them while there is room, and writes changed ones back: a process needs
    no memory of its own for them. ``attach`` makes the parameters of a model these tensors. Each pass that changes them belongs into
    ``writing``, so that a process that ends in the middle of one is found out at the next opening.

    A mapped page that the disk has no room for would end the process: files are to be written in full (``zokern.mapped.write``, ``cp
    --sparse=never --reflink=never``), on a local disk. They are this object's alone until it is closed.

    Args:
        path: a safetensors file, or a folder that holds one, or ``model.safetensors.index.json`` and its shards.

    Attributes:
        path: as given, absolute.
        tensors: name -> tensor, of all files.

    Raises:
        BadInput: there are no such files, they are damaged, sparse, read-only, another process's, or not as a whole update left them.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser().absolute()
        first, paths = files_of(self.path)
        self._marker = Marker(first)
        self._files: list[BinaryIO] = []
        self._maps: list[np.memmap] = []
        self.tensors: dict[str, torch.Tensor] = {}
        try:
            for file in paths:
                self._map(file)
            self._marker.read()
        except BaseException:
            self._release()
            raise

    def _map(self, path: Path) -> None:
        self._files.append(file := opened(path))
        found = entries(path)
        status = path.stat()
        if status.st_blocks * 512 < status.st_size:
            cure = "write it in full, as cp --sparse=never does"
            raise BadInput(f"{str(path)!r} is sparse: {status.st_blocks * 512} of {status.st_size} bytes have a place on the disk: {cure}")
        if double := found.keys() & self.tensors.keys():
            raise BadInput(f"{str(path)!r} holds {min(double)!r}, and so does another file beside it: pass weights that are there once")
        with writing(path):
            self._maps.append(np.memmap(file, mode="r+"))
        self.tensors |= tensors_of(self._maps[-1], found)

    @torch.no_grad()
    def attach(self, model: torch.nn.Module) -> None:
        """Make the parameters of a model these tensors, and bring the buffers that it saves into it.

        Parameters of the meta device, as ``accelerate.init_empty_weights(include_buffers=False)`` makes them, are replaced in all modules
        that share them; others keep being the same objects.

        Args:
            model: on whatever device.

        Raises:
            BadInput: the files lack a parameter, hold other tensors, or another shape or dtype; a buffer of the model has no values. The
                model is as it was then.
        """
        where = repr(str(self.path))
        found, left = matched(model, {name: t.shape for name, t in self.tensors.items()}, where)
        for tensor, own, name, others in found:
            if others:
                why = "which the model shares, so that an update of one would leave the other behind"
                raise BadInput(f"{where} holds {name!r} and {others[0]!r}, {why}: pass a file with one of them")
            given, usable = self.tensors[name].dtype, self.tensors[name].dtype in memory.DTYPES
            if isinstance(tensor, torch.nn.Parameter) and not (usable and (tensor.is_meta or tensor.dtype == given)):
                cure = f"pass model.to({given})" if usable else "write it in float32, bfloat16 or float16"
                raise BadInput(f"{where} holds {name!r} in {given}, and {own!r} of the model is {tensor.dtype}: {cure}")
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise BadInput(f"{where} holds {left[0]!r}{more}, which no parameter of the model takes: {CURE}")
        if meta := [name for name, b in model.named_buffers() if b.is_meta]:
            cure = "make the model under accelerate.init_empty_weights(include_buffers=False)"
            raise BadInput(f"the buffer {meta[0]!r} of the model is on the meta device and has no values: {cure}")
        made = {}
        for tensor, _, name, _ in found:
            if not isinstance(tensor, torch.nn.Parameter):
                tensor.copy_(self.tensors[name])
            elif tensor.is_meta:
                made[id(tensor)] = torch.nn.Parameter(self.tensors[name], requires_grad=tensor.requires_grad)
            else:
                tensor.data = self.tensors[name]
        for module in model.modules():
            for name, p in module._parameters.items():
                module._parameters[name] = made.get(id(p), p)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around one whole update: all the passes that bring the weights from one step to the next.

        Raises:
            BadInput: an update before it was broken off by an error.
            Unwritable: there is no room for the marker. Nothing is changed then.
        """
        if self._marker.state == UPDATING:
            cure = "open it again after its base weights are brought back"
            raise BadInput(f"{str(self.path)!r}: an update was broken off, or is under way: {cure}, and make the run's steps again")
        self._marker.write(UPDATING)
        yield
        self._marker.write(WRITTEN)

    def sync(self) -> None:
        """Wait until all updates are on the disk. Nothing is done after one that was broken off."""
        if self._marker.state == WRITTEN:
            with writing(self.path):
                for mapped in self._maps:
                    mapped.flush()
            self._marker.remove()

    def close(self) -> None:
        """``sync``, and let go of the files; the tensors go on showing them, and are not to be changed any more."""
        if self._files:
            self.sync()
            self._release()

    def _release(self) -> None:
        for file in self._files:
            fcntl.flock(file, fcntl.LOCK_UN)  # a mapping would hold on to it
            file.close()
        self._files, self._maps, self.tensors = [], [], {}
