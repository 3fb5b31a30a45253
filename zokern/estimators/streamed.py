"""Weights perturbed in passing: each part of a model computes with a perturbed copy, made when it runs."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from ..layout import Layout
from ..ops.arguments import Term
from .ahead import Ahead
from .parts import Part, check_not_compiled, parts_of
from .perturbation import StreamedWeights
from .reads import RefuseReads
from .scratch import Filled, Piece, Scratch
from .source import Source, bring, device_of
from .windows import Windows

WITH_STREAMS = "cuda"  # devices on which a part is made while another one computes

Facts: TypeAlias = list[tuple[torch.dtype, torch.device, tuple[int, ...]]]


class Streamed:
    """Each part of a model computes with a perturbed copy of its weights, made when it runs: ``perturbation=zokern.Streamed(model)``.

    Before a part of the model runs, theta + eps z of its parameters is made in scratch memory, and the parameters point there until it has
    run: measurements never write the weights. So 16-bit weights stay what they are to the bit, there is nothing to restore, and the memory
    beyond the weights is that of the largest part. Nothing of it stays on the model. For ``torch.no_grad()``: a backward pass would need
    weights that are gone.

    The first evaluation is watched: a parameter that is read while its part does not run, or never shown, is refused by name.

    Args:
        model: whose parameters are perturbed; called as it is, neither compiled nor captured in a CUDA graph.
        parts: modules of the model, each called as a module, so that every parameter to be perturbed is in one; it belongs to the innermost
            around it. Default None: the blocks that ``zokern.layers`` finds, and every other module that has parameters of its own.
        source: where theta lies, for models larger than the memory that they compute in. A ``zokern.mapped.MappedWeights``, or the path of
            a safetensors file or a folder of them, which is opened: the model's parameters, which may be on the meta device, become the
            file's tensors, and each update is made in the file. "host": host memory, pinned where there is a GPU. Default None: where the
            parameters are.
        device: where the model computes. Its parameters may be elsewhere, and each part comes when it runs; its buffers are moved there.
            Default None: where the parameters were before ``source`` took them.

    Attributes:
        source: the ``MappedWeights``, to be closed at the end; None where theta lies in no file.

    Raises:
        TypeError: a model or parts that are no modules; a source of another kind.
        ValueError: parts that are not of the model, or are never called; a model that is compiled; parameters on several devices, with
            ``source`` and no ``device``; with source="host", parameters without values, or that share memory.
        BadInput: a file that is not the model's, or cannot be written.
    """

    name = "streamed"

    def __init__(
        self, model: nn.Module, parts: Iterable[nn.Module] | None = None, source: Source = None, device: torch.device | str | None = None
    ) -> None:  # fmt: skip
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}: pass the torch.nn.Module that the closure calls")
        self.model = model
        self.given = None if parts is None else list(parts)
        self._modules = dict(model.named_modules())
        check_not_compiled(self._modules.values(), self._modules)
        parts_of(model, self.given)  # what is wrong with them is said before anything is moved
        if source is not None and device is None:
            device = device_of(model)
        self.source = bring(model, source)
        self.parts = parts_of(model, self.given)
        self._part_of: dict[torch.Tensor, Part] = {p: part for part in reversed(self.parts) for p in part.params}
        self._names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters()}
        self.device = _elsewhere(model, device)
        self._scratch = Scratch(self.device)
        self._ahead: Ahead | None = None
        self._whole: tuple[Facts, dict[Part, Piece]] = [], {}
        self._pieces: WeakKeyDictionary[Layout, tuple[Facts, dict[Part, list[Piece]]]] = WeakKeyDictionary()  # by theta
        self._covered: WeakSet[Layout] = WeakSet()
        self._proven: WeakSet[Layout] = WeakSet()  # whose parameters were read where they should be

    def weights(self, layout: Layout, state: MutableMapping[Any, Any]) -> StreamedWeights:
        """The weights that an optimizer moves; ``check`` says what is wrong with them.

        Args:
            layout: of the model's parameters.
            state: the optimizer's, which this kind of perturbation does not need.
        """
        self.check(layout)
        return StreamedWeights(layout, self, writing=self.source.writing if self.source else nullcontext)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is not None:
            raise TypeError(
                f"what trains the weights in {str(self.source.path)!r} can neither be copied nor pickled, since a file has one state: save "
                "optimizer.state_dict(), and load it into an optimizer with zokern.Streamed(model, source=...) of a copy of the file"
            )
        return type(self), (self.model, self.given, None, self.device)

    def check(self, layout: Layout) -> None:
        """Refuse parameters that are in no part of the model.

        Args:
            layout: of the parameters to be perturbed.

        Raises:
            ValueError: one is in none, or they are sharded; by name, with the cure.
        """
        if layout in self._covered:
            return
        if layout.sharded:
            raise ValueError(
                "perturbation=zokern.Streamed(model) with sharded parameters (DTensor): who gathers them for a part does not read what it "
                "is shown: pass perturbation=zokern.Copied()"
            )
        for i, p in enumerate(layout.params):
            if p not in self._part_of:
                title = f"theta[{i}]" + (f" ({name!r})" if (name := self._names.get(p) or layout.names[i]) else "")
                if p not in self._names:
                    raise ValueError(
                        f"{title} is not a parameter of the model that zokern.Streamed was given: pass the model that has it; or, where it "
                        "is cut from one, as zokern.splits.Intra does, perturbation=zokern.Copied()"
                    )
                raise ValueError(
                    f"{title} is in none of the parts: pass zokern.Streamed(model, parts=[...]) with a module around it that is called, "
                    "such as the model itself, or leave parts out"
                )
        self._covered.add(layout)

    @contextmanager
    def showing(self, layouts: Sequence[Layout], theta: Sequence[Layout], terms: Sequence[Sequence[Term] | None]) -> Iterator[None]:
        """Inside, the model computes with theta + sum_k c_k z(key_k). Afterwards it is as before, whatever happened.

        Args:
            layouts: of each block of the model's parameters.
            theta: for each of these the layout itself, or one ``over`` other tensors, which hold what is theta.
            terms: for each of these what is added to theta, if anything.

        Raises:
            ValueError: as of ``check``; a model that is compiled.
            RuntimeError: no part ran; in the first evaluation with terms, a parameter that is not read where it should be.
        """
        for layout in layouts:
            self.check(layout)
        check_not_compiled(self._modules.values(), self._modules)
        windows = Windows(self._contents(layouts, theta, terms), self._scratch, self._begin_ahead())
        new = [layout for layout, added in zip(layouts, terms) if added and layout not in self._proven]
        with windows.hooked(), self._watch(new, windows):
            yield
        if not windows.seen and terms and all(terms):
            raise RuntimeError(
                "no part of the model ran in this evaluation, so the loss is not that of the perturbed weights: let the closure call the "
                "model that zokern.Streamed was given, no copy and nothing that torch.compile made, or pass perturbation=zokern.Copied()"
            )
        for layout in new:
            self._check_seen(layout, windows.seen)
        self._proven.update(new)

    @property
    def offloaded(self) -> bool:
        """Whether theta lies elsewhere than where the model computes."""
        return self.source is not None or self.device is not None

    def running(self) -> AbstractContextManager[None]:
        """Inside, the model can be called where it computes, at theta."""
        return self.showing([], [], [])

    def _begin_ahead(self) -> Ahead | None:
        device = self.device or next((p.device for p in self._part_of), torch.device("meta"))
        if device.type != WITH_STREAMS or self.device is None and any(p.device != device for p in self._part_of):
            return None
        if self._ahead is None or self._ahead.device != device:
            self._ahead = Ahead(device)
        self._ahead.begin()
        return self._ahead

    def _contents(self, layouts: Sequence[Layout], theta: Sequence[Layout], terms: Sequence[Sequence[Term] | None]) -> dict[Part, Filled]:
        contents: dict[Part, Filled] = defaultdict(list)
        for layout, source, added in zip(layouts, theta, terms):
            if added or source is not layout or self.device is not None:
                for part, pieces in self._pieces_of(layout, source).items():
                    contents[part] += [(piece, added or []) for piece in pieces]
        if self.device is not None:
            facts = _facts(self._part_of)
            if facts != self._whole[0]:
                self._whole = facts, {part: Piece(part.params, None) for part in self.parts}
            for part in self.parts:  # and what has no noise
                held = frozenset().union(*(piece.ids for piece, _ in contents[part]))
                contents[part].append((self._whole[1][part].without(held), []))
        return contents

    def _pieces_of(self, layout: Layout, theta: Layout) -> dict[Part, list[Piece]]:
        facts = _facts(layout.params)
        if theta not in self._pieces or facts != self._pieces[theta][0]:
            number = {p: i for i, p in enumerate(layout.params)}
            found: dict[Part, list[Piece]] = {}
            for part in self.parts:
                mine: dict[torch.device, list[nn.Parameter]] = defaultdict(list)
                for p in part.params:
                    if p in number:
                        mine[p.device].append(p)
                if mine:
                    found[part] = [Piece(params, theta.only(number[p] for p in params)) for params in mine.values()]
            self._pieces[theta] = facts, found
        return self._pieces[theta][1]

    def _watch(self, layouts: Sequence[Layout], windows: Windows) -> AbstractContextManager[Any]:
        if not layouts:
            return nullcontext()
        titled = ((p, self._title(p)) for layout in layouts for p in layout.params)
        return RefuseReads(titled, lambda: windows.exchanging)

    def _check_seen(self, layout: Layout, seen: set[int]) -> None:
        if missed := [p for p in layout.params if id(p) not in seen]:
            others = f" (nor were {len(missed) - 1} others)" if len(missed) > 1 else ""
            raise RuntimeError(
                f"{self._title(missed[0])} was not reached by the forward pass{others}: leave it out of the "
                "optimizer where the model does not use it; else pass zokern.Streamed(model, parts=[...]) with the module that reads it "
                "among the parts, or perturbation=zokern.Copied()"
            )

    def _title(self, p: torch.Tensor) -> str:
        return f"{self._names[p]!r}, of {self._part_of[p]},"


def _facts(params: Iterable[torch.Tensor]) -> Facts:
    """What a piece of some parameters is made for: model.to() changes it."""
    return [(p.dtype, p.device, p.stride()) for p in params]


def _elsewhere(model: nn.Module, device: torch.device | str | None) -> torch.device | None:
    """Where parts go: None where all of them are there."""
    if device is None:
        return None
    there = torch.empty(0, device=device).device  # with its number
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(there)
    return None if all(p.device == there for p in model.parameters()) else there
