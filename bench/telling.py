"""A plugin of pytest for bench/gpu.py, whose time may be up before the tests are through: -p bench.telling

A failure is told when it happens. SIGTERM ends a run as Ctrl-C does, with its summary. A process whose GPU no longer answers, as after an
illegal access, ends, since every later test in it would fail for that alone; pytest-xdist names the test and goes on with another process.
"""

import os
import signal
import sys

import pytest


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # of pytest-xdist's processes the first
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_runtest_logreport(report):
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nFAILED {report.nodeid}\n{report.longreprtext}", flush=True)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    yield
    if call.excinfo is None or "gpu" not in item.keywords:
        return
    import torch

    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(f"{item.nodeid}: the GPU is lost to this process: {call.excinfo.exconly()}; {error}", file=sys.stderr, flush=True)
            os._exit(1)
