"""A model whose weights live in a file: made without them, given a copy of a checkpoint's, and saved, never all of it in memory."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import BadInput, need
from ..mapped import MappedWeights, write
from ..mapped.file import files_of, read
from ..mapped.match import Match, matched

FILES = ["*.json", "*.safetensors", "*.py", "*.txt", "*.model"]  # of a model on the hub
STATUS = Path("/proc/self/status")


def opened(
    auto: Any, path: str, dtype: torch.dtype, at: Path | None, trust: bool, labels: dict[str, Any]
) -> tuple[Any, MappedWeights | None]:
    """The model of a checkpoint, and the file that it computes with.

    Args:
        path: a local folder, or a hub id. at: of the new file. None: the weights are only looked at, where the checkpoint has them.
        trust: run the code that comes with it. labels: of its classes, for its configuration.
    """
    folder = path if Path(path).is_dir() else need("huggingface_hub").snapshot_download(path, allow_patterns=FILES)
    config = need("transformers").AutoConfig.from_pretrained(folder, trust_remote_code=trust, **labels)
    model = without_weights(auto, config, dtype, trust_remote_code=trust)
    if at is not None:
        return model, working_copy(folder, model, at)
    look_at(folder, model)
    return model, None


def without_weights(auto: Any, config: Any, dtype: torch.dtype, **options: Any) -> Any:
    """A model in evaluation mode whose parameters are on the meta device; its buffers have the values that ``from_pretrained`` gives them.

    Args:
        auto: AutoModelForCausalLM, or another of transformers'.
        config: of a model. dtype: of the parameters, and of buffers that are no integers.
        options: of ``auto.from_config``.
    """
    with need("accelerate").init_empty_weights(include_buffers=False):
        model = auto.from_config(config, dtype=torch.float32, **options)
    model.tie_weights()  # each parameter was registered anew
    return model.to(dtype).eval()


def working_copy(folder: str | Path, model: Any, path: str | Path) -> MappedWeights:
    """Copy the weights of a checkpoint into a file of their own, in the model's dtype and under its names, and make them the model's.

    Args:
        folder: of a checkpoint in safetensors, as ``save_pretrained`` writes it; it is read tensor by tensor.
        model: as ``without_weights`` makes it. path: of the new file, which the model then computes with.

    Raises:
        BadInput: the checkpoint has no safetensors, is not whole, or lacks a parameter of the model, such as a new head's.
        Unwritable: there is no room for the file, or another fault.
    """
    found, values = _found(Path(folder), model)
    write(path, {match.own: match.tensor for match in found}, values.__getitem__)
    weights = MappedWeights(path)
    weights.attach(model)
    return weights


@torch.no_grad()
def look_at(folder: str | Path, model: Any) -> None:
    """Make the weights of a checkpoint a model's, as ``without_weights`` makes it, where they lie: for a model that is not changed. Those
    of another dtype are cast in memory. Errors as of ``working_copy``."""
    found, values = _found(Path(folder), model)
    made = {}
    for tensor, own, *_ in found:
        if isinstance(tensor, torch.nn.Parameter):
            made[id(tensor)] = torch.nn.Parameter(values[own].to(tensor.dtype), requires_grad=tensor.requires_grad)
        else:
            tensor.copy_(values[own])
    for module in model.modules():
        for name, p in module._parameters.items():
            module._parameters[name] = made.get(id(p), p)


def load(weights: MappedWeights, model: Any, folder: str | Path) -> None:
    """Bring the weights of a checkpoint, as ``save`` writes it, into the file that a model computes with."""
    found, values = _found(Path(folder), model)
    with weights.writing(), torch.no_grad():
        for tensor, own, *_ in found:
            tensor.copy_(values[own])


def _found(folder: Path, model: Any) -> tuple[list[Match], dict[str, torch.Tensor]]:
    """-> (what is whose, the values of a checkpoint by the model's names); and how the checkpoint's model generates is this one's."""
    made_by = f"{type(model).__name__}.from_pretrained({str(folder)!r})"
    cure = f"call {made_by}.save_pretrained(other, save_original_format=False) once, where the model fits, and pass that folder"
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise BadInput(f"{str(folder)!r} holds weights in torch's own format, which cannot be read tensor by tensor: {cure}")
    held = {name: tensor for file in files_of(folder)[1] for name, tensor in read(file).items()}
    found, _ = matched(model, {name: tensor.shape for name, tensor in held.items()}, repr(str(folder)), cure)
    for match in found:
        for other in match.others:
            if not torch.equal(held[match.held], held[other]):
                what = f"{match.held!r} and {other!r}, which the model shares, with other values"
                raise BadInput(f"{str(folder)!r} holds {what}: set tie_word_embeddings in its config.json as it was trained")
    source = {match.own: match.held for match in found}
    if model.can_generate():
        try:
            model.generation_config = need("transformers").GenerationConfig.from_pretrained(str(folder))
        except OSError:  # it has none, and the model has that of its config
            pass
    return found, {own: held[name] for own, name in source.items()}


def save(model: Any, folder: str | Path, max_shard_size: str | int = "1GB") -> None:
    """Save a model as transformers loads it, file by file, from where its weights lie.

    The names are transformers' own: where the original checkpoint divides weights otherwise, as those of mixtures of experts do, they
    would all be made in memory.

    Args:
        max_shard_size: of a file.
    """
    model.save_pretrained(folder, max_shard_size=max_shard_size, save_original_format=False)


class OwnMemory:
    """The most memory of its own that this process has held, as seen now and then: without the pages of files, which the system takes back
    when it needs room.

    Attributes:
        peak_mib: so far; 0 where the system does not tell.
    """

    EVERY = 0.02  # seconds

    def __init__(self) -> None:
        self.peak_mib = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        done = threading.Event()

        def look() -> None:
            while not done.wait(self.EVERY) and (found := re.search(r"RssAnon:\s+(\d+)", STATUS.read_text())):
                self.peak_mib = max(self.peak_mib, int(found[1]) / 1024)

        watcher = threading.Thread(target=look, daemon=True)
        if STATUS.exists():
            watcher.start()
        try:
            yield
        finally:
            done.set()
