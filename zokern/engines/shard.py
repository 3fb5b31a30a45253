"""The part of a model that one process holds: theta beside it, and the tensors that the model computes with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..errors import BadInput
from ..estimators import Copied
from ..estimators.copied import CopiedWeights
from ..layout import Layout, Span
from ..ops.arguments import Term
from .messages import Plan, Updates

TOGETHER = 1 << 22  # elements of a checksum at once
PASSES = 96  # in one read and write of the weights, where there are several


class Piece(NamedTuple):
    """Elements of a tensor of the checkpoint: ``rows`` lines of ``columns`` elements, the first from ``offset`` on, each ``step`` after the
    one before."""

    name: str
    offset: int
    rows: int
    columns: int
    step: int

    def within(self, tensor: torch.Tensor) -> torch.Tensor:
        """Its elements of the contiguous tensor, a view [rows, columns]."""
        return tensor.as_strided((self.rows, self.columns), (self.step, 1), self.offset)


class Shard:
    """Pieces of a model, as tensors that it computes with, whose addresses stay; theta is kept beside them.

    Args:
        plan: what is trained.
        held: (piece, the model's memory of it, a tensor with its elements in row-major order of any shape) of each.

    Attributes:
        applied: passes that theta has had.
    """

    def __init__(self, plan: Plan, held: Sequence[tuple[Piece, torch.Tensor]]) -> None:
        first = {tensor.name: tensor for tensor in plan.tensors}
        self.plan, self.held = plan, list(held)
        spans = [Span(first[p.name].first + p.offset, p.columns, p.step if p.rows > 1 else 0) for p, _ in held]
        self.layout = Layout(
            [(f"{p.name}[{p.offset}]", tensor) for p, tensor in held],
            keep=[first[p.name].keep for p, _ in held],
            spans=spans,
        )
        if len(self.layout.params) < len(self.held):
            raise BadInput("the engine's model holds several tensors of the checkpoint in the same memory, which it does not as loaded")
        self.weights = CopiedWeights(self.layout, Copied(None if plan.own_dtype else torch.float32), _States())
        self.applied = 0

    @torch.no_grad()
    def go(self, updates: Updates, terms: Sequence[Term]) -> None:
        """As of ``Engine``.

        Raises:
            BadInput: these passes do not follow those that theta has had.
        """
        if updates.first != self.applied:
            raise BadInput(
                f"the engine's weights have had {self.applied} passes, and are sent those from {updates.first} on: start it again"
            )
        self._apply(updates)
        if terms:
            with self.weights.at(terms):
                pass  # nothing is restored: the model's tensors are written from theta at the next point
        else:
            self.weights.apply_pending()

    def _apply(self, updates: Updates) -> None:
        weights = self.weights
        weights.theta  # noqa: B018  made before anything moves
        weights.passes_per_sweep = PASSES if len(updates.passes) > 1 else None
        for update in updates.passes:
            weights.rounding = update.rounding
            weights.add_pending(update.terms, update.decay)
            weights.visit([])
        weights.finish()
        weights.passes_per_sweep = None
        self.applied += len(updates.passes)

    def checksums(self) -> list[int]:
        """Of each piece the sum, modulo 2**64, of a number made of each element's index and its float32 bits."""
        return [checksum(theta, span) for theta, span in zip(self.weights.theta[0].params, self.layout.spans)]

    def read(self, piece: int, begin: int, end: int) -> torch.Tensor:
        """Elements ``begin`` to ``end`` of a piece, line by line, as the model computes with them, on the host."""
        return self.held[piece][1].detach().reshape(-1)[begin:end].cpu()


class _States(dict[Any, Any]):
    """A state as optimizers have it: parameter -> dict, made at the first need."""

    def __missing__(self, parameter: Any) -> dict[str, Any]:
        self[parameter] = made = dict[str, Any]()
        return made


@torch.no_grad()
def checksum(theta: torch.Tensor, span: Span) -> int:
    """The sum over elements of a 64-bit hash of (index, bits of the value as float32), modulo 2**64. theta: [rows, columns] or any shape
    whose elements ``span`` numbers."""
    total, flat = 0, theta.detach().reshape(-1)
    for begin in range(0, flat.numel(), TOGETHER):
        part = flat[begin : begin + TOGETHER].float()
        j = torch.arange(begin, begin + part.numel(), device=part.device)
        x = (span.first + j // span.columns * span.step + j % span.columns) * -7046029254386353131
        x ^= part.view(torch.int32).long() * -4417276706812531889
        x ^= x >> 29
        x *= -4658895280553007687
        x ^= x >> 32
        total += int(x.sum())
    return total % (1 << 64)


def whole(plan: Plan, tensors: dict[str, torch.Tensor]) -> list[tuple[Piece, torch.Tensor]]:
    """Every trained tensor as one piece."""
    return [(Piece(t.name, 0, 1, max(t.numel, 1), max(t.numel, 1)), tensors[t.name].detach().view(1, -1)) for t in plan.tensors]
