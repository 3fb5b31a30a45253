"""Which element indices each parameter owns."""

import copy
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from operator import index
from typing import Any, NamedTuple, TypeAlias

import torch

from .kernels.location import Location, location
from .kernels.tables import Row, Table
from .memory import check, check_out, lines, without_aliases
from .noise.spec import ALIGNMENT, SPEC_VERSION
from .shards import Gathered, is_sharded, lines_of, local

Params: TypeAlias = Iterable[torch.Tensor | tuple[str, torch.Tensor] | dict[str, Any]]
Named: TypeAlias = tuple[str, torch.Tensor, int]  # name or "", tensor, group of params


class Span(NamedTuple):
    """Which elements a tensor holds: element j, in row-major order of its shape, has index ``first + j // columns * step + j % columns``.

    A whole tensor is ``Span(first)``. Rows 8 .. 15 of a weight of 4096 columns that begins at 0 are ``Span(8 * 4096)``; its columns 1024 ..
    2047 are ``Span(1024, columns=1024, step=4096)``.

    Attributes:
        first: index of the tensor's first element, an integer of at least 0.
        columns: how many elements in a row have indices in a row. Default 0: all.
        step: from the index of one row's first element to the next row's. Default 0: ``columns``.
    """

    first: int
    columns: int = 0
    step: int = 0


class Layout:
    """Gives every element of the parameters its index, by which its noise is made (docs/noise_spec.md).

    Tensors take their indices in the order given, in row-major order of their logical shape, each starting at a multiple of 4096. Memory
    that two parameters share is counted once, under the parameter that covers it. Of a ``DTensor``, which lies in parts on several
    processes, each element has the index that it has in the whole tensor, and this process makes the noise of those that it holds. Where
    plain tensors are parts of a larger model, ``spans`` says which elements of it they hold; the model's layout gives the firsts.

    Args:
        params: tensors, (name, tensor) pairs, or groups as ``torch.optim`` takes them (dicts with "params").
        keep: for each tensor of params, in the order in which they are listed, the share in (0, 1] of its elements that the noise reaches;
            the others have z = 0. Which they are is drawn for each key. Default None: all.
        blocks: for each tensor of params the number of its block, so that coefficients may differ between blocks. Default None: one block.
        spans: for each tensor of params its ``Span``, or a tuple that is one. Default None: one after the other, as above.

    Attributes:
        params (list[torch.Tensor]): the parameters that are left without those whose memory another one covers. The lists below have one
            entry for each.
        names (list[str]): name, or "".
        spans (list[Span]): which elements it holds.
        first (list[int]): the index of its first element.
        group (list[int]): index of its coefficient group, in ``coefficient_groups``.
        keep (list[float]): share of its elements that the noise reaches.
        block (list[int]): number of its block.
        tensors (list[torch.Tensor]): what this process holds of it, a plain tensor.
        held (list[Span]): which elements these are.
        coefficient_groups (list[tuple[int, int]]): (group of params, block) of each coefficient group: what shares one value of each
            coefficient. Without blocks there is one for each group of params.
        sharded (bool): whether a parameter is a ``DTensor``.
        location: of the parameters in memory, as ``tables`` last saw it; None before.
        state: what ``ops.update_`` last saw beside the parameters; None before.

    Raises:
        TypeError: an entry of params that is no tensor or cannot be perturbed, by number and name, with the cure; a share or a span of
            another kind.
        ValueError: a parameter that cannot be perturbed; no parameter; keep, blocks or spans that do not fit them; a span that cannot be
            one, or two that hold the same element.
    """

    def __init__(
        self,
        params: Params,
        keep: Iterable[float] | None = None,
        blocks: Iterable[int] | None = None,
        spans: Iterable[Span | tuple[int, ...]] | None = None,
    ) -> None:
        named = list(_named(params))
        titles = [_title(i, name) for i, (name, _, _) in enumerate(named)]
        for title, (_, tensor, _) in zip(titles, named):
            check(local(tensor), title)
        shares = [1.0] * len(named) if keep is None else _ratios(keep, titles)
        kept = without_aliases([local(tensor) for _, tensor, _ in named], titles)
        self.names = [named[i][0] for i in kept]
        self.params = [named[i][1] for i in kept]
        block = [0] * len(named) if blocks is None else list(blocks)
        if len(block) != len(named):
            raise ValueError(f"blocks has {len(block)} numbers for {len(named)} parameters: pass one for each")
        listed = [(group, b) for (_, _, group), b in zip(named, block)]
        last = max((group for group, _ in listed), default=0)
        self.coefficient_groups = [(group, 0) for group in range(last + 1)] if blocks is None else sorted(set(listed))
        self.group = [self.coefficient_groups.index(listed[i]) for i in kept]
        self.block = [block[i] for i in kept]
        self.keep = [shares[i] for i in kept]
        self.shapes = [tensor.shape for tensor in self.params]
        self.sharded = any(map(is_sharded, self.params))
        if spans is None:
            self.spans = _one_after_the_other(self.params)
        elif self.sharded:
            raise ValueError(
                "spans is given with a DTensor, which says itself which elements it holds: leave it out, or pass plain tensors"
            )
        else:
            told = _whole_spans(spans, [tensor for _, tensor, _ in named], titles)
            self.spans = [told[i] for i in kept]
            _check_disjoint(self.spans, self.params, [titles[i] for i in kept])
        if not kept:
            raise ValueError("params is empty: pass at least one parameter, such as model.parameters()")
        self.held = [_held(*of) for of in zip(self.params, self.spans, [titles[i] for i in kept])] if self.sharded else self.spans
        self._sizes = [tensor.shape for tensor in self.tensors]
        self._gathered = Gathered(self.params, [titles[i] for i in kept])
        self.location: Location | None = None
        self.state: Any = None
        self._coefficient_groups_of: dict[tuple[int, torch.device], torch.Tensor] = {}

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What this process holds of each parameter, a plain tensor: where it lies now."""
        return [local(p) for p in self.params] if self.sharded else self.params

    def drop_gathered(self) -> None:
        """The parameters have changed: drop the copies that ``fully_shard`` has gathered of them."""
        self._gathered.drop()

    @property
    def first(self) -> list[int]:
        """The index of each parameter's first element."""
        return [span.first for span in self.spans]

    def fingerprint(self) -> str:
        """Names the map from elements to noise (specification, shapes, order, shares), whatever the dtypes and devices."""
        shapes: list[tuple[int, ...]] = [(first, *shape) for first, shape in zip(self.first, self.shapes)]
        sparse = (self.keep,) if min(self.keep) < 1 else ()
        rows = [tuple(span) for span, shape in zip(self.spans, self.shapes) if span.columns < shape.numel()]
        return hashlib.sha256(repr((SPEC_VERSION, shapes, *sparse, *rows)).encode()).hexdigest()[:16]

    @property
    def blocks(self) -> list[int]:
        """Numbers of the blocks, ascending."""
        return sorted(set(self.block))

    def coefficient_groups_of(self, block: int, device: torch.device) -> torch.Tensor:
        """Which coefficient groups are of a ``block``: bool [groups], on a ``device`` that does not wait for it."""
        if (block, device) not in self._coefficient_groups_of:
            mine = torch.tensor([b == block for _, b in self.coefficient_groups], pin_memory=device.type == "cuda")
            self._coefficient_groups_of[block, device] = mine.to(device, non_blocking=True)
        return self._coefficient_groups_of[block, device]

    def part(self, block: int) -> "Layout":
        """The layout of one ``block`` alone: the same indices, and so the same noise."""
        return self.only(i for i, b in enumerate(self.block) if b == block)

    def only(self, numbers: Iterable[int]) -> "Layout":
        """The layout of some of the parameters, by their ``numbers`` in ``params``: the same indices, and so the same noise."""
        part, mine = copy.copy(self), list(numbers)
        for name in ("params", "names", "shapes", "spans", "held", "_sizes", "group", "keep", "block"):
            setattr(part, name, [getattr(self, name)[i] for i in mine])
        part.location = part.state = None
        return part

    def over(self, tensors: Iterable[torch.Tensor]) -> "Layout":
        """The same indices for other ``tensors`` of the same shapes, one a parameter."""
        other = copy.copy(self)
        other.params, other.location, other.state = list(tensors), None, None
        other.sharded = any(map(is_sharded, other.params))
        return other

    def tables(self, out: Sequence[torch.Tensor] | None = None) -> tuple[list[Table], list[int]]:
        """What kernels are told of the parameters. Remade when a parameter moved.

        Args:
            out: tensors to write to, one a parameter. Default None: the parameters themselves.

        Returns:
            Tables of the parameters that are lines, with ``out`` in both places, and the indices in ``params`` of the others.

        Raises:
            ValueError: a parameter has another shape than at construction, has lost its memory or shares that of another one now; an
                ``out`` of another number, shape or device, or that shares memory.
            TypeError: an ``out`` of a dtype that a parameter cannot be written in.
        """
        seen = location(tensors := self.tensors)
        if not seen or seen != self.location:
            self._tables, self._out = self._lay_out(tensors, None), None
            self.location, self.state = seen, None
        if out is None:
            return self._tables
        found = location(list(out))
        if self._out is None or not found or found != self._out[0]:
            check_out(out, tensors, [_title(i, name) for i, name in enumerate(self.names)])
            self._out = found, self._lay_out(tensors, out)
        return self._out[1]

    def _lay_out(self, tensors: list[torch.Tensor], out: Sequence[torch.Tensor] | None) -> tuple[list[Table], list[int]]:
        rows: dict[tuple[torch.dtype, torch.device, torch.dtype | None], dict[int, Row]] = defaultdict(dict)
        titles, strided = [_title(i, name) for i, name in enumerate(self.names)], []
        for i, (tensor, title) in enumerate(zip(tensors, titles)):
            check(tensor, title)
            if tensor.shape != self._sizes[i]:
                raise ValueError(
                    f"{title} has shape {tuple(tensor.shape)} now, it had {tuple(self._sizes[i])}: make a new optimizer for it"
                )
            row = self._row(i, tensor, None if out is None else out[i], self.held[i])
            if row:
                rows[tensor.dtype, tensor.device, None if out is None else out[i].dtype][i] = row
            else:
                strided.append(i)
        for i in set(range(len(tensors))).difference(without_aliases(tensors, titles)):
            raise ValueError(f"{titles[i]} lies in the memory of another parameter now: make a new optimizer")
        groups = len(self.coefficient_groups)
        tables = [
            Table.of(dtype, device, groups, of.values(), members=tuple(of), out_dtype=out_dtype)
            for (dtype, device, out_dtype), of in rows.items()
        ]
        return tables, strided

    def table_of(self, i: int, tensor: torch.Tensor, start: int = 0, out: torch.Tensor | None = None) -> Table:
        """The table of one contiguous tensor.

        Args:
            i: the parameter, by its number in ``params``.
            tensor: its elements are those that are held of the parameter, from number ``start`` on.
            start: Default 0.
            out: another tensor, where they are written. Default None: ``tensor`` itself.
        """
        span, line = self.held[i], max(tensor.numel(), 1)
        row = self._row(i, tensor, out, span if tensor.shape == self._sizes[i] else Span(span.first + start, line, line))
        assert row
        return Table.of(tensor.dtype, tensor.device, len(self.coefficient_groups), [row], out_dtype=None if out is None else out.dtype)

    def _row(self, i: int, tensor: torch.Tensor, out: torch.Tensor | None, span: Span) -> Row | None:
        """None where the tensors, and the indices of their elements, are not all of them the same lines."""
        there, here, numel = lines(tensor if out is None else out), lines(tensor), tensor.numel()
        of_index = span.columns, span.step
        if there is None or here is None or len(found := {n for n, _ in (there, here, of_index) if n < numel}) > 1:
            if span.columns < numel:
                raise ValueError(f"{_title(i, self.names[i])} or its out has other lines than those of {span}: pass contiguous tensors")
            return None
        columns = min(found, default=max(numel, 1))
        pitch, out_pitch, step = (stride if n == columns else columns for n, stride in (here, there, of_index))
        to = tensor.data_ptr() if out is None else out.data_ptr()
        keep = keep_threshold(self.keep[i])
        return Row(tensor.data_ptr(), pitch, to, out_pitch, numel, columns, span.first, step, self.group[i], keep)


def _held(tensor: torch.Tensor, span: Span, title: str) -> Span:
    """The elements of a parameter that this process holds, where it may be a ``DTensor``."""
    if not is_sharded(tensor):
        return span
    offset, columns, step = lines_of(tensor, title)
    return Span(span.first + offset, columns, step)


def _one_after_the_other(tensors: Sequence[torch.Tensor]) -> list[Span]:
    spans, end = [], 0
    for tensor in tensors:
        line = max(tensor.numel(), 1)
        spans.append(Span(end, line, line))
        end += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
    return spans


def _whole_spans(spans: Iterable[Any], tensors: Sequence[torch.Tensor], titles: Sequence[str]) -> list[Span]:
    """Checked, and nothing left out of them."""
    listed = list(spans)
    if len(listed) != len(tensors):
        raise ValueError(f"spans has {len(listed)} entries for {len(tensors)} parameters: pass one for each")
    whole = []
    for i, (span, tensor, title) in enumerate(zip(listed, tensors, titles)):
        numel, where = tensor.numel(), f"spans[{i}] of {title} is {span!r}"
        try:
            first, columns, step = Span(*span)
            first, columns = index(first), index(columns) or max(numel, 1)
            step = index(step) or columns
        except TypeError:
            raise TypeError(f"{where}: pass zokern.layout.Span(first, columns, step), integers") from None
        if first < 0 or columns < 1 or numel % columns or first + (numel // columns) * step > 1 << 63:
            raise ValueError(f"{where}: pass first >= 0, columns that divide the tensor's {numel} elements, and indices below 2**63")
        if step < columns:
            raise ValueError(f"{where}: a step of {step} is smaller than a row of {columns}: pass a step of at least columns")
        whole.append(Span(first, columns, step))
    return whole


def _check_disjoint(spans: Sequence[Span], tensors: Sequence[torch.Tensor], titles: Sequence[str]) -> None:
    """Refuse two spans that hold the same element."""
    rows = [torch.arange(tensor.numel() // span.columns) * span.step + span.first for span, tensor in zip(spans, tensors)]
    begin, order = torch.cat(rows or [torch.empty(0, dtype=torch.int64)]).sort()
    owner = torch.arange(len(spans)).repeat_interleave(torch.tensor([*map(len, rows)], dtype=torch.int64))[order]
    end = begin + torch.tensor([span.columns for span in spans], dtype=torch.int64)[owner]
    for k in (end[:-1] > begin[1:]).nonzero()[:1].flatten().tolist():
        one, other = (titles[int(owner[k + n])] for n in range(2))
        raise ValueError(f"the spans of {one} and {other} both hold element {int(begin[k + 1])}: pass spans that are disjoint")


def keep_threshold(share: float) -> int:
    """An element keeps its noise where its mask word is at most this."""
    return int(share * 2**32) - 1


def _title(i: int, name: str) -> str:
    return f"theta[{i}]" + (f" ({name!r})" if name else "")


def _ratios(keep: Iterable[float], titles: Sequence[str]) -> list[float]:
    ratios = list(keep)
    if len(ratios) != len(titles):
        raise ValueError(f"keep has {len(ratios)} ratios for {len(titles)} parameters: pass one for each, 1.0 where all is kept")
    for i, (ratio, title) in enumerate(zip(ratios, titles)):
        if not isinstance(ratio, Real):
            raise TypeError(f"keep[{i}] of {title} is {ratio!r}: pass a number in (0, 1]")
        if not (0 < ratio <= 1 and keep_threshold(ratio) >= 0):
            raise ValueError(f"keep[{i}] of {title} is {ratio!r}: pass a number in (0, 1], of at least 2**-32")
    return [float(ratio) for ratio in ratios]


def _named(params: Params) -> Iterator[Named]:
    if isinstance(params, torch.Tensor):
        raise TypeError("params is one tensor: pass a list of tensors, such as [theta]")
    for group, entry in enumerate(params):
        if isinstance(entry, dict):
            inside = entry["params"]
            inside = [inside] if isinstance(inside, torch.Tensor) else list(inside)
            names = entry.get("param_names") or [""] * len(inside)
            yield from ((name, *_pair(tensor)[1:], group) for name, tensor in zip(names, inside))
        else:
            yield *_pair(entry), 0


def _pair(entry: Any) -> tuple[str, torch.Tensor]:
    name, tensor = entry if isinstance(entry, tuple) else ("", entry)
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"params holds a {type(tensor).__name__}: pass tensors, (name, tensor) pairs or groups of them")
    return name, tensor
