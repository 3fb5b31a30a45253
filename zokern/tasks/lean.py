"""Losses and scores of a language model without its full logits, which for a vocabulary of 50 000 outweigh all else in a forward pass.

A hook before the model's output embedding keeps the hidden states of the positions that are wanted; the model goes on with these
alone, so whatever it does to its logits (scaling, capping) it does to them as ever. Where more than ``chunk`` are wanted, the
output embedding is applied to the rest chunk by chunk.
"""

import logging
from typing import Any, TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy

from ..errors import BadInput
from .virtual_tokens import both_names, has_virtual_tokens

Inputs: TypeAlias = dict[str, Any]  # keyword arguments of a model, among them input_ids, [rows, tokens]
log = logging.getLogger("zokern")
IGNORED = -100  # a label that is none, as in transformers
_treats_its_logits: WeakSet[Module] = WeakSet()  # output embeddings whose models do something to the logits afterwards
_told: WeakSet[Module] = WeakSet()


def lean_loss(model: Module, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, chunk: int = 256) -> Tensor:
    """What ``model(input_ids, attention_mask=attention_mask, labels=labels).loss`` is, without the logits of all positions.

    Position t predicts label t + 1; the mean goes over the labels that are not -100. Nothing waits for the device. Meant for
    ``torch.no_grad()``; with gradients it is right, but keeps the logits of every chunk.

    Args:
        model: a causal language model of transformers, with or without a peft wrapper.
        input_ids: integer tensor [rows, tokens], padded on either side.
        attention_mask: integer tensor [rows, tokens].
        labels: integer tensor [rows, tokens]; -100 where there is none.
        chunk: positions whose logits are in memory at once. Default 256.

    Returns:
        0-dim float32 tensor; nan without labels, as in transformers.

    Raises:
        BadInput: chunk < 1, shapes that differ, or a model without an output embedding.
    """
    if labels.shape != input_ids.shape or input_ids.dim() != 2:
        raise BadInput(f"labels {tuple(labels.shape)} and input_ids {tuple(input_ids.shape)}: pass two of [rows, tokens]")
    rows, tokens = input_ids.shape
    first = -1 if has_virtual_tokens(model) else 0  # peft counts the label that the last virtual token predicts
    device = input_ids.device
    where = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(first, tokens - 1, device=device)).T
    targets = labels[:, first + 1 :].flatten().to(device)
    inputs = dict(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return token_losses(model, inputs, where, targets, chunk).sum() / targets.ne(IGNORED).sum()


def token_losses(model: Module, inputs: Inputs, where: Tensor, targets: Tensor, chunk: int = 256) -> Tensor:
    """The cross-entropy of single tokens.

    Args:
        where: int64 tensor [2, n]: rows, and the positions in them that predict. Position -1 is the last virtual token of peft.
        targets: int64 tensor [n]: the tokens that should follow; at -100 the loss is 0.

    Returns:
        float32 tensor [n].
    """
    if chunk < 1:
        raise BadInput(f"chunk={chunk} positions cannot be kept: pass 1 or more")
    head, n = output_embedding(model), where.shape[1]
    first = n if head in _treats_its_logits else min(n, chunk)
    logits, hidden, untouched = _forward(model, head, inputs, where, first)
    if hidden is not None and first < n and not untouched:
        _treats_its_logits.add(head)
        _tell(head, f"{type(model).__name__} changes its logits after its output embedding: those of all {n} positions are made at once")
        logits, hidden, _ = _forward(model, head, inputs, where, n)
    losses = [cross_entropy(part.float(), target, reduction="none") for part, target in zip(logits.split(chunk), targets.split(chunk))]
    done = len(logits)
    del logits
    if hidden is not None and done < n:
        for part, target in zip(hidden[done:].split(chunk), targets[done:].split(chunk)):
            losses.append(cross_entropy(head(part[None])[0].float(), target, reduction="none"))
    return torch.cat(losses)


def kept_logits(model: Module, inputs: Inputs, where: Tensor) -> Tensor:
    """The logits of some positions only: [n, vocabulary] in the model's dtype. Arguments as of ``token_losses``."""
    return _forward(model, output_embedding(model), inputs, where, where.shape[1])[0]


def output_embedding(model: Any) -> Module:
    """The module that makes logits of hidden states."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise BadInput(f"model {type(model).__name__} has an encoder and a decoder: pass a causal or a masked language model")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise BadInput(f"model {type(model).__name__} has no output embedding, so no logits of words: pass a language model")
    return head


def _forward(model: Module, head: Module, inputs: Inputs, where: Tensor, first: int) -> tuple[Tensor, Tensor | None, bool]:
    """-> logits [first, vocabulary], the hidden states [n, width] that lead to all, whether the model returns what its head returned.

    Where the head is not reached as expected, the full logits are made, all n are returned, and the hidden states are None.
    """
    rows, tokens = inputs["input_ids"].shape
    kept: dict[str, Tensor] = {}

    def before(_: Module, args: Any) -> Any:
        hidden = args[0] if args else None
        # Some models call what they call their output embedding on token ids, too.
        if isinstance(hidden, Tensor) and hidden.is_floating_point() and hidden.dim() == 3:
            if len(hidden) == rows and hidden.shape[1] >= tokens:
                kept["hidden"] = _at(hidden, where, tokens)
                return (kept["hidden"][None, :first], *args[1:])

    def after(_: Module, args: Any, output: Tensor) -> None:
        kept["logits"] = output

    with head.register_forward_pre_hook(before), head.register_forward_hook(after):
        logits = both_names(model)(**inputs).logits
    if "hidden" not in kept or logits.shape[:2] != (1, first):
        _tell(head, f"{type(model).__name__} does not lead its hidden states through its output embedding: its full logits are made")
        return _at(logits, where, tokens), None, True
    made = kept["logits"]
    untouched = first == where.shape[1] or logits is made or torch.equal(logits, made.to(logits.dtype))
    return logits[0], kept["hidden"], untouched


def _at(values: Tensor, where: Tensor, tokens: int) -> Tensor:
    """[rows, positions, width] -> [n, width]. Virtual tokens of peft stand before the ``tokens`` others."""
    return values[where[0], where[1] + (values.shape[1] - tokens)]


def _tell(head: Module, what: str) -> None:
    if head not in _told:
        _told.add(head)
        log.warning(what)
