"""Whether a saved state is one of this optimizer: asked before anything of it is loaded."""

from typing import TYPE_CHECKING, Any

import torch

from ..noise import SPEC_VERSION
from .contract import optimizers
from .packed import unpacked
from .settings import PER_PARAMETER, check_settings

if TYPE_CHECKING:
    from .trained import Trained


def logged(optimizer: "Trained") -> dict[str, Any]:
    """{"logged": which step of its log the optimizer is at}, for its saved state; {} where no log knows of it (zokern/trajectory)."""
    found = optimizer.logged(optimizer) if callable(optimizer.logged) else optimizer.logged
    return {} if found is None else {"logged": found}


def read_saved(optimizer: "Trained", state_dict: dict[str, Any]) -> dict[str, Any]:
    """A saved state, its settings as an optimizer has them.

    Raises:
        ValueError: it was saved by another class of optimizer, by another noise specification or for other parameters, or a setting in it
            is out of its range; with the cure.
    """
    kind, groups = type(optimizer).__name__, optimizer.param_groups
    own = f"pass what {kind}.state_dict() gave"
    again = f"load it into a {kind} of the parameters of the run, in their order and groups"
    if "param_groups" not in state_dict:
        raise ValueError(f"state_dict holds {', '.join(map(str, state_dict)) or 'nothing'}, no param_groups and state: {own}")
    try:
        saved = [unpacked(group) for group in state_dict["param_groups"]]
    except ValueError as error:
        raise ValueError(f"the state was changed since it was saved: {error}; {own}") from None
    state_dict = {**state_dict, "param_groups": saved, "state": state_dict.get("state", {})}  # torch's checkpoints leave out an empty one
    settings = {*PER_PARAMETER}.union(*(cls.known() for cls in (type(optimizer), *optimizers().values())))
    former = {name: setting.formerly for name, setting in optimizer.known().items() if setting.formerly is not None}
    if len(saved) != len(groups):
        raise ValueError(f"the state has {len(saved)} parameter groups, this {kind} has {len(groups)}: {again}")
    for i, (theirs, mine) in enumerate(zip(saved, groups)):
        if "noise_spec" not in theirs:
            raise ValueError(f"param_groups[{i}] was not saved by a zokern optimizer: {own}")
        if theirs["noise_spec"] != SPEC_VERSION:
            raise ValueError(
                f"param_groups[{i}] was saved with noise_spec={theirs['noise_spec']!r}, this zokern makes noise {SPEC_VERSION}: "
                "resume with the zokern that saved it"
            )
        for one, other, has in ((theirs, mine, "has"), (mine, theirs, "has no")):
            if names := sorted(settings & one.keys() - other.keys() - former.keys()):
                raise ValueError(
                    f"param_groups[{i}] was saved by another optimizer than this {kind}: it {has} {', '.join(names)}; load it into one of "
                    "the class that saved it, made with the same arguments"
                )
        then, now = (group.get("perturbation", former["perturbation"]) for group in (theirs, mine))
        if then != now:
            raise ValueError(
                f"param_groups[{i}] was saved with perturbation={then!r}, this {kind} has {now!r}: make it with that of the run"
            )
        then, now = len(theirs["params"]), len(mine["params"])
        if then != now:
            raise ValueError(f"param_groups[{i}] was saved with {then} parameters, here are {now}: {again}")
        for then, now in zip(theirs.get("param_names") or (), mine.get("param_names") or ()):
            if then != now:
                raise ValueError(f"param_groups[{i}] was saved with the parameter {then!r} where this {kind} has {now!r}: {again}")
        _check_shapes(i, state_dict, theirs["params"], mine["params"], again)
    try:
        for i, group in enumerate(saved):
            check_settings(optimizer.known(), settings_of := dict(group), i, saved[0])
            optimizer.check_together(settings_of)
            for name in PER_PARAMETER.keys() & group.keys():
                held, setting = group[name], PER_PARAMETER[name][1]
                if not isinstance(held, list | tuple) or len(held) != len(group["params"]) or not all(map(setting.holds, held)):
                    raise ValueError(f"{name}={held!r} in param_groups[{i}]: pass {setting.cure} for each parameter")
    except (TypeError, ValueError) as error:
        raise ValueError(f"the state was changed since it was saved: {error}; {own}") from None
    return state_dict


def _check_shapes(i: int, state_dict: dict[str, Any], numbers: list[int], params: list[torch.Tensor], again: str) -> None:
    known = state_dict["shapes"][i] if "shapes" in state_dict else []  # some checkpoints keep param_groups and state alone
    for j, (number, p) in enumerate(zip(numbers, params)):
        held = {name: v for name, v in state_dict["state"].get(number, {}).items() if isinstance(v, torch.Tensor)}
        for what, shape in [*(("", shape) for shape in known[j : j + 1]), *((f"{name} of ", v.shape) for name, v in held.items())]:
            if tuple(shape) != tuple(p.shape):
                where = f"{what}param_groups[{i}]['params'][{j}]"
                raise ValueError(f"{where} was saved as {tuple(shape)}, here it is {tuple(p.shape)}: {again}")
