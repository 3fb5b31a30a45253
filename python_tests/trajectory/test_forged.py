"""Logs that no recorder wrote, under checksums that are right: each is what its numbers say, or one line and no weight moved."""

import copy
import json
import os
import random
import warnings
from collections import Counter

import pytest
import torch
from trajectory_cases import Net, Raw, optimizer_of, same, sealed, train, unsealed, weights

import zokern
from zokern import Trajectory, record, trajectory
from zokern.errors import BadInput

LONG = bool(os.environ.get("ZOKERN_LONG"))  # 13,000 forged logs
SEED = int(os.environ.get("ZOKERN_SEED", 20))
STEPS = 5
RUNS = {
    "MeZO": {}, "MeZO q=2": {}, "MeZO blocks": {}, "MeZO sparse blocks": {}, "MeZO one-sided": {}, "MeZO defer": {}, "ZOConservative": {},
    "ZOSign": {}, "ZOMomentum bfloat16": {}, "ZOAdam": {"lr": torch.tensor(1e-3)}, "MeZOSVRG copy": {}, "MeZOSVRG replay": {},
    "ForwardGradient": {},
}  # fmt: skip


NASTY = [
    *map(Raw, ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" + "0" * 400, "9" * 5000, "-0.0", "1E5", "tru", "[1,]", '"\\ud800"')),
    *(Raw("[" * n + "]" * n) for n in (40, 60, 980, 3000)),
    *(Raw('{"a":' * n + "1" + "}" * n) for n in (60, 3000)),
    *(None, True, False, 0, 1, -1, 2, 3, 1 << 31, 1 << 63, 1 << 64, -(1 << 70), 10**30, 0.5, -0.5, 1e-320, 1e38, 3.5e38, 1e308, 2.0),
    *("", "x", "float32", "float64", "complex64", "Tensor", "__class__", "two-point", "one-sided", "MeZO", "ZOAdam", "\x00", "é\n"),
    *([], {}, [[]], [1], [None], ["x"], [0.9, 0.99], [0.9, 1.5], [[0.9, 0.99], [0.8, 0.9]], [1, 2, 3], [0.1, 0.2], {"a": 1}),
    *({"tensor": 0.001, "dtype": "float32"}, {"tensor": 1, "dtype": "int64"}, {"tensor": 0.5, "dtype": "int64"}, {"tensor": True}),
    *({"tensor": 0.5, "dtype": "float64"}, {"tensor": [1.0], "dtype": "float32"}, {"tensor": 0.5, "dtype": "nn"}, {"dtype": "float32"}),
]
KEYS = ["lr", "eps", "q", "seed", "betas", "anchor", "state_dtype", "estimator", "defer", "params", "block", "keep", "flushed", "disturbed"]
KEYS += ["losses", "exact", "step", "crc", "frozen", "trail", "lr_full", "a new one", "__class__", "tensor"]


def places(value):
    """Every (list or dict, key) in a value."""
    found = []
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            found += places(value[key])
    return found


def forge(draw, header, steps):
    """-> the bytes of a log, a few places of which are others."""
    header, steps = copy.deepcopy(header), copy.deepcopy(steps)
    doubled = {}
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        line = draw.choice([header, *steps, *steps])
        holder, key = draw.choice(places(line))
        how = draw.randrange(9)
        if how < 3:
            holder[key] = copy.deepcopy(draw.choice(NASTY))
        elif how == 3 and isinstance(holder[key], int | float):
            holder[key] = draw.choice((-1, 0, 1, 2, 10, 0.5, 1e3, 1e-3)) * holder[key] + draw.choice((0, 0, 1, -1))
        elif how == 4:
            del holder[key]
        elif how == 5 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif how == 6:
            (line if draw.random() < 0.7 or not isinstance(holder, dict) else holder)[draw.choice(KEYS)] = copy.deepcopy(draw.choice(NASTY))
        elif how == 7:
            i, j = draw.randrange(len(steps)), draw.randrange(len(steps))
            steps[i], steps[j] = steps[j], steps[i]
            if draw.random() < 0.7:
                for n, step in enumerate(steps):
                    step["step"] = n
        else:
            doubled[draw.randrange(len(steps) + 1)] = draw.choice(
                (b'"lr":0.5', b'"groups":[]', b'"step":1', b'"notes":{}', b'"losses":[1.0,2.0]')
            )

    def damage(i, body):
        if i in doubled:
            body += b"," + doubled[i]
        if draw.random() < 0.01:
            at = draw.randrange(len(body))
            body = body[:at] + draw.choice((b"\xff", b"\x00", b" ", b"\r", b"\xc3\x28", b"")) + body[at + draw.randrange(2) :]
        return body

    return sealed(header, steps, damage)


def made_again(run, net):
    """The weights by the numbers, one step at a time, as an optimizer of them makes them."""
    cls = getattr(zokern, run.header["optimizer"])
    dtypes = {"state_dtype": lambda name: getattr(torch, name), "betas": lambda pair: tuple(map(plain, pair))}

    def plain(value):
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"])) if isinstance(value, dict) else value

    held, groups, first = dict(net.named_parameters()), [], 0
    rows = run.header["parameters"]
    for group in run.header["groups"]:
        own = {name: dtypes.get(name, plain)(value) for name, value in group.items() if name not in ("params", "block", "keep")}
        own |= {name: group[name] for name in ("block", "keep") if name in group}
        groups.append({"params": [(name, held[name]) for name, *_ in rows[first : first + group["params"]]], **own})
        first += group["params"]
    shared = {name: value for name, value in groups[0].items() if name not in ("params", "block", "keep")}
    optimizer = cls(groups, **shared)
    for measurements, changes in run.steps:
        if changes.get("flushed"):
            optimizer.flush()
        for name, value in changes.items():
            if name not in ("flushed", "disturbed"):
                each = isinstance(value, list) and (name != "betas" or isinstance(value[0], list))
                for i, group in enumerate(optimizer.param_groups):
                    group[name] = dtypes.get(name, plain)(value[i] if each else value)
        optimizer.repeat(measurements)
    optimizer.flush()


def outcome(path, optimizer_at_2):
    """What becomes of a forged log: it is read, told, replayed and gone on with."""
    found, before = "refused", path.read_bytes()
    net, untouched = Net(), weights(Net())
    try:
        run = Trajectory.read(path)
        json.dumps(trajectory.describe(run), indent=1, allow_nan=False)
        "\n".join(trajectory.lines(run)).encode()
        run.losses()
        found = "read, not replayed"
        run.replay(net)
        expected = Net()
        made_again(run, expected)
        assert same(net, weights(expected)), "other weights than its numbers say"
        found = "replayed"
    except BadInput as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, error
        if "something beside the steps" in str(error):
            found = "disturbed"
        else:
            assert same(net, untouched), f"weights moved, then {error}"
    optimizer = optimizer_at_2()
    held = weights(optimizer.net)
    try:
        record(optimizer, path, resume=True).close()
    except BadInput as error:
        assert "\n" not in str(error) and path.read_bytes() == before, error
    assert same(optimizer.net, held)
    return found


@pytest.mark.parametrize("name", RUNS)
def test_forged_logs(tmp_path, name):
    path, net = tmp_path / "run.jsonl", Net()
    optimizer = optimizer_of(name, net, **RUNS[name])
    with record(optimizer, path, {"by": "a test"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(optimizer, net, range(2))
        state, at_2 = copy.deepcopy(optimizer.state_dict()), weights(net)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0.5
        train(optimizer, net, range(2, STEPS), nan_at=3)
    header, *steps = unsealed(path)
    assert sealed(header, steps) == path.read_bytes()

    def optimizer_at_2():
        again = Net()
        with torch.no_grad():
            for key, p in again.named_parameters():
                p.copy_(at_2[key])
        made = optimizer_of(name, again, **RUNS[name])
        made.load_state_dict(state)
        made.net = again
        return made

    draw, found = random.Random(f"{SEED} {name}"), Counter()
    for i in range(1000 if LONG else 20):
        data = forge(draw, header, steps)
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found[outcome(path, optimizer_at_2)] += 1
            except BaseException as error:
                raise AssertionError(f"forged log {i} of seed {SEED}: {type(error).__name__}: {error}\n{data!r}") from error
    print(f"{name}: seed {SEED}, {dict(found)}")
    assert found["refused"]


@pytest.mark.parametrize("name", ["sparsity", "blocks", "initial_lr"])
def test_a_change_of_what_no_group_is_logged_with_is_refused(tmp_path, name):
    """ "sparsity" is an argument: what it became is in the header, and cannot change."""
    path, net = tmp_path / "run.jsonl", Net()
    optimizer = optimizer_of("MeZO sparse", net)
    with record(optimizer, path):
        train(optimizer, net, range(3))
    header, *steps = unsealed(path)
    steps[1][name] = 0.5
    path.write_bytes(sealed(header, steps))
    with pytest.raises(BadInput, match=f"line 3: '{name}' is no setting of this zokern's MeZO"):
        Trajectory.read(path)
