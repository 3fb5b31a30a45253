"""Weights in a file whose process is killed at any moment are those of a whole update, or refused."""

import hashlib
import os
import signal
import time

import pytest
import torch
from attack.strength import dice, times

import zokern

pytest.importorskip("safetensors")

from zokern.errors import BadInput  # noqa: E402
from zokern.mapped import MappedWeights, write  # noqa: E402

STEPS = 40


def updated(tensors):
    """Step by step."""
    layout = zokern.Layout(sorted(tensors.items()))
    for step in range(STEPS):
        yield lambda step=step: zokern.ops.add_noise_(layout, [(zokern.NoiseKey(7, step), 0.01)])


def digest(tensors):
    return hashlib.sha256(b"".join(t.view(torch.uint8).numpy().tobytes() for _, t in sorted(tensors.items()))).hexdigest()


def update(path, begin):
    weights = MappedWeights(path)
    os.write(begin, b"x")
    for step in updated(weights.tensors):
        with weights.writing():
            step()
        time.sleep(0.0005)


def test_killed(found, tmp_path):
    path, tensors = tmp_path / "weights.safetensors", {"a": torch.zeros(400_000), "b": torch.zeros(400_000, dtype=torch.bfloat16)}
    write(path, tensors)
    base, throw, whole = path.read_bytes(), dice("mapped"), [digest(tensors)]
    for step in updated(tensors):
        step()
        whole.append(digest(tensors))
    for number in range(times(20, 500)):
        begun, begin = os.pipe()
        if not (child := os.fork()):
            update(path, begin)
            os._exit(0)
        os.read(begun, 1)
        time.sleep(throw.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(begun)
        os.close(begin)
        try:
            weights = MappedWeights(path)
        except BadInput as error:
            found["refused"] += 1
            found.blames(f"kill {number}", None if "in the middle of an update" in str(error) else error)
            path.with_name(f"{path.name}.unsynced").unlink()
        else:
            found["whole"] += 1
            found.blames(f"kill {number}", None if digest(weights.tensors) in whole else "torn, and not refused")
            weights.close()
        path.write_bytes(base)
    found.judge()
