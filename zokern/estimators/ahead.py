"""On a GPU: the part that comes next is made on a side stream, while this one computes."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .parts import Part
from .scratch import Slot


class Ahead:
    """Knows in which order parts ran in the evaluation before, and which of them are made ahead, in the other one of two buffers.

    Of the parts that run inside as many others, every second one is made in the same buffer. The side stream waits for all that was to be
    computed so far, and so for the part before, in whose buffer it writes; what is computed next waits for the side stream.

    Args:
        device: of the buffers.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.order: dict[int, list[Part]] = {}  # of the parts inside so many others
        self.begin()

    def begin(self) -> None:
        """A new evaluation."""
        self.before, self.order = self.order, defaultdict(list)

    def place(self, part: Part, depth: int) -> Slot:
        """Where a part lies, or is to be made, that runs inside so many others."""
        self.order[depth].append(part)
        self.wait()
        return depth, len(self.order[depth]) % 2

    def following(self, depth: int) -> tuple[Part | None, Slot]:
        """The part that followed in the evaluation before, and where it is to be made."""
        n, before = len(self.order[depth]), self.before.get(depth, [])
        follows = n < len(before) and before[n - 1] is self.order[depth][-1]
        return before[n] if follows else None, (depth, (n + 1) % 2)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, work is for the side stream."""
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            yield

    def wait(self) -> None:
        """For what the side stream makes."""
        torch.cuda.current_stream(self.device).wait_stream(self.side)
