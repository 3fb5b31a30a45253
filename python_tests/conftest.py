"""What all tests share: one interpreter setting, the gpu marker, golden vectors, a small transformer."""

import gc
import os
import signal
from contextlib import nullcontext

import numpy as np
import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Most tensors here are tiny: waking a second thread for them costs more than it does. Tests of threads ask for them.
torch.set_num_threads(1)

# A shell starts what it puts into the background with SIGINT ignored, and so would be every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take long: begun first, so that no worker of pytest-xdist is left with one of them at the end.
LONG = ["test_triton.py", "test_triton_lines.py", "test_commands.py", "test_finetune_cli.py", "test_cpu.py", "test_bench.py"]
LONG += [
    "test_finetune_job.py",
    "test_memory.py",
    "test_examples.py",
    "test_cuda.py",
    "test_triton_ptx.py",
    "test_distributed.py",
    "test_runs.py",
]
LONG += ["test_triton_compiled.py", "test_signals.py"]
LONG += [
    "test_sharded.py",
    "test_sharded_trainer.py",
    "test_finetune_processes.py",
    "test_checkpoints.py",
    "test_directions.py",
    "test_restart.py",
]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    for item in items:
        if "gpu" in item.keywords and not GPU:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: torch.cuda.is_available() is False"))


def pytest_terminal_summary(terminalreporter):
    """What the attacks counted (attack/conftest.py)."""
    reports = [report for status in ("passed", "failed") for report in terminalreporter.stats.get(status, ())]
    for said in sorted(value for report in reports for name, value in report.user_properties if name == "attack" and report.when == "call"):
        terminalreporter.write_line(f"attack: {said}")


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def long_lived():
    """What has been imported lives as long as the process: looking for garbage, which Trainer does in every run, need not walk it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def golden():
    """[((seed, step, stream, first), uint32 bits of float32)]: of normals, then of signs."""
    from zokern.noise.golden import golden

    return [((key.seed, key.step, key.stream, first), np.array(bits, np.uint32)) for key, first, bits in golden()]


@pytest.fixture(params=["reference", None], ids=["reference", "default"])
def backend(request):
    """Everything runs on the oracle, or on what is taken where nothing is forced."""
    from zokern import use_backend

    with use_backend(request.param) if request.param else nullcontext():
        yield


@pytest.fixture(scope="session")
def runtime(tmp_path_factory):
    """zokern._cuda on a runtime that executes PTX, compiled once for all processes of pytest-xdist."""
    from ptx.runtime import Runtime, build, find_nvcc

    if (nvcc := find_nvcc()) is None:
        pytest.skip("no nvcc in $CUDA_HOME, $CUDA_PATH, PATH or /usr/local/cuda: install the CUDA toolkit")
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "ptx"
    build(nvcc, folder)
    return Runtime(folder)


class Transformer(torch.nn.Module):
    """Two blocks with attention, tied embedding and head, and a scalar loss: what MeZO is for, small."""

    def __init__(self, width=16, vocabulary=37):
        super().__init__()
        self.embed = torch.nn.Embedding(vocabulary, width)
        layer = torch.nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        logits = self.head(self.blocks(self.embed(tokens)))
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return Transformer().eval()


@pytest.fixture
def tokens():
    return torch.randint(0, 37, (4, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def explicit():
    """(key, layout) -> z of every parameter, 0 where it is not kept, as float64 tensors in the parameters' shapes, from the oracle."""
    from zokern import NoiseKey
    from zokern.noise import reference

    def make(key, layout):
        mask = NoiseKey(key.seed, key.step, 2 << 24 | key.stream & 0xFFFFFF)

        def of(p, span, keep):
            lines = [
                reference.noise(key, first, span.columns) * reference.mask(mask, keep, first, span.columns)
                for first in range(span.first, span.first + p.numel() // span.columns * span.step, span.step)
            ]
            return torch.from_numpy(np.concatenate([np.zeros(0), *lines])).reshape(p.shape)

        return [of(*each) for each in zip(layout.params, layout.spans, layout.keep)]

    return make
