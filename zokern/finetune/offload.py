"""A model whose weights live in a file: made without them, given a copy of a checkpoint's, and saved, never all of it in memory."""

from pathlib import Path
from typing import Any

import torch

from ..errors import BadInput, need
from ..mapped import MappedWeights, write
from ..mapped.file import files_of, read
from ..mapped.match import matched


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
    folder = Path(folder)
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
    write(path, {match.own: match.tensor for match in found}, lambda own: held[source[own]])
    weights = MappedWeights(path)
    weights.attach(model)
    if model.can_generate():
        try:
            model.generation_config = need("transformers").GenerationConfig.from_pretrained(str(folder))
        except OSError:  # it has none, and the model has that of its config
            pass
    return weights


def save(model: Any, folder: str | Path, max_shard_size: str | int = "1GB") -> None:
    """Save a model as transformers loads it, file by file, from where its weights lie.

    The names are transformers' own: where the original checkpoint divides weights otherwise, as those of mixtures of experts do, they
    would all be made in memory.

    Args:
        max_shard_size: of a file.
    """
    model.save_pretrained(folder, max_shard_size=max_shard_size, save_original_format=False)
