"""The parts of a model that get their weights one after the other."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from .layers import layers

READ_ITS_CHILDREN = (nn.MultiheadAttention,)  # modules that read parameters of modules inside them, without calling these


@dataclass(frozen=True, eq=False)
class Part:
    """A module that is called, its name in the model, and the parameters that it owns: of itself, and of what is in it and no part. It is
    inside ``depth`` other parts."""

    name: str
    module: nn.Module
    params: list[nn.Parameter]
    depth: int

    def __str__(self) -> str:
        return f"{self.name or 'the model'} ({type(self.module).__name__})"


def parts_of(model: nn.Module, given: Iterable[nn.Module] | None = None) -> list[Part]:
    """A parameter belongs to the innermost part around it; one that several modules have, to a part for each of them.

    Args:
        given: the modules that are parts; one may be in another. Default None: the blocks that ``layers`` finds, and of what is outside
            them every module with parameters of its own.

    Raises:
        TypeError, ValueError: what is given is no module of the model, or one that is never called.
    """
    names = {module: name for name, module in model.named_modules()}
    chosen = set(_found(model)) if given is None else _checked(list(given), names)
    owned: dict[nn.Module, dict[nn.Parameter, None]] = {module: {} for module in names if module in chosen}
    depths: dict[nn.Module, int] = {}
    seen = set()

    def walk(module: nn.Module, around: nn.Module | None) -> None:
        owner = around
        if module in owned:
            owner = module
            depths.setdefault(module, 0 if around is None else depths[around] + bool(owned[around]))
        if (module, owner) in seen:
            return
        seen.add((module, owner))
        if owner is not None:
            owned[owner].update(dict.fromkeys(module.parameters(recurse=False)))
        for child in module.children():
            walk(child, owner)

    walk(model, None)
    return [Part(names[module], module, list(params), depths[module]) for module, params in owned.items() if params]


def check_not_compiled(modules: Iterable[nn.Module], names: Iterable[str]) -> None:
    """Refuse modules of which torch.compile made something else, where hooks may be passed over and addresses may be remembered."""
    compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    for module, name in zip(modules, names):
        if module._compiled_call_impl is not None or isinstance(module, compiled):
            raise ValueError(
                f"{name or 'model'} ({type(module).__name__}) is compiled, and zokern.Streamed moves its parameters while it runs: pass "
                "the model as it was before torch.compile, or perturbation=zokern.Copied()"
            )


def _found(model: nn.Module) -> Iterator[nn.Module]:
    try:
        blocks = set(layers(model).modules)
    except ValueError:  # none, or several lists of them
        blocks = set()

    def below(module: nn.Module, around: nn.Module) -> Iterator[nn.Module]:
        called = around if _never_called(module) else module
        if module is called and module in blocks:
            yield module
            return
        if next(module.parameters(recurse=False), None) is not None:
            yield called
            if isinstance(called, READ_ITS_CHILDREN):
                return
        for child in module.children():
            yield from below(child, called)

    return below(model, model)


def _never_called(module: nn.Module) -> bool:
    """Of a ModuleList or a ParameterDict the module around it takes the items."""
    return type(module).forward is nn.Module.forward


def _checked(given: list[nn.Module], names: dict[nn.Module, str]) -> set[nn.Module]:
    if not given:
        raise ValueError("parts=[]: pass modules of the model, or leave it out")
    for i, part in enumerate(given):
        if not isinstance(part, nn.Module):
            raise TypeError(f"parts[{i}] is a {type(part).__name__}: pass modules of the model")
        if part not in names:
            raise ValueError(f"parts[{i}], a {type(part).__name__}, is not in the model: pass modules that model.named_modules() yields")
        if _never_called(part):
            raise ValueError(f"parts[{i}] ({names[part]!r}) is a {type(part).__name__}, which is never called: pass the modules in it")
    return set(given)
