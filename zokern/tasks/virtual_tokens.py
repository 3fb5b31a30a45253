"""The virtual tokens of peft's prompt learning, and peft beside a transformers that calls the cache by another name.

transformers 5.24 renamed what holds the keys and values of earlier tokens from ``past_key_values`` to ``cache``. peft, up to 0.21.2 at
least, looks for the old name: a classifier is refused a prefix, and text is written as if there were no prefix, or with the prompt before
every token. ``both_names`` lets a model be told, and tell, by either.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

OLD, NEW = "past_key_values", "cache"
PROMPTS = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING")


def has_virtual_tokens(model: torch.nn.Module) -> bool:
    """Whether peft puts embeddings of its own before those of the first token, and before its padding."""
    config = getattr(model, "active_peft_config", None)
    return getattr(getattr(config, "peft_type", None), "value", None) in PROMPTS


def cache_name(forward: Callable) -> str:
    """What a model's forward calls its cache."""
    return NEW if NEW in inspect.signature(forward).parameters else OLD


def both_names(model: Any) -> Any:
    """Let a model of peft's with prompt learning, and the model inside, call the cache by its old name and its new one.

    The names are ``past_key_values`` and ``cache``, as transformers renamed it.

    Args:
        model: any module; one without prompt learning, or made by a transformers with the old name, is left as it is. A second call changes
            nothing.

    Returns:
        The model.
    """
    if not getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return model
    base = model.get_base_model()
    for module in (base, base.get_submodule(getattr(model, "transformer_backbone_name", None) or "")):
        if not isinstance(module.forward, _Told) and cache_name(module.forward) == NEW:
            module.forward = _Told(module.forward)
    prepare = getattr(model, "base_model_prepare_inputs_for_generation", None)
    if prepare is not None and isinstance(base.forward, _Told) and not isinstance(prepare, partial):
        model.base_model_prepare_inputs_for_generation = partial(_telling, prepare)
    return model


class _Told:
    """A forward that takes its cache by either name. Where both are given, the one that holds tokens is meant: peft fills one of them."""

    def __init__(self, forward: Callable):
        self.forward = forward
        signature = inspect.signature(forward)
        old = signature.parameters[NEW].replace(name=OLD, kind=inspect.Parameter.KEYWORD_ONLY)
        self.__signature__ = signature.replace(parameters=sorted([*signature.parameters.values(), old], key=lambda p: p.kind))

    def __call__(self, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        new = kwargs.get(NEW)
        if past_key_values is not None and (new is None or not new.get_seq_length()):
            kwargs[NEW] = past_key_values
        return self.forward(*args, **kwargs)


def _telling(prepare: Callable, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """A model's inputs for generation, as ``prepare`` makes them, with the cache among them by both names."""
    inputs = prepare(*args, **kwargs)
    return {OLD: inputs[NEW], **inputs} if NEW in inputs else inputs
