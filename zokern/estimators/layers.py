"""The blocks of a model, what comes before them and what comes after."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

# Names of what comes after the blocks although some models register it before them (OPT's final_layer_norm and project_out).
AFTER = re.compile(r"(^|[._])(final|out|head|classifier|pooler|score)")

Named: TypeAlias = list[tuple[str, nn.Module]]  # (name in the model, block), in order


@dataclass(frozen=True, eq=False, repr=False)
class Layers:
    """A model in depth: embeddings, blocks in order, head. Each parameter is in exactly one place, tied ones included.

    Attributes:
        modules: the blocks in order.
        names: what ``model.named_modules()`` calls them.
        params: one list of parameters a block, in the order of ``modules``.
        embeddings: parameters of what comes before the blocks: tokens, positions, their norms and projections. A head tied to them is here.
        head: all other parameters: final norms, poolers, classifiers, an untied lm_head.
        titles: {parameter: its first name in ``model.named_parameters()``}, in that order.
    """

    modules: list[nn.Module]
    names: list[str]
    params: list[list[nn.Parameter]]
    embeddings: list[nn.Parameter]
    head: list[nn.Parameter]
    titles: dict[nn.Parameter, str]

    def __repr__(self) -> str:
        shown = self.names if len(self.names) < 4 else [self.names[0], "...", self.names[-1]]
        parts = ("blocks", sum(self.params, [])), ("embeddings", self.embeddings), ("head", self.head)
        counts = ", ".join(f"{sum(p.numel() for p in part):,} in the {name}" for name, part in parts)
        plural = "s" * (len(self.names) > 1)
        return f"Layers({len(self.names)} block{plural}: {', '.join(shown)}; parameters: {counts})"

    def blocks(self) -> list[list[nn.Parameter]]:
        """The parameters that require a gradient, part by part.

        Returns:
            [embeddings, block 0, ..., block n-1, head], without the parts that have none.
        """
        parts = ([p for p in part if p.requires_grad] for part in (self.embeddings, *self.params, self.head))
        return [part for part in parts if part]


def layers(model: nn.Module, blocks: Iterable[nn.Module] | None = None) -> Layers:
    """Find a model's blocks, what comes before them and what comes after.

    The blocks are the items of its one outermost ``nn.ModuleList`` or, where it has none, of its one outermost ``nn.Sequential``. Children
    without parameters, and embeddings in a Sequential, are no blocks. Outside the blocks a parameter belongs to the embeddings if it is an
    ``nn.Embedding``'s, if its name says "emb", or if it is registered before the first block and not named as an end is (final, out, head,
    classifier, pooler, score).

    Args:
        model: from transformers, wrapped by peft or not, or any module.
        blocks: the modules to take as blocks, in order from input to output. Default None: found as above.

    Raises:
        ValueError: no blocks or several rivals, as in an encoder-decoder or a model that sees: pass ``blocks``, and what is returned in the
            model's place. ``blocks`` that are not the model's, or one inside another.
        TypeError: ``model`` or one of ``blocks`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: pass the torch.nn.Module whose parameters are to be split")
    named = _stack(model) if blocks is None else _named(model, list(blocks))
    titles = {p: name for name, p in model.named_parameters()}
    inside = {p for _, block in named for p in block.parameters()}
    embeddings = _embeddings(model, named, inside)
    left = {p for p in titles if p not in embeddings}
    params = []
    for _, block in named:
        params.append([p for p in block.parameters() if p in left])
        left -= set(params[-1])
    return Layers(
        [block for _, block in named], [name for name, _ in named], params,
        [p for p in titles if p in embeddings], [p for p in titles if p in left], titles,
    )  # fmt: skip


def _stack(model: nn.Module) -> Named:
    """The items of the one list of blocks that no other list is around."""
    for kind in (nn.ModuleList, nn.Sequential):
        found: dict[str, nn.Module] = {}
        for name, module in model.named_modules():
            outer = any(name.startswith(other + "." if other else "") for other in found)
            if isinstance(module, kind) and not outer and _has_parameters(module):
                found[name] = module
        if len(found) > 1:
            every = ", ".join(f"*{_path(name)}" for name in found)
            raise ValueError(f"a {type(model).__name__} has several lists of layers ({', '.join(found)}): {_cure(every)}")
        for name, stack in found.items():
            children = [(f"{name}.{child}".lstrip("."), m) for child, m in stack.named_children() if _has_parameters(m)]
            children = [(path, m) for path, m in children if kind is nn.ModuleList or not isinstance(m, nn.Embedding)]
            if children:
                return children
    raise ValueError(f"no layers found in a {type(model).__name__}, which has no ModuleList or Sequential: {_cure('...')}")


def _cure(blocks: str) -> str:
    return f"say which modules are the blocks, in order, and pass zokern.layers(model, blocks=[{blocks}]) in the model's place"


def _path(name: str) -> str:
    """The Python that reads a submodule."""
    return f"model.{name}" if all(part.isidentifier() for part in name.split(".")) else f"model.get_submodule({name!r})"


def _named(model: nn.Module, blocks: list[nn.Module]) -> Named:
    """The blocks that the user gave."""
    if not blocks:
        raise ValueError("blocks=[]: pass at least one module of the model")
    names = {module: name for name, module in model.named_modules()}
    for i, block in enumerate(blocks):
        if not isinstance(block, nn.Module):
            raise TypeError(f"blocks[{i}] is a {type(block).__name__}: pass modules of the model")
        if block not in names:
            raise ValueError(f"blocks[{i}], a {type(block).__name__}, is not in the model: pass modules that model.named_modules() yields")
        for j, other in enumerate(blocks):
            if i != j and any(block is module for module in other.modules()):
                raise ValueError(f"blocks[{i}] ({names[block]!r}) is inside blocks[{j}] ({names[other]!r}): pass one of the two")
    return [(names[block], block) for block in blocks]


def _embeddings(model: nn.Module, named: Named, inside: set[nn.Parameter]) -> set[nn.Parameter]:
    """The parameters that belong before the blocks."""
    # The names of what is around the blocks say nothing about what else is in there.
    around = {""} | {name[: i + 1] for name, _ in named for i, letter in enumerate(name) if letter == "."}
    found: set[nn.Parameter] = set()
    before = True
    for path, module in model.named_modules():
        for name, p in module.named_parameters(path, recurse=False):
            if any(name.startswith(block + ".") for block, _ in named):
                before = False
                continue
            own = name.removeprefix(max((prefix for prefix in around if name.startswith(prefix)), key=len))
            if isinstance(module, nn.Embedding) or p not in inside and not AFTER.search(own) and (before or "emb" in own):
                found.add(p)
    return found


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
