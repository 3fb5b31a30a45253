"""From base weights and a log to the weights of any step: the same passes again, many of them in one read and write."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import BadInput, first_line
from ..estimators import Streamed
from ..estimators.kinds import Kind
from ..optim import ZerothOrder
from ..optim.settings import PER_PARAMETER
from .header import logged_class
from .json_settings import from_json, per_group
from .position import Writes, position_of
from .reader import MARKS
from .text import Header
from .weights import Named, check_base, check_frozen, check_table, few

if TYPE_CHECKING:
    from .trajectory import Trajectory


Progress = Callable[[int], Any]


def replay(
    trajectory: "Trajectory", params: Any, step: int | None, passes_per_sweep: int, progress: Progress | None, perturbation: Kind | None
) -> ZerothOrder:
    """See ``Trajectory.replay``."""
    header, path = trajectory.header, trajectory.path
    if step is None:
        step = len(trajectory)
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= len(trajectory):
        raise BadInput(f"step={step!r}: the log has {len(trajectory)} steps; pass an integer in [0, {len(trajectory)}]")
    if isinstance(passes_per_sweep, bool) or not isinstance(passes_per_sweep, int) or passes_per_sweep < 1:
        raise BadInput(f"passes_per_sweep={passes_per_sweep!r}: pass an integer >= 1")
    named = _matched(header, params, path)
    check_table(header, named, path)
    with _trainable(named):
        try:
            optimizer = _made(header, named, params, perturbation)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{path} is the log of a run that cannot be made again of these parameters: {first_line(error)}") from None
        if optimizer.layout.fingerprint() != header["fingerprint"]:
            raise BadInput(
                f"{path}: the layout's fingerprint is {header['fingerprint']!r} in the log and {optimizer.layout.fingerprint()!r} here: "
                "the parameters share other memory than the run's did; tie those that were tied"
            )
        check_base(header, named, path)
        check_frozen(header, params, named, path)
        optimizer.weights.passes_per_sweep = passes_per_sweep
        try:
            with warnings.catch_warnings():
                for known in (".* was skipped: a loss was not finite", ".* whose losses did not differ", ".* had members whose loss"):
                    # of which training has warned
                    warnings.filterwarnings("ignore", known, RuntimeWarning)
                _repeat(trajectory, optimizer, step, progress)
        finally:
            optimizer.flush()
            optimizer.weights.finish()
            optimizer.weights.passes_per_sweep = None
        before, crc = Writes.of(optimizer), trajectory.checksums[step]
        optimizer.logged = lambda it: position_of(it, step, crc, before.disturbed_until(Writes.of(it), step) is not None)
        return optimizer


def _repeat(trajectory: "Trajectory", optimizer: ZerothOrder, end: int, progress: Progress | None) -> None:
    path, groups, declared = trajectory.path, optimizer.param_groups, logged_class(trajectory.header).declared()
    for i in range(end):
        measurements, changes = trajectory.steps[i]
        if changes.get("disturbed"):
            raise BadInput(
                f"{path}: between steps {i - 1} and {i} of the run something beside the steps moved the weights: they can be made again up "
                f"to step {i}, where they are now, not later"
            )
        if changes.get("flushed"):
            optimizer.flush()
        for name, value in changes.items():
            if name not in MARKS:
                for group, own in zip(groups, per_group(declared[name], value, len(groups))):
                    group[name] = from_json(name, declared[name], own)
        if not i and len(measurements) != (due := optimizer.measurements_due):  # blocks of parameters tied to others' alone are none
            raise BadInput(f"{path}, line 2 has {len(measurements)} measurements, a step over these parameters {due}: pass the run's")
        optimizer.repeat(measurements)
        if progress is not None:
            progress(i + 1)


def _made(header: Header, named: Named, model: Any, perturbation: Kind | None) -> ZerothOrder:
    """The optimizer of the log over these parameters, as it was at step 0. Of streamed weights it can train on if ``model`` is one."""
    cls, left, groups = logged_class(header), iter(named), []
    for group in header["groups"]:
        params = [next(left) for _ in range(group["params"])]
        settings = {name: from_json(name, setting, group[name]) for name, setting in cls.declared().items() if name in group}
        each = {name: group[name] for name in PER_PARAMETER if name in group}
        groups.append({"params": params if params and params[0][0] else [p for _, p in params], **settings, **each})
    shared = {name: groups[0][name] for name in cls.declared() if name in groups[0]}
    if isinstance(model, torch.nn.Module) and shared.get("perturbation") == "streamed":
        shared["perturbation"] = Streamed(model)
    if perturbation is not None:
        if perturbation.name != shared.get("perturbation"):
            raise ValueError(f"perturbation={perturbation.name!r}: the run had {shared.get('perturbation')!r}: leave it out")
        shared["perturbation"] = perturbation
    return cls(groups, **shared)


@contextmanager
def _trainable(named: Named) -> Iterator[None]:
    """Optimizers refuse to move frozen parameters; those of a model that was loaded may be frozen."""
    frozen = [p for _, p in named if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def _matched(header: Header, params: Any, path: Path) -> Named:
    """The given parameters in the log's order, under its names."""
    rows, given = header["parameters"], _named(params)
    names = {name for name, *_ in rows} - {""}
    if names and len(names) == len(rows) and given and all(name for name, _ in given):
        by_name = dict(given)
        missing = [repr(name) for name, *_ in rows if name not in by_name]
        if missing:
            raise BadInput(f"{path} has parameters that are not given: {few(missing)}: pass the model that the run had")
        return [(name, by_name[name]) for name, *_ in rows]
    if isinstance(params, torch.nn.Module):
        given = list(params.named_parameters())
    if len(live := [pair for pair in given if pair[1].requires_grad]) == len(rows):
        given = live  # what was frozen is not in the log
    if len(given) != len(rows):
        raise BadInput(f"{path} has {len(rows)} parameters without names, given are {len(given)}: pass the run's, in its order")
    return [(row[0], p) for row, (_, p) in zip(rows, given)]


def _named(params: Any) -> Named:
    """Any accepted form of params -> [(name or "", tensor)]."""
    if isinstance(params, torch.nn.Module):
        return list(params.named_parameters(remove_duplicate=False))
    if isinstance(params, torch.Tensor):
        raise TypeError("params is one tensor: pass a list of tensors, such as [theta]")
    given = []
    for entry in params.items() if isinstance(params, Mapping) else params:
        if isinstance(entry, dict):
            inside = [entry["params"]] if isinstance(entry["params"], torch.Tensor) else list(entry["params"])
            names = entry.get("param_names") or [""] * len(inside)
            given += [pair if isinstance(pair, tuple) else (name, pair) for name, pair in zip(names, inside)]
        else:
            given.append(entry if isinstance(entry, tuple) else ("", entry))
    for name, tensor in given:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"params holds a {type(tensor).__name__} ({name!r}): pass a model, tensors, named tensors or groups of them")
    return given
