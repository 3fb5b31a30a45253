"""Which part of a model is trained: an adapter of peft's, the head, or what patterns name."""

import re
import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, cast

import peft
import torch
from peft.optimizers import create_loraplus_optimizer

from ..errors import first_line
from ..optim import ClosureOptimizer
from ..tasks.virtual_tokens import both_names, cache_name

METHODS = ("lora", "dora", "prefix", "prompt", "head", "full")
TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForCausalLM": "CAUSAL_LM",
    "ForMaskedLM": None,  # peft has no name for it
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
NEW_HEADS = ("Classification", "ForQuestionAnswering")  # what such a class puts on its base model begins at random


@dataclass(frozen=True)
class StartingPoint:
    """Settings of MeZO to begin a search from: of language models of 10^8 parameters and more. Small models train with larger ones.

    Attributes:
        lr: from the first to the second.
        eps: perturbation radius, in units of theta.
        options: of ``adapt``.
        source: where they come from.
    """

    lr: tuple[float, float]
    eps: float
    options: dict
    source: str


MALLADI = "Malladi et al. 2023, OPT"
LORA = dict(r=8, lora_alpha=16)
STARTING_POINTS = {
    "full": StartingPoint((1e-7, 1e-6), 1e-3, {}, MALLADI),
    "lora": StartingPoint((5e-5, 1e-4), 1e-2, LORA, MALLADI + ", which trains A too"),
    "dora": StartingPoint((5e-5, 1e-4), 1e-2, LORA, "as LoRA; none published"),
    "prefix": StartingPoint((1e-3, 1e-2), 1e-1, dict(num_virtual_tokens=5), MALLADI),
    "prompt": StartingPoint((1e-3, 1e-2), 1e-1, dict(num_virtual_tokens=10), "as prefix; none published"),
    "head": StartingPoint((1e-3, 1e-2), 1e-2, {}, "none published"),
}
"""method of ``adapt`` -> its ``StartingPoint``."""


def adapt(model: Any, method: Any, task_type: str | None = None, *, train_a: bool = False, start: str = "tokens", **options: Any) -> Any:
    """Make one part of a model trainable, and nothing else.

    "lora" and "dora" train B, with DoRA the magnitudes, and a new head; A stays as peft draws it, as in LoRA-FA. At the start, where B is
    0, the loss does not depend on A, and a zeroth-order step, unlike one along a gradient, would move A all the same: at random, and with
    every step further. It also halves what is perturbed.

    "prefix" trains keys and values before the tokens of every layer, "prompt" embeddings before the tokens of the text, each with a new
    head. A classifier that reads the last token, such as OPT's, needs its rows padded on the left with "prompt": it sees no ids.

    Trained parts of a model in 16 bits are kept in float32, in which small steps are not lost, but for "full" and patterns. Such a model
    computes under autocast, as ``ZOTrainer`` does of itself.

    Args:
        model: of transformers; it is changed, and for peft's methods wrapped.
        method: "lora", "dora", "prefix", "prompt", "head" (all that is not in the model's ``base_model``), "full"; or one or more patterns
            over the names of parameters: strings as of fnmatch for the whole name, or compiled regular expressions, which are searched.
        task_type: peft's, such as "SEQ_CLS" or "CAUSAL_LM". Default None: by the model's class; none for one that reads images or sound, of
            which "lora" and "dora" adapt any.
        train_a: train LoRA's A as well. Default False.
        start: of a prefix: "tokens", the keys and values that the model has for tokens drawn at random (torch's generator), or "random",
            peft's own. Default "tokens".
        **options: of peft's config. What is not given is that of ``STARTING_POINTS``, without dropout.

    Returns:
        The model, a PeftModel where peft adapts it.

    Raises:
        ValueError: a pattern that names nothing, a model without a head of its own, options that do not belong to the method, a model that
            is adapted already or that peft cannot adapt so.

    Reference:
        Hu et al. 2022, "LoRA"; Zhang et al. 2023, "LoRA-FA"; Liu et al. 2024, "DoRA"; Li and Liang 2021, "Prefix-Tuning"; Lester et al.
        2021, "The Power of Scale for Parameter-Efficient Prompt Tuning"; for a prefix that begins as real tokens, Malladi et al. 2023,
        appendix E.
    """
    if hasattr(model, "peft_config"):
        raise ValueError(f"the model is adapted by peft already ({model.active_adapter!r}): pass the model that it was made from")
    for name, given, belongs in (("train_a", train_a, ("lora", "dora")), ("start", start != "tokens", ("prefix",))):
        if given and method not in belongs:
            raise ValueError(f"{name} belongs to {' and '.join(belongs)}, not to {method!r}: leave it out")
    if start not in ("tokens", "random"):
        raise ValueError(f'start={start!r}: pass "tokens" or "random"')
    if method not in ("lora", "dora", "prefix", "prompt"):
        if options:
            raise ValueError(f"{', '.join(options)}: options of peft's, and {method!r} has none: leave them out")
        chosen = _head(model) if method == "head" else _matching(model, "*" if method == "full" else method)
        for name, p in model.named_parameters():
            p.requires_grad_(name in chosen)
        return _in_float32(model) if method == "head" else model
    head, kind, others = _new_head(model), type(model).__name__, 'pass "lora", "dora", "head", "full" or patterns'
    if method in ("prefix", "prompt") and _main_input(model) != "input_ids":
        raise ValueError(f"{method!r} puts tokens before a text, and {kind} reads {_main_input(model)}: {others}")
    options = {**STARTING_POINTS[method].options, "task_type": task_type or _task_of(model), **options}
    if method in ("lora", "dora"):
        model = _lora(model, dict(lora_dropout=0.0, use_dora=method == "dora", modules_to_save=head) | options, train_a)
    elif method == "prompt":
        model = _adapted(model, peft.PromptTuningConfig, options)
    else:
        model = _adapted(model, peft.PrefixTuningConfig, options)
        if start == "tokens":
            try:
                _begin_as_tokens(model)
            except Exception as error:  # of models whose decoder sees no tokens alone
                raise ValueError(f'{kind} cannot be asked for the keys of tokens ({first_line(error)}): pass start="random"') from None
    if head and not any("modules_to_save" in name for name, _ in model.named_parameters()):
        raise ValueError(f"peft does not find the head of {kind}, {' and '.join(head)}, so that {method!r} would leave it random: {others}")
    return _in_float32(model)


def lora_plus(model: Any, optimizer: type[ClosureOptimizer], lr: float, ratio: float, **settings: Any) -> torch.optim.Optimizer:
    """An optimizer with another learning rate for LoRA's B than for its A: LoRA+, through peft, for ``ZOTrainer(optimizers=...)``.

    Args:
        model: adapted by LoRA or DoRA with train_a=True.
        optimizer: a class of zokern's.
        lr: of A and of everything else that is trained but B and vectors.
        ratio: lr of B, and of vectors, over that of A, >= 1; peft's documentation has advice.
        **settings: of the optimizer, and of ``peft.optimizers.create_loraplus_optimizer``.

    Returns:
        The optimizer, of the parameter groups that peft makes.

    Raises:
        ValueError: A is not trained, so that there is but one learning rate; a ratio below 1.

    Reference:
        Hayou et al. 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models".
    """
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if not any("lora_A" in name or "lora_embedding_A" in name for name in names.values()):
        raise ValueError(f"ratio={ratio!r} is B's learning rate over A's, and no A of LoRA is trained: adapt(..., train_a=True), or set lr")
    if not ratio >= 1:
        raise ValueError(f"ratio={ratio!r}: pass a number >= 1")

    def named(groups: list[dict[str, Any]], **others: Any) -> ClosureOptimizer:
        # Without those that are empty, which torch takes for ones without names.
        made = [{**group, "params": [(names[id(p)], p) for p in group["params"]]} for group in groups if group["params"]]
        if (rate := optimizer.full_batch_rate) in others:
            made = [{**group, rate: others[rate] * group["lr"] / lr} for group in made]
        return optimizer(made, **others)

    settings = {"loraplus_weight_decay": settings.pop("weight_decay", 0.0)} | settings  # peft has a name of its own for it
    return create_loraplus_optimizer(model, cast(Any, named), lr=lr, loraplus_lr_ratio=ratio, **settings)


def _in_float32(model: Any) -> Any:
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return model


def _head(model: Any) -> set[str]:
    base = getattr(model, "base_model", model)
    inside = {id(p) for p in base.parameters()}
    head = {name for name, p in model.named_parameters() if id(p) not in inside}
    if not head:
        raise ValueError(f"{type(model).__name__} has no head of its own (an output layer is tied to the embeddings): name what to train")
    return head


def _new_head(model: Any) -> list[str] | None:
    """Names of the modules that a classifier has on its base model; None for another kind of model, or without a base model."""
    base = getattr(model, "base_model", model)
    if base is model or not type(model).__name__.endswith(NEW_HEADS):
        return None
    return sorted({name.partition(".")[0] for name in _head(model)} & {name for name, _ in model.named_children()})


def _matching(model: Any, patterns: Any) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    chosen = set()
    for pattern in [patterns] if isinstance(patterns, str | re.Pattern) else patterns:
        regular = isinstance(pattern, re.Pattern)
        text: Any = getattr(pattern, "pattern", pattern)
        found = [name for name in names if (re.search(pattern, name) if regular else fnmatchcase(name, text))]
        if not found:
            nearest = get_close_matches(text, names, n=3, cutoff=0.0)
            methods = "" if regular else f", or one of {', '.join(METHODS)}"
            raise ValueError(f"{text!r} names no parameter; nearest are {', '.join(nearest)}: pass a pattern that matches{methods}")
        chosen.update(found)
    if not chosen:
        raise ValueError(f"{patterns!r} names nothing to train: pass at least one pattern")
    return chosen


def _main_input(model: Any) -> str:
    return getattr(model, "main_input_name", "input_ids")


def _task_of(model: Any) -> str | None:
    kind = type(model).__name__
    if _main_input(model) != "input_ids":
        return None  # by its names for tasks peft makes classes that hand on tokens alone
    for ending, task in TASKS.items():
        if kind.endswith(ending):
            decoder = task == "SEQ_2_SEQ_LM" and not model.config.is_encoder_decoder  # as language models with a vision tower
            return "CAUSAL_LM" if decoder else task
    raise ValueError(f"task_type=None, and {kind} does not tell: pass one of {', '.join(peft.TaskType)}")


def _adapted(model: Any, config: Any, options: dict[str, Any]) -> Any:
    try:
        config = config(**options)
    except TypeError as error:
        raise ValueError(f"options {options} do not make a {config.__name__} ({error}): see peft's documentation") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        try:
            return both_names(peft.get_peft_model(model, config))
        except ValueError:
            raise
        except Exception as error:  # of whatever it did not expect
            raise ValueError(f"peft cannot adapt {type(model).__name__} so ({first_line(error)}): use another method") from None


def _lora(model: Any, options: dict[str, Any], train_a: bool) -> Any:
    try:
        model = _adapted(model, peft.LoraConfig, options)
    except ValueError:  # peft knows no usual layers of this architecture
        if "target_modules" in options:
            raise
        model = _adapted(model, peft.LoraConfig, {**options, "target_modules": "all-linear"})
    if not train_a:
        for name, p in model.named_parameters():
            if "lora_A" in name or "lora_embedding_A" in name:
                p.requires_grad_(False)
    return model


@torch.no_grad()
def _begin_as_tokens(model: Any) -> None:
    """The prefix of as many tokens, drawn at random, as the model itself sees them."""
    from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values
    from transformers import DynamicCache

    config, base = model.active_peft_config, model.get_base_model()
    tokens = torch.randint(base.config.get_text_config(decoder=True).vocab_size, (1, config.num_virtual_tokens), device=base.device)
    training = base.training
    base.eval()
    cache = DynamicCache()
    body = base.base_model
    body(input_ids=tokens, use_cache=True, **{cache_name(body.forward): cache})
    base.train(training)
    initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)
