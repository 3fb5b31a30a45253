"""Writes this folder's files: of each case the log of its run, what was saved in its middle, and the digests of its weights; and what
is left in the folder of a run of the command line that was killed after its first checkpoint.

They were written by a zokern 0.1.0 of noise specification 2 (torch 2.13, x86-64), and stay: what later versions read is held to them. A
case is written by the version whose checkout comes first:

    PYTHONPATH=CHECKOUT:python_tests python python_tests/golden/write.py mezo run ...
"""

import copy
import io
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch
from golden_cases import CASES, FURTHER, RECORDED, SAVED, Net, base_model, digest_of_file, ended, optimizer_of, train

from zokern import record

HERE = Path(__file__).parent


def write(case):
    """-> (the digests, what was saved)."""
    net = Net()
    optimizer = optimizer_of(case, net)
    (HERE / f"{case}.jsonl").unlink(missing_ok=True)
    with nullcontext() if case == "hybrid" else record(optimizer, HERE / f"{case}.jsonl"):
        train(net, optimizer, range(SAVED))
        saved = copy.deepcopy({"optimizer": optimizer.state_dict(), "net": net.state_dict()})
        digests = {"saved": ended(net, optimizer)}
        train(net, optimizer, range(SAVED, RECORDED))
    digests["recorded"] = ended(net, optimizer)
    train(net, optimizer, range(RECORDED, FURTHER))
    return {**digests, "further": ended(net, optimizer)}, saved


def write_run():
    """-> the digest of its adapter after all four steps."""
    options = "--adapter lora --rank 1 --optimizer zo-adam --state-dtype bfloat16 --lr 2e-2 --batch-size 4 --accumulate 2 --steps 4"
    options += " --save-every 2 --eval-every 2 --max-length 16 --device cpu --no-check --model model --data data.csv --out run"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        base_model(folder)
        subprocess.run([sys.executable, "-m", "zokern", "finetune", *options.split()], cwd=folder, check=True)
        for name in ("initial.safetensors", "trajectory.jsonl", "log.jsonl"):
            shutil.copy(folder / "run" / name, HERE / "run" / name)
        (HERE / "run" / "run.json").write_text((folder / "run" / "run.json").read_text().replace(str(folder), "FOLDER"))
        with tarfile.open(HERE / "run" / "checkpoint-2.tar.xz", "w:xz") as file:
            for path in sorted((folder / "run" / "checkpoints" / "checkpoint-2").iterdir()):
                if path.name not in ("README.md", "training_args.bin"):  # which nobody reads again
                    file.add(path, path.name)
        return digest_of_file(folder / "run" / "adapter" / "adapter_model.safetensors")


def main(cases):
    saved, digests = {}, {}
    if (HERE / "saved.pt.xz").exists():
        saved = torch.load(io.BytesIO(lzma.decompress((HERE / "saved.pt.xz").read_bytes())), weights_only=True)
        digests = json.loads((HERE / "digests.json").read_text())
    for case in cases:
        if case == "run":
            digests[case] = write_run()
        else:
            digests[case], saved[case] = write(case)
    torch.save(saved, buffer := io.BytesIO())
    (HERE / "saved.pt.xz").write_bytes(lzma.compress(buffer.getvalue()))
    (HERE / "digests.json").write_text(json.dumps(digests, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or [*CASES, "hybrid", "run"])
