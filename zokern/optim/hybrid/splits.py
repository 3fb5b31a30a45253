"""Who is trained by backpropagation: the splits of a model that ``zokern.Hybrid`` takes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, Protocol, TypeAlias

from torch import nn

from ...estimators import Layers
from ...noise import NoiseKey

DRAW = 255  # the purpose of a draw's key, which no noise has
Rows: TypeAlias = dict[nn.Parameter, int]  # how many leading rows of each are first-order; all others are zeroth-order, or frozen


class Split(Protocol):
    """What a split is, for one of your own: who is trained by backpropagation."""

    @property
    def every(self) -> int | None:
        """Steps between draws; None where there are none."""

    def first_order(self, layers: Layers, step: int = 0) -> Rows:
        """{parameter: how many of its leading rows are first-order}, of those with any.

        Args:
            layers: the model in depth; parameters that do not require a gradient may be among those returned.
            step: of the run, for splits that draw again. Default 0.
        """


@dataclass(frozen=True)
class Depth:
    """Embeddings and the first k blocks zeroth-order; the other n - k and the head first-order. Backpropagation stops at block k.

    Args:
        k: in [0, n], of n blocks.

    Raises:
        ValueError: k out of range, said when the model is known.

    Reference:
        Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", section 5, table 7.
    """

    k: int
    every: ClassVar[None] = None

    def first_order(self, layers: Layers, step: int = 0) -> Rows:
        """The parameters of blocks k and up, and of the head, whole. The arguments are those of ``Split.first_order``."""
        _check_number(self, "k", 0, len(layers.params))
        return _whole(*layers.params[self.k :], layers.head)


@dataclass(frozen=True)
class Inter:
    """LoHO inter: chosen blocks and the head first-order, embeddings and the other blocks zeroth-order.

    The activations of zeroth-order blocks above a chosen one are stored all the same: backpropagation passes through them.

    Args:
        blocks: how many of the deepest blocks, in [1, n] of n blocks, or the numbers of the chosen ones, distinct and in [0, n).

    Raises:
        ValueError: ``blocks`` out of range, said when the model is known.

    Reference:
        LoHO, technical appendix A ("LoHO-SGD inter", "LoHO-Adam inter").
    """

    blocks: int | tuple[int, ...]
    every: ClassVar[None] = None

    def __post_init__(self) -> None:
        if isinstance(self.blocks, Iterable) and not isinstance(self.blocks, str):
            object.__setattr__(self, "blocks", tuple(self.blocks))

    def first_order(self, layers: Layers, step: int = 0) -> Rows:
        """The parameters of the chosen blocks and of the head, whole. The arguments are those of ``Split.first_order``."""
        return _whole(*(layers.params[i] for i in _chosen(self, len(layers.params))), layers.head)


@dataclass(frozen=True)
class Intra(Inter):
    """LoHO intra: inside chosen blocks, a fixed share of each parameter is first-order, the rest zeroth-order.

    The head is first-order, embeddings and the other blocks are zeroth-order. The share of a parameter is its leading rows (slices along
    dimension 0), as many as are nearest to ``ratio`` of them: a contiguous slice, so that the optimizer keeps state for it alone and no
    mask is needed. Where that is none or all of the rows, the parameter goes whole to one side. The gradient of a whole parameter exists
    for a moment, of one parameter at a time.

    Args:
        blocks: as in ``Inter``.
        ratio: a float in (0, 1). Default 0.5.

    Raises:
        ValueError: ``ratio`` out of range; ``blocks`` out of range, said when the model is known.

    Reference:
        LoHO, technical appendix A ("LoHO-Adam intra").
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.ratio, float) and 0 < self.ratio < 1):
            raise ValueError(f"ratio={self.ratio!r} in Intra: pass a number in (0, 1); for whole blocks take Inter")

    def first_order(self, layers: Layers, step: int = 0) -> Rows:
        """The leading rows of the chosen blocks' parameters, and the head. The arguments are those of ``Split.first_order``."""
        cut = (p for i in _chosen(self, len(layers.params)) for p in layers.params[i])
        return {p: round(self.ratio * rows_of(p)) for p in cut} | _whole(layers.head)


@dataclass(frozen=True)
class LISA:
    """Embeddings, head and gamma random blocks first-order, drawn again every so many steps; the others zeroth-order, or frozen.

    Frozen, as in the paper, they are by ``Hybrid(zo=None)``. The draw is fixed by the seed and the step.

    Args:
        gamma: blocks in each draw, in [1, n] of n blocks.
        every: steps between draws, K of the paper, >= 1.
        seed: of the draws, in [0, 2**64). Default 0.

    Raises:
        ValueError: ``every`` or ``seed`` out of range; gamma out of range, said when the model is known.

    Reference:
        Pan et al. 2024, "LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning", Algorithm 1.
    """

    gamma: int
    every: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not (_is_index(self.every) and self.every >= 1):
            raise ValueError(f"every={self.every!r} in LISA: pass an integer >= 1, the steps between draws")
        NoiseKey(self.seed)

    def first_order(self, layers: Layers, step: int = 0) -> Rows:
        """The parameters of embeddings, head and the blocks drawn for a step, whole. The arguments are those of ``Split.first_order``."""
        _check_number(self, "gamma", 1, len(layers.params))
        from ...noise import reference  # which loads NumPy

        # The gamma lowest of as many random words as there are blocks.
        words = reference.words(NoiseKey.of(self.seed, step // self.every, DRAW), 0, len(layers.params))
        live = sorted(words.argsort(kind="stable")[: self.gamma].tolist())
        return _whole(layers.embeddings, *(layers.params[i] for i in live), layers.head)


def _chosen(split: Inter, n: int) -> Sequence[int]:
    """The numbers of the chosen ones of n blocks."""
    blocks = split.blocks
    if not isinstance(blocks, tuple):
        if _is_index(blocks) and 1 <= blocks <= n:
            return range(n - blocks, n)
    elif all(_is_index(i) and 0 <= i < n for i in blocks) and 0 < len(blocks) == len(set(blocks)):
        return sorted(blocks)
    raise ValueError(
        f"blocks={blocks!r} in {type(split).__name__}: the model has {n} blocks; pass how many of the deepest, in [1, {n}], or distinct "
        f"numbers in [0, {n})"
    )


def _check_number(split: Split, name: str, least: int, n: int) -> None:
    value = getattr(split, name)
    if not (_is_index(value) and least <= value <= n):
        raise ValueError(f"{name}={value!r} in {type(split).__name__}: the model has {n} blocks; pass an integer in [{least}, {n}]")


def _is_index(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def rows_of(p: nn.Parameter) -> int:
    """Rows of a parameter: its slices along dimension 0; one where it has no dimension."""
    return p.shape[0] if p.dim() else 1


def _whole(*parts: list[nn.Parameter]) -> Rows:
    return {p: rows_of(p) for part in parts for p in part}
