"""What a zokern 0.1.0 wrote with noise specification 1 (commit 4f93494) is refused with both numbers and the cure; nothing changes."""

import io
import lzma
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from command_line import zokern
from golden_cases import Net, base_model, digest, optimizer_of

from zokern import Trajectory, record

OLD = Path(__file__).parent / "specification_1"
BOTH = "noise_spec=1, this zokern makes noise 2: "


def test_a_log(tmp_path):
    with pytest.raises(ValueError, match=f"mezo.jsonl, line 1: {BOTH}use the zokern that wrote it"):
        Trajectory.read(OLD / "mezo.jsonl")
    path = Path(shutil.copy(OLD / "mezo.jsonl", tmp_path))
    with pytest.raises(ValueError, match=BOTH), record(optimizer_of("mezo", Net()), path, resume=True):
        pass
    assert path.read_bytes() == (OLD / "mezo.jsonl").read_bytes()


@pytest.mark.parametrize("case", ["mezo", "zo-adam", "mezo-svrg-replay", "hybrid"])
def test_what_was_saved(case):
    saved = torch.load(io.BytesIO(lzma.decompress((OLD / "saved.pt.xz").read_bytes())), weights_only=True)
    net = Net()
    optimizer = optimizer_of(case, net)
    before = digest(net)
    with pytest.raises(ValueError, match=f"was saved with {BOTH}resume with the zokern that saved it"):
        optimizer.load_state_dict(saved[case]["optimizer"])
    assert digest(net) == before


@pytest.mark.parametrize(
    "words, cure",
    [("replay run --out again", "use the zokern that wrote it"), ("finetune --resume run", "resume with the zokern that saved it")],
)
def test_the_folder_of_a_run(words, cure, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("typer")
    base_model(tmp_path)
    shutil.copytree(OLD / "run", tmp_path / "run")
    run = tmp_path / "run" / "run.json"
    run.write_text(run.read_text().replace("FOLDER", str(tmp_path)))
    with tarfile.open(tmp_path / "run" / "checkpoint-2.tar.xz") as file:
        file.extractall(tmp_path / "run" / "checkpoints" / "checkpoint-2", filter="data")
    monkeypatch.chdir(tmp_path)
    said = zokern(*words.split(), code=2)
    assert BOTH + cure in said
