"""Two processes over gloo take the step of one, and each the same bits."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import hf_worker
import pytest
import torch
from hf_cases import farthest, make, same, weights

import zokern

ROOT = Path(__file__).parents[2]
# name -> how far weights may be from those of one process
CASES = {
    # A loss near 4 differs by some 2**-22 in float32, over 2 eps = 2e-2 and times lr |z| = 4e-3, in each of 4 steps.
    "MeZO by tokens": 2.5e-6,
    "MeZO by rows": 2.5e-6,
    # Products of 4 and of 8 rows round differently to bfloat16, and a loss near 1 differs by 1e-4: over eps = 1e-2, times 4e-3, 4 times.
    "one-sided, bf16": 1.6e-4,
    # Weights near 1 are 2**-7 apart, and an update that differs by little may be rounded up in one run, and down in another.
    "weights in bf16, streamed": 2**-7,
    "weights in bf16, copied": 2**-7,
    "ZOConservative": 2.5e-6,
    "MeZOSVRG": 5e-6,
    "ForwardGradient": 2.5e-6,
    "Hybrid by tokens": 2.5e-6,
    "Hybrid, two forwards": 2.5e-6,
    "Hybrid, LISA, the rest frozen": 2.5e-7,  # two units in the last place of a LayerNorm's weight, near 1
}
# name -> how many numbers go round in each collective of the 4 steps: the losses that are compared, and their weight
NUMBERS = {
    "MeZO by tokens": [3] * 4,
    "MeZO by rows": [5] * 4,  # two directions
    "one-sided, bf16": [3] * 4,
    "weights in bf16, streamed": [3] * 4,
    "weights in bf16, copied": [3] * 4,
    "ZOConservative": [3, 4] * 4,
    "MeZOSVRG": [3] + [3, 3] + [3] + [3, 3],  # at anchors the full batch alone
    "ForwardGradient": [3] * 4,  # the loss and its derivative
    "Hybrid by tokens": [19, 2, 3] * 4,  # who of the 16 of a block and 2 of the last norm has a gradient, L(theta), the two sides
    "Hybrid, two forwards": [20, 3] * 4,  # and the head
    "Hybrid, LISA, the rest frozen": [37, 2] * 4,  # all parameters: who has a gradient is drawn
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """[what one process found, then each of two]."""
    out = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join([str(ROOT), str(ROOT / "python_tests"), os.environ.get("PYTHONPATH", "")])
    shared = dict(PYTHONPATH=path, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    begun = []
    for rank in "01":
        environment = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        with open(out / f"{rank}.log", "w") as log:
            begun.append(subprocess.Popen([sys.executable, hf_worker.__file__, out], env=environment, stdout=log, stderr=log))
    try:
        one = {case: hf_worker.run(out, *settings) for case, settings in hf_worker.CASES.items()}
        one["skipped"] = hf_worker.run(out, *hf_worker.CASES["Hybrid by tokens"], kind=hf_worker.Broken)
        codes = [process.wait(timeout=240) for process in begun]
    finally:
        for process in begun:
            process.kill()
    logs = [(out / f"{rank}.log").read_text() for rank in "01"]
    assert codes == [0, 0], "\n".join(log[-3000:] for log in logs)
    assert not any("walk apart" in log for log in logs)  # the optimizers' own word of processes that differ
    return [one, *(torch.load(out / f"2-{rank}.pt") for rank in "01")]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case, runs):
    one, first, second = (run[case] for run in runs)
    assert same(first["weights"], second["weights"]) and first["losses"] == second["losses"]
    assert farthest(one["weights"], first["weights"]) < CASES[case]
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-3 if "bf16" in case else 1e-5)
    assert len(set(one["losses"])) == 4
    check = first["checked"]
    before = [3] + [7 if check["eps"] else 3] * len(check["slopes"]) if check else []
    assert first["collectives"] == before + NUMBERS[case]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_find_the_same_in_a_check(case, runs):
    one, first, second = (run[case]["checked"] for run in runs)
    assert first == second and (first is None) == ("frozen" in case)
    if first is not None:
        assert first["losses"] == pytest.approx(one["losses"], rel=1e-2 if "bf16" in case else 1e-5)
        assert not zokern.Check(**first).problems or "bf16" in case


@pytest.mark.parametrize("mode", ["streamed", "copied"])
def test_weights_in_16_bits_are_not_perturbed_in_place(mode, runs):
    """And theta of a copy is the same bits in both processes."""
    one, first, second = (run[f"weights in bf16, {mode}"] for run in runs)
    assert one["perturbation"] == first["perturbation"] == second["perturbation"] == mode
    assert same(first["theta"], second["theta"]) and bool(first["theta"]) == (mode == "copied")
    if mode == "copied":  # products of 4 and of 8 rows round differently to bfloat16
        assert farthest(one["theta"], first["theta"]) < 1.6e-4 * 4


def test_a_loss_that_is_not_finite_in_one_process_skips_the_step_in_both(runs):
    one, first, second = (run["skipped"] for run in runs)
    assert one["skipped"] == first["skipped"] == second["skipped"] == 1
    assert same(first["weights"], second["weights"]) and farthest(one["weights"], first["weights"]) < 2.5e-6
    assert farthest(first["weights"], runs[1]["Hybrid by tokens"]["weights"]) > 1e-4


def test_rank_0_has_the_weights_to_begin_with(runs):
    _, first, second = runs
    assert same(first["spoiled"]["weights"], first["MeZO by tokens"]["weights"])
    assert same(second["spoiled"]["weights"], first["spoiled"]["weights"])
    assert not same(first["spoiled"]["weights"], weights(make("opt-lm")))


def test_another_seed_in_one_process_is_refused(runs):
    for run in runs[1:]:
        assert "the optimizer of process 1 differs from that of process 0 in param_groups" in run["refused"]
        assert "the optimizer of process 1 differs from that of process 0 in share_forward" in run["refused hybrid"]


def test_gradients_are_averaged_by_weight(runs):
    """Weights 1 and 3, then 0 and 3."""
    for run in runs[1:]:
        both, one = run["gradients"]
        assert [grad.tolist() for grad in both[:2]] == [(4 + 3 * 8) / 4, [3.0, 6.0, 9.0]] and both[2] is None
        assert [grad.tolist() for grad in one[:2]] == [8.0, [4.0, 8.0, 12.0]] and one[2] is None
