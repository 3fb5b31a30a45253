"""Suite ``memory``: the most memory that one step needs, by method, beside what the papers report."""

import contextlib
import gc
import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zokern.tasks import lean_loss

from . import modes, record
from .cases import FULL, LEAN, Memory
from .models import build, loss_of, rows_of
from .modes import COPIED, OURS, STREAMED
from .oracle import EPS, check_step
from .step import ADAM, FORWARDS, LR, PUBLISHED, SGD, PublishedMeZO, peak, trained

METHODS = (FORWARDS, OURS, STREAMED, COPIED, PUBLISHED, SGD, ADAM)  # FULL and LEAN are for causal models alone
# Peak GB. MeZO-SVRG (Gautam et al. 2024), tables 3 and 25: (dtype, batch, tokens) -> MeZO, FO-SGD, FO-Adam of RoBERTa-large on MNLI.
ROBERTA = {
    ("fp32", 16, 128): (2.07, 6.74, 10.44),
    ("fp32", 32, 128): (2.21, 10.67, 14.33),
    ("fp32", 64, 128): (2.51, 18.55, 22.41),
    ("fp32", 64, 256): (3.35, None, None),
    ("fp32", 64, 512): (5.97, None, None),
    ("bf16", 16, 128): (1.03, 3.42, 5.85),
    ("bf16", 32, 128): (1.13, 5.81, 8.07),
    ("bf16", 64, 128): (1.25, 9.83, 12.16),
    ("bf16", 64, 256): (1.39, 21.87, 24.29),
    ("bf16", 64, 512): (2.66, None, None),
}
# ZO-Bench (Zhang et al. 2024), table 4: OPT-13B on MultiRC, whose dtype it does not say.
OPT_13B = (64, 148, 245)
REPORTED = {("RoBERTa-large", *case): numbers for case, numbers in ROBERTA.items()}
REPORTED |= {("OPT-13B", dtype, 4, 400): OPT_13B for dtype in ("fp32", "bf16")}
ROOMS = (40, 80, 141)  # GB of a GPU


def largest(records) -> dict[int, dict[str, dict]]:
    """GB of a GPU -> method -> the record of the largest model whose counted step of one row fits; only where one does."""
    counted = [r for r in records if r["suite"] == "memory" and r["op"] == "counted" and r["batch"] == 1]
    fitting = {room: sorted((r for r in counted if r["peak_bytes"] <= room * 1e9), key=lambda r: r["n"]) for room in ROOMS}
    return {room: {r["candidate"]: r for r in found} for room, found in fitting.items() if found}


def measure(case: Memory, device) -> list[dict]:
    """One step of each method on one model. -> records, one a method; that of one that does not fit on the GPU says so.

    Raises:
        Refused: zokern's step is wrong.
    """
    found, without = {}, {}
    with FakeTensorMode(shape_env=ShapeEnv()) if case.counted else contextlib.nullcontext():
        model = build(case.model, case.dtype, "cpu" if case.counted else device)
        closure = loss_of(model, case.batch, case.tokens)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        if not case.counted:
            check_step(model.named_parameters(), closure, LR)
        for name in case.only or METHODS:
            if case.counted and name in modes.MODES:
                continue  # kernels take addresses, and here are none
            steps = 2 if name == ADAM else 1  # its first step makes states that stay
            try:
                found[name] = peak_of(method(name, model, closure, case), steps, model, case, device)
            except Exception as error:
                without[name] = record.reason(error)
            for p in model.parameters():
                p.grad = None
            gc.collect()
    n = sum(p.numel() for p in model.parameters())
    papers = dict(zip((PUBLISHED, SGD, ADAM), REPORTED.get((case.model, case.dtype, case.batch, case.tokens), (None,) * 3)))
    here = record.where(device)
    return [
        dict.fromkeys(record.FIELDS)
        | {
            "suite": "memory",
            "op": "counted" if case.counted else "measured" if device.type == "cuda" else "run, counted",
            "candidate": name,
            **record.backend(device, name in modes.MODES),
            "dtype": case.dtype,
            "n": n,
            "model": case.model,
            "batch": case.batch,
            "tokens": case.tokens,
            "weights_bytes": weights,
            "peak_bytes": most,
            "peak_over_forwards_bytes": most - found[FORWARDS] if FORWARDS in found else None,
            "reported_gb": papers.get(name),
        }
        | here
        for name, most in found.items()
    ] + [record.failed("memory", case, reason, device, name) for name, reason in without.items()]


def method(name, model, closure, case):
    """One step of the method."""
    if name in (FULL, LEAN):
        ids, labels = rows_of(model, case.batch, case.tokens)
        loss = lean_loss if name == LEAN else lambda model, *rows: model(input_ids=rows[0], attention_mask=rows[1], labels=rows[2]).loss
        return torch.no_grad()(lambda: loss(model, ids, torch.ones_like(ids), labels))
    if name == FORWARDS:

        @torch.no_grad()
        def call():
            closure(), closure()

        return call
    if name in modes.MODES:
        optimizer = modes.mezo(name, model, LR, EPS)
        return lambda: optimizer.step(closure)
    if name == PUBLISHED:
        optimizer = PublishedMeZO(model, LR, EPS)
        return lambda: optimizer.step(closure)
    if name == SGD:  # neither needs memory of its own, and only one can be counted
        return trained(model, torch.optim.SGD, closure, **(dict(foreach=False) if case.counted else dict(fused=True)))
    return trained(model, torch.optim.Adam, closure, fused=True)


def peak_of(call, steps, model, case, device) -> int:
    """Bytes, the weights' among them."""
    if device.type == "cuda" and not case.counted:
        call()
        return peak(call)
    with Count(model.parameters()) as count:
        for _ in range(steps):
            call()
    return count.most


class Count(TorchDispatchMode):
    """Adds up the tensors alive, as operations make them and as they go. What an operation needs for itself alone is not seen.

    Args:
        tensors: those that are there already.
    Attributes:
        now, most: bytes.
    """

    def __init__(self, tensors):
        super().__init__()
        self.now = self.most = 0
        self._alive = set()
        for tensor in tensors:
            self._found(tensor.untyped_storage())

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = operation(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in before:
                self._found(tensor.untyped_storage())
        return out

    def _found(self, storage):
        name = storage._cdata
        if name not in self._alive:
            self._alive.add(name)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, name, storage.nbytes())

    def _gone(self, name, size):
        self._alive.discard(name)
        self.now -= size
