"""Writes this folder's files: of each case the log of its run, what was saved in its middle, and the digests of its weights.

They were written by zokern 0.1.0 at commit 4f93494 (torch 2.13, x86-64), and stay: what later versions read is held to them. Of a new
case, run in a checkout of the version that is to write it:

    PYTHONPATH=.:python_tests python python_tests/golden/write.py mezo ...
"""

import copy
import io
import json
import lzma
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from golden_cases import CASES, FURTHER, RECORDED, SAVED, Net, ended, optimizer_of, train

from zokern import record

HERE = Path(__file__).parent


def write(case):
    """-> (the digests, what was saved)."""
    net = Net()
    optimizer = optimizer_of(case, net)
    with nullcontext() if case == "hybrid" else record(optimizer, HERE / f"{case}.jsonl"):
        train(net, optimizer, range(SAVED))
        saved = copy.deepcopy({"optimizer": optimizer.state_dict(), "net": net.state_dict()})
        digests = {"saved": ended(net, optimizer)}
        train(net, optimizer, range(SAVED, RECORDED))
    digests["recorded"] = ended(net, optimizer)
    train(net, optimizer, range(RECORDED, FURTHER))
    return {**digests, "further": ended(net, optimizer)}, saved


def main(cases):
    saved, digests = {}, {}
    if (HERE / "saved.pt.xz").exists():
        saved = torch.load(io.BytesIO(lzma.decompress((HERE / "saved.pt.xz").read_bytes())), weights_only=True)
        digests = json.loads((HERE / "digests.json").read_text())
    for case in cases:
        digests[case], saved[case] = write(case)
    torch.save(saved, buffer := io.BytesIO())
    (HERE / "saved.pt.xz").write_bytes(lzma.compress(buffer.getvalue()))
    (HERE / "digests.json").write_text(json.dumps(digests, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or [*CASES, "hybrid"])
