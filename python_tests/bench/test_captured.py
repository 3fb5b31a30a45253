"""A loss as a CUDA graph, as suite ``budgets`` hands it to MeZO-SVRG: the steps of the loss itself."""

import sys
from pathlib import Path

import pytest
import torch

import zokern

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench is no part of the installed package

from bench.budgets import Captured  # noqa: E402


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["in-place", "copied"])
def test_steps_by_captured_losses_are_those_of_the_losses(kind):
    runs = []
    for captured in (False, True):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)).cuda()
        data, rows = torch.randn(32, 20, device="cuda"), torch.zeros(8, dtype=torch.long, device="cuda")
        losses = [lambda: net(data[rows]).square().mean(), lambda: net(data).square().mean()]  # noqa: B023
        opt = zokern.MeZOSVRG(net.parameters(), lr=1e-3, lr_full=1e-2, eps=1e-2, perturbation=kind)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            some, every = [Captured(loss) for loss in losses] if captured else losses
            told = []
            for step in range(6):
                rows.copy_(torch.arange(8, device="cuda") + 4 * step)
                told.append(float(opt.step(some, every)))
        opt.flush()
        runs.append((told, [p.detach().clone() for p in net.parameters()]))
    assert runs[0][0] == runs[1][0] and all(map(torch.equal, runs[0][1], runs[1][1]))
