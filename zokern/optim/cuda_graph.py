"""A whole step, forward passes included, as one CUDA graph: for models whose kernels take less time than their launches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..estimators import Closure, LossClosure
from ..kernels import backend_for
from ..kernels.location import location
from ..kernels.tables import Table
from ..signals import let_through, whole
from .base import ZerothOrder

WARM_UP = 3  # calls of the closure before it is captured, as torch's documentation of CUDA graphs asks for
LIVE = ("lr", "eps")  # settings that schedulers may change between replays; the others are as they were at capture


class Graph:
    """``optimizer.step(closure)`` as one CUDA graph: calling it replays the step on what the closure's tensors then hold.

    Every replay is the optimizer's next step, with noise of its own: what ``optimizer.step(closure)`` would have done, bit for bit where
    the closure runs the same kernels while it is captured as otherwise, and these are deterministic. ``optimizer.last``, ``param_groups``
    and state_dict advance; the tensors in ``last`` are overwritten by the next replay. lr and eps may be changed in between, as schedulers
    do.

    A model of transformers that has an attention mask (of two dimensions, handed to it or made by itself) looks whether it is all ones,
    which waits for the device, and if so leaves it to another kernel, without a mask. While it is captured it cannot look: the mask stays,
    and losses differ in their last bits from those of such a step. A mask of four dimensions is taken as it is, both times.

    Args:
        optimizer: with parameters on one NVIDIA GPU, q <= 8 and defer=False; weights in place or copied. ``load_state_dict`` brings another
            copy, for which a new graph has to be made.
        closure: () -> loss, as for ``step``; of fixed shapes, without waiting for the device, reading its batch from tensors that stay
            where they are: copy each new batch into them.

    Raises:
        ValueError: an optimizer that cannot be captured.
        RuntimeError: CUDA's, where the closure cannot be; the weights are restored.
    """

    @whole
    def __init__(self, optimizer: ZerothOrder, closure: LossClosure) -> None:
        self.optimizer = optimizer
        self.device = _checked(optimizer)
        groups = optimizer.param_groups
        self._start = groups[0]["step"]
        self._fixed = self._settings()
        self._live = [
            {name: torch.tensor(float(group[name]), dtype=torch.float64, device=self.device) for name in LIVE} for group in groups
        ]
        self._shown: list[dict[str, float]] = [{} for _ in groups]  # what the tensors in _live hold
        self._clock = torch.zeros((), dtype=torch.int32, device=self.device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=self.device)
        self._behind = 0  # what the clock shows, known without looking
        self._seen: torch.Tensor | None = None  # and the count
        self._graph = torch.cuda.CUDAGraph()
        optimizer.flush()  # a replay begins and ends at theta
        optimizer._make_state()  # in memory that is no capture's
        self._warm_up(closure)
        self._capture(closure)

    @whole
    def __call__(self) -> torch.Tensor:
        """One step.

        Returns:
            Mean of the losses, a 0-dim float64 tensor on the device, overwritten by the next call.

        Raises:
            ValueError: settings other than lr and eps, or the parameters' memory, changed since the capture.
        """
        optimizer, groups = self.optimizer, self.optimizer.param_groups
        optimizer.flush()
        if self._settings() != self._fixed or location(_tensors(optimizer)) != self._location:
            raise ValueError("the optimizer's settings or its parameters' memory changed since the capture: make a new zokern.graph")
        for group, live, shown in zip(groups, self._live, self._shown):
            for name in LIVE:
                if group[name] != shown.get(name):
                    live[name].fill_(group[name])
                    shown[name] = float(group[name])
        behind = groups[0]["step"] - self._start
        if behind != self._behind:  # resumed elsewhere, or stepped without the graph
            self._clock.fill_(((behind + (1 << 31)) % (1 << 32)) - (1 << 31))
        if groups[0]["skipped"] is not self._seen:
            self._skipped.copy_(torch.as_tensor(groups[0]["skipped"]), non_blocking=True)
        self._graph.replay()
        optimizer.weights.moved_by_graph()
        keys = [replace(key, step=(key.step + behind) % (1 << 32)) for key, _ in self._estimate.terms]
        optimizer.last = replace(self._estimate, terms=[(key, c) for key, (_, c) in zip(keys, self._estimate.terms)])
        self._seen, self._behind = self._skipped.clone(), behind + 1
        for group in groups:
            group["step"] += 1
            group["skipped"] = self._seen
        optimizer.watch.step(groups[0]["step"] - 1, self._seen, self._estimate.projected_grad)
        return self._loss

    def _settings(self) -> list[dict[str, Any]]:
        """Those of the optimizer: schedulers keep numbers of their own beside them."""
        names = {*self.optimizer.known(), "keep", "block"}.difference(LIVE, ("step", "skipped"))
        return [{name: group.get(name) for name in names} for group in self.optimizer.param_groups]

    def _warm_up(self, closure: LossClosure) -> None:
        """On a stream of its own: what is made once (tables, workspaces, compiled kernels) must not be made while capturing."""
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(WARM_UP):
                let_through(closure)
            self._tables = _tables(self.optimizer)  # kept, because the graph reads their copies on the device
            self._tensors = _tensors(self.optimizer)  # kept, or others could come to lie where the graph reads and writes
            self._location = location(self._tensors)
            for table in self._tables:
                nothing = torch.zeros(1, table.groups, device=self.device)
                backend_for(self.device).add_noise_(table, [self.optimizer._key()], nothing, None)
        torch.cuda.current_stream(self.device).wait_stream(stream)

    def _capture(self, closure: LossClosure) -> None:
        from ..kernels import cuda

        optimizer, numbers = self.optimizer, [{name: group[name] for name in LIVE} for group in self.optimizer.param_groups]
        try:
            for group, live in zip(optimizer.param_groups, self._live):
                group.update({name: live[name] for name in LIVE})
            # The current stream once more: after a failed capture torch leaves its own in place.
            current, own = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            with (
                torch.no_grad(),
                own_workspaces(),
                torch.cuda.stream(current),
                torch.cuda.graph(self._graph, stream=own),
                cuda.clock(self._clock),
            ):
                self._estimate = optimizer._ask(Closure(closure))
                optimizer.weights.rounding = optimizer._rounding_key()
                optimizer._update(self._estimate)
                optimizer.weights.apply_pending()
                self._loss = torch.stack(self._estimate.losses).mean()
                self._skipped.add_(self._estimate.skipped)
                self._clock.add_(1)
        except BaseException:
            optimizer.weights.drop_pending()  # nothing ran: the weights have not moved
            raise
        finally:
            for group, before in zip(optimizer.param_groups, numbers):
                group.update(before)


graph = Graph
"""Capture a step: another name of ``Graph``."""


@contextmanager
def own_workspaces() -> Iterator[None]:
    """For what is captured inside. torch keeps cuBLAS's workspaces by stream, and has few streams: two graphs that were captured on one
    would write to the same memory, though they are replayed on two."""
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


def _checked(optimizer: ZerothOrder) -> torch.device:
    if not isinstance(optimizer, ZerothOrder) or not optimizer.capturable or len(optimizer.weights.parts) > 1:
        raise ValueError(f"zokern.graph: a step of {type(optimizer).__name__} cannot be captured: pass a MeZO without blocks")
    if optimizer.layout.sharded:
        raise ValueError("zokern.graph: the parameters are sharded (DTensor), and gathered anew for each forward pass: call step(closure)")
    devices = {p.device for p in optimizer.layout.params}
    device = next(iter(devices))
    if len(devices) > 1 or device.type != "cuda":
        raise ValueError(f"zokern.graph: the parameters are on {', '.join(sorted(map(str, devices)))}: move them to one NVIDIA GPU")
    from ..kernels import cuda

    if backend_for(device) is not cuda:
        raise ValueError(f"zokern.graph needs the cuda backend, which is {cuda.status()}")
    group = optimizer.param_groups[0]
    if group["q"] > (most := vars(cuda)["_cuda"].carried):
        raise ValueError(f"zokern.graph: q={group['q']}: pass q <= {most}")
    if group.get("defer"):
        raise ValueError("zokern.graph: defer=True: pass defer=False")
    if group["perturbation"] == "streamed":
        raise ValueError('zokern.graph: perturbation="streamed", whose parameters have no fixed addresses: pass zokern.Copied()')
    if len({float(group["weight_decay"]) for group in optimizer.param_groups}) > 1:
        raise ValueError("zokern.graph: weight_decay differs between groups: pass one for all")
    return device


def _tensors(optimizer: ZerothOrder) -> list[torch.Tensor]:
    """What a step reads and writes: the model's parameters, and what holds theta, which may be they."""
    (theta,) = optimizer.weights.theta
    return [*optimizer.layout.params, *theta.params]


def _tables(optimizer: ZerothOrder) -> list[Table]:
    """Of the passes of a step: over theta, and from there into the model's parameters where these are others."""
    (theta,), (model,) = optimizer.weights.theta, optimizer.weights.parts
    found = [theta.tables(), *([theta.tables(model.params)] if theta is not model else [])]
    if any(strided for _, strided in found):
        raise ValueError("zokern.graph: a parameter is not contiguous: pass .contiguous()")
    return [table for tables, _ in found for table in tables]
