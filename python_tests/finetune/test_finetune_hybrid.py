"""--optimizer hybrid: a part of the model by backpropagation, from the options to the folder of the run."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from command_line import changed
from safetensors.torch import load_file

from zokern import ForwardGradient, Hybrid, MeZO, ZOAdam, splits
from zokern.errors import BadInput
from zokern.finetune import finetune, resume
from zokern.finetune.data import load as load_data
from zokern.finetune.model import load as load_model
from zokern.finetune.optimizers import make, split_of, with_rates
from zokern.finetune.restore import read, replay
from zokern.tasks import HeadReader

transformers = pytest.importorskip("transformers")


def quiet(line):
    pass


@pytest.fixture
def run(settings, tmp_path, tokenizer):
    """A run of a BERT of three layers, 16 wide."""
    torch.manual_seed(0)
    small = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
    transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **small)).save_pretrained(tmp_path / "three")
    tokenizer.save_pretrained(tmp_path / "three")
    return changed(settings, model=str(tmp_path / "three"), optimizer="hybrid", lr=1e-3, fo_lr=1e-3)


@pytest.mark.parametrize(
    "text, split",
    [
        ("depth:3", splits.Depth(3)),
        ("depth:0", splits.Depth(0)),
        ("inter:4", splits.Inter(4)),
        ("inter:1+3", splits.Inter((1, 3))),
        ("inter:+2", splits.Inter((2,))),
        ("intra:2", splits.Intra(2)),
        ("intra:0+2:.25", splits.Intra((0, 2), 0.25)),
        ("lisa:2:20", splits.LISA(2, 20, 9)),
    ],
)
def test_a_split_in_short(run, text, split):
    assert split_of(text, 9) == split and changed(run, split=text).checked().split == text


def made(run):
    settings = with_rates(run.checked())
    loaded = load_model(settings, load_data(settings))
    cls, options = make(settings, loaded.model)
    assert cls is Hybrid
    return Hybrid(loaded.model, **options)


def test_options_reach_the_halves(run):
    hybrid = made(changed(run, zo="zo-adam", betas=(0.8, 0.9), eps=1e-2, q=2, fo="sgd", weight_decay=0.1, split="lisa:1:5", seed=4))
    assert type(hybrid.zo) is ZOAdam and type(hybrid.fo) is torch.optim.SGD and not hybrid.share_forward
    wanted = dict(lr=1e-3, eps=1e-2, betas=(0.8, 0.9), q=2, weight_decay=0.1, seed=4)
    assert {name: hybrid.zo.param_groups[0][name] for name in wanted} == wanted
    assert [hybrid.fo.param_groups[0][name] for name in ("lr", "weight_decay")] == [1e-3, 0.1]
    assert hybrid.split == splits.LISA(1, 5, 4) and hybrid.forwards == 5
    plain = made(changed(run, lr=None, fo_lr=None, share_forward=True))
    assert type(plain.zo) is MeZO and type(plain.fo) is torch.optim.AdamW and plain.split == splits.Depth(1)
    assert [group["lr"] for group in plain.param_groups] == [1e-6, 1e-5] and plain.forwards == 2  # MeZO's and LoHO's
    assert plain.fo.param_groups[0]["weight_decay"] == 0
    assert type(made(changed(run, zo="forward-gradient")).zo) is ForwardGradient
    assert made(changed(run, zo="none", lr=None)).zo is None
    assert made(changed(run, adapter=("lora",), fo_lr=None)).fo.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert made(changed(run, adapter=("prompt",), fo_lr=None, fo="sgd")).fo.param_groups[0]["lr"] == pytest.approx(2e-4)


CASES = {
    "depth": (dict(accumulate=2), 3 * 2),
    "two forwards": (dict(share_forward=True, fo="sgd", blocks=False), 2),
    "sparse, by blocks": (dict(sparsity=0.5, blocks=True, split="inter:+1"), 1 + 2 * 3),  # embeddings and layers 0 and 2
    "intra": (dict(split="intra:2:0.5", head="probe"), 3),
    "lisa, the rest frozen": (dict(split="lisa:1:2", zo="none", lr=None), 1),
    "forward gradient": (dict(zo="forward-gradient"), 2),
    "lora": (dict(adapter=("lora",), dtype="bfloat16"), 3),
    "the head alone": (dict(adapter=("head",), zo="none", lr=None), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_from_end_to_end(run, name):
    options, forwards = CASES[name]
    settings = changed(run, **options)
    result = finetune(settings, quiet)
    assert (result.steps, result.forwards, result.backwards) == (4, 4 * forwards, 4 * settings.accumulate) and result.skipped == 0
    assert result.after["loss"] != result.before["loss"]
    folder = Path(run.out)
    found = json.loads((folder / "metrics.json").read_text())
    assert found["backwards"] == result.backwards and not (folder / "trajectory.jsonl").exists()
    text = "\n".join(result.lines())
    assert f"{4 * forwards} forward passes and {result.backwards} backward passes" in text and "trajectory" not in text
    for read_it in (partial(read, str(folder / "trajectory.jsonl")), partial(replay, run.out, run.out + "-again")):
        with pytest.raises(BadInput, match="is a run of --optimizer hybrid, which has no trajectory, since its first-order steps"):
            read_it()
    assert not os.path.exists(run.out + "-again")


@pytest.mark.parametrize("task_type", ["masked", "causal"])
def test_a_language_model_that_is_asked(run, language_models, sst2, task_type):
    """The layer by backpropagation, what is around it by +-lr a step."""
    settings = changed(
        run,
        model=str(language_models[task_type]),
        task_type=task_type,
        task="sst2",
        data=str(sst2),
        rows=(32, 16, 20),
        zo="zo-sign",
        schedule="constant",
    )
    result = finetune(settings, quiet)
    assert (result.steps, result.skipped, result.forwards, result.backwards) == (4, 0, 12, 4)
    base, trained = (load_file(Path(folder) / "model.safetensors") for folder in (language_models[task_type], run.out))
    moved = {name: (trained[name] - base[name]).abs().max().item() for name in base}
    inside, outside = ([moved[name] for name in base if ("layer" in name) is within] for within in (True, False))
    assert 0 < min(inside) and max(inside) < 4 * 1.5e-3 and max(outside) == pytest.approx(4e-3, rel=1e-3)


@pytest.mark.parametrize("name", ["depth", "lisa, the rest frozen"])
def test_a_run_stopped_by_ctrl_c_goes_on_bit_for_bit(run, name, monkeypatch):
    calls, plain, settings = [], HeadReader.loss, changed(run, steps=7, eval_every=50, no_check=True, **CASES[name][0])
    forwards = CASES[name][1]

    def counted(self, model, batch):
        calls.append(batch)
        if len(calls) == 3 * forwards:  # in the third step
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, model, batch)

    monkeypatch.setattr(HeadReader, "loss", counted)
    result = finetune(settings, quiet)
    assert result.interrupted and result.steps == 3
    assert resume(settings.out, quiet).steps == 7
    whole = changed(settings, out=f"{settings.out}-whole")
    finetune(whole, quiet)
    one, other = (load_file(Path(out) / "model.safetensors") for out in (settings.out, whole.out))
    assert all(torch.equal(one[tensor], other[tensor]) for tensor in one)


def test_the_head_alone_is_trained_as_by_torch(run, monkeypatch):
    """--adapter head with --zo none: what lies below is computed once, and the steps are AdamW's on the whole model."""
    seen, plain = [], HeadReader.loss
    monkeypatch.setattr(HeadReader, "loss", lambda *args: seen.append(0) or plain(*args))
    settings = changed(run, adapter=("head",), zo="none", lr=None, fo_lr=1e-2, schedule="constant", batch_size=48)
    finetune(settings, quiet)
    assert not seen  # the model below the head is not asked in a step
    settings = changed(settings, out=run.out + "-twin").checked()
    data = load_data(settings)
    loaded = load_model(settings, data)
    optimizer = torch.optim.AdamW([p for _, p in loaded.trained()], lr=1e-2, weight_decay=0.0)
    batch = loaded.reader.collate([loaded.reader.encode(example) for example in data.train])  # all rows: their order does not matter
    for _ in range(4):
        optimizer.zero_grad()
        plain(loaded.reader, loaded.model, batch).backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in loaded.trained()], 1.0)
        optimizer.step()
    saved = load_file(Path(run.out) / "model.safetensors")
    # AdamW's step is lr g / |g| at first: elements whose gradient is tiny move by rounding's chance, the others agree to float32's 1e-5.
    for name, p in loaded.trained():
        torch.testing.assert_close(saved[name], p.detach(), rtol=0, atol=1e-5)


def test_the_commands_around_a_run(run, tmp_path):
    """From a configuration file and options to a model that is judged; what needs a trajectory says that there is none."""
    app, invoke = pytest.importorskip("zokern.cli").app, pytest.importorskip("typer.testing").CliRunner().invoke
    (tmp_path / "hybrid.yaml").write_text("optimizer: hybrid\nsplit: inter:1+2\nfo: sgd\nfo_lr: 0.5\n")
    given = ["--config", "hybrid.yaml", "--model", run.model, "--data", run.data, "--out", run.out, "--share-forward", "--zo", "zo-sign"]
    small = ["--steps", 2, "--eval-every", 2, "--batch-size", 8, "--max-length", 32, "--device", "cpu", "--form", "scalar"]
    given[1] = tmp_path / given[1]
    done = invoke(app, ["finetune", *map(str, given + small)])
    assert done.exit_code == 0, done.output
    assert "hybrid of zo-sign and sgd, full" in done.stdout and "fo-lr 0.5" in done.stdout
    settings = json.loads((Path(run.out) / "run.json").read_text())["settings"]
    expected = dict(split="inter:1+2", zo="zo-sign", fo="sgd", fo_lr=0.5, share_forward=True, form="scalar", lr=1e-6)
    assert {name: settings[name] for name in expected} == expected
    judged = invoke(app, ["evaluate", "--model", run.out])
    after = json.loads((Path(run.out) / "metrics.json").read_text())["after"]
    assert judged.exit_code == 0 and f"held_out   loss {after['loss']:.4f}, accuracy {after['accuracy']:.4f}" in judged.stdout
    for command in (["info", run.out], ["replay", run.out, "--out", f"{tmp_path}/again"]):
        refused = invoke(app, command)
        assert refused.exit_code == 2 and "is a run of --optimizer hybrid, which has no trajectory" in refused.stderr


REFUSED = {
    "float16": (dict(dtype="float16"), "--dtype float16 underflows in gradients and AdamW of --optimizer hybrid: pass float32"),
    "split": (dict(split="half"), "--split half: pass depth:3, inter:4, inter:1+3, intra:4:0.5 or lisa:2:20"),
    "ratio": (dict(split="intra:2:1.5"), "--split intra:2:1.5: pass depth:3"),
    "no ratio": (dict(split="intra:2:0.0"), "--optimizer hybrid: ratio=0.0 in Intra"),
    "too deep": (dict(split="depth:4"), "--optimizer hybrid: k=4 in Depth: the model has 3 blocks; pass an integer in [0, 3]"),
    "never": (dict(split="lisa:1:0"), "--optimizer hybrid: every=0 in LISA"),
    "zo": (dict(zo="mezo-svrg"), "--zo mezo-svrg: pass one of "),
    "fo": (dict(fo="adam"), "--fo adam: pass one of adamw, sgd (did you mean 'adamw'?)"),
    "fo_lr": (dict(fo_lr=0.0), "--fo-lr 0.0: pass a number > 0"),
    "of another": (dict(momentum=0.5), "--momentum is no option of --zo mezo: leave it out, or pass "),
    "of svrg": (dict(lr_full=0.5), "--lr-full is no option of --zo mezo: leave it out"),
    "defer": (dict(defer=True), "--defer does not go with --optimizer hybrid: leave it out"),
    "lr_ratio": (dict(adapter=("lora",), lr_ratio=4.0), "--lr-ratio does not go with --optimizer hybrid"),
    "blocks": (dict(blocks=True, split="intra:2"), "--blocks does not go with --split intra:2"),
    "shared": (dict(zo="none", lr=None, share_forward=True), "--share-forward with --zo none, which has no forward pass to share"),
    "tangents": (dict(zo="forward-gradient", share_forward=True), "--share-forward with --zo forward-gradient"),
    "frozen": (dict(zo="none"), "--lr is of the zeroth-order half, and --zo is none: leave it out"),
    "frozen q": (dict(zo="none", lr=None, q=2), "--q is of the zeroth-order half"),
    "head": (dict(adapter=("head",)), "--adapter head leaves nothing to the zeroth-order half of --optimizer hybrid: pass --zo none"),
    "all": (dict(split="lisa:3:2"), "leaves no parameter to zo"),
    "objective": (dict(objective="accuracy"), "--objective accuracy has no derivative for --optimizer hybrid"),
    "alone": (dict(optimizer="mezo", fo_lr=None, split="depth:1"), "--split is of --optimizer hybrid: pass that, or leave it out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_leaves_nothing_behind(run, tmp_path, name):
    more, message = REFUSED[name]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(BadInput) as error:
        finetune(changed(run, **more), quiet)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_run_that_diverges_names_both_rates(run):
    with pytest.raises(BadInput, match="--lr 0.001, --fo-lr 1e.38: pass a smaller --lr or --fo-lr"):
        finetune(changed(run, fo="sgd", fo_lr=1e38, steps=40, eval_every=50), quiet)
