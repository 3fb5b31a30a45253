"""What Trainer does around a step: resuming, evaluating, saving, logging, and what is refused."""

import math
import subprocess
import sys
import warnings
from functools import partial

import pytest
import torch
import transformers
from hf_cases import make, rows, same, weights

import zokern
from zokern.hf import ZOTrainer

SAVING = dict(save_strategy="steps", save_steps=3)
RESUMED = {
    "MeZO": (zokern.MeZO, {"eps": 1e-2}),
    "MeZO deferred": (zokern.MeZO, {"defer": True}),
    "ZOAdam": (zokern.ZOAdam, {"lr": 1e-4}),
    "MeZOSVRG": (zokern.MeZOSVRG, {"lr": 1e-3, "lr_full": 1e-2, "q": 2}),
}


def resumed_like_uninterrupted(trainer_of, tmp_path, *args, **settings):
    whole = trainer_of(*args, **SAVING, **settings)
    whole.train()
    again = trainer_of(*args, **SAVING, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert again.zeroth_order.param_groups[0]["step"] == 6
    assert same(weights(whole.model), weights(again.model))
    assert not same(weights(whole.model), weights(trainer_of(*args, **settings).model))


@pytest.mark.parametrize("method", ["full", "lora", "prefix", "prompt"])
@pytest.mark.parametrize("name", ["opt-lm", "opt-cls", "roberta"])
def test_a_resumed_run_is_the_uninterrupted_one(name, method, trainer_of, tmp_path):
    resumed_like_uninterrupted(trainer_of, tmp_path, name, method)


@pytest.mark.parametrize("name", RESUMED)
def test_an_optimizer_is_resumed(name, trainer_of, tmp_path):
    resumed_like_uninterrupted(trainer_of, tmp_path, optimizer=RESUMED[name], gradient_accumulation_steps=2)


class Weights(transformers.TrainerCallback):
    """Looks at the weights whenever Trainer has evaluated or saved."""

    def __init__(self):
        self.seen = []

    def on_evaluate(self, args, state, control, model, **kwargs):
        self.seen.append(weights(model))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_deferred_update_is_settled_before_anybody_looks(method, trainer_of, tmp_path):
    """A flush rounds float32 weights once more: the deferred run is as good as the other one, not the same bits."""
    runs = []
    for defer in (False, True):
        watch = Weights()
        around = dict(eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, max_steps=4)
        trainer = trainer_of(
            "opt-cls", method, (zokern.MeZO, {"defer": defer}), trainer={"eval_dataset": rows("opt-cls", 6), "callbacks": [watch]}, **around
        )
        trainer.train()
        losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        runs.append((watch.seen, losses, weights(trainer.model)))
    for one, other in zip(*(run[0] + [run[2]] for run in runs)):
        assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    assert runs[0][1] == pytest.approx(runs[1][1], abs=1e-5)
    saved = tmp_path / "run" / "checkpoint-4"
    if method == "full":
        loaded = transformers.OPTForSequenceClassification.from_pretrained(saved)
        assert same(weights(loaded), runs[1][2])


@pytest.mark.parametrize("defer", [False, True])
def test_the_best_model_is_loaded_at_the_end(defer, trainer_of):
    """Over weights that have gone one step on, and with defer=True have its update pending."""

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    watch = Weights()
    trainer = trainer_of(
        "opt-cls",
        optimizer=(zokern.MeZO, {"defer": defer}),
        trainer={"eval_dataset": rows("opt-cls", 6), "callbacks": [watch, Stop()]},
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="best",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    trainer.train()
    (loss,) = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.zeroth_order.param_groups[0]["step"] == 3 and same(weights(trainer.model), watch.seen[0])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-6)


def test_a_rate_that_falls_on_a_plateau(trainer_of):
    trainer = trainer_of(
        "opt-cls",
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0, "threshold": 1e9, "threshold_mode": "abs"},
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="eval_loss",
        max_steps=4,
        trainer={"eval_dataset": rows("opt-cls", 4)},
    )
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])


def test_what_is_logged(trainer_of):
    trainer = trainer_of(
        "opt-cls", logging_steps=2, lr_scheduler_type="constant", eval_strategy="epoch", trainer={"eval_dataset": rows("opt-cls", 4)}
    )
    each = []

    class Every(transformers.TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            each.append(trainer.zeroth_order.last)

    trainer.add_callback(Every())
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [2, 4, 6] and not any("grad_norm" in entry for entry in logs)
    for entry, first, second in zip(logs, each[::2], each[1::2]):
        assert entry["loss"] == pytest.approx((float(first.loss) + float(second.loss)) / 2, rel=1e-6)
        assert (entry["loss_plus"], entry["loss_minus"]) == tuple(float(loss) for loss in second.losses)
        assert entry["projected_grad"] == float(second.projected_grad) and entry["skipped_steps"] == 0
    assert all("projected_grad" not in entry for entry in trainer.state.log_history if "eval_loss" in entry)


def test_skipped_steps_are_logged(trainer_of):
    class Broken(ZOTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss * math.nan if self.state.global_step in (1, 3) else loss

    trainer = trainer_of(kind=Broken, lr_scheduler_type="constant")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "step .* was skipped", RuntimeWarning)
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["skipped_steps"] for entry in logs] == [0, 1, 1, 2, 2, 2]
    assert [math.isnan(entry["loss"]) for entry in logs] == [math.isnan(entry["loss_plus"]) for entry in logs]


class Sometimes(ZOTrainer):
    """Whose loss is 4 times that of the model, or not finite, step by step."""

    finite = ()

    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs) * 4 if self.state.global_step in self.finite else torch.tensor(math.nan)


@pytest.mark.filterwarnings("ignore:step .* was skipped", "ignore:L\\(theta\\)")
@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("finite", [(), (3,), (0, 1, 2), range(6)], ids=str)
def test_the_loss_that_is_logged_is_the_mean_of_those_that_are_finite(finite, filtered, trainer_of):
    """Trainer's filter logs 0.0 where none is, and counts an earlier average, or 0, for each that is not."""
    seen = []

    class Every(transformers.TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            seen.append(float(trainer.zeroth_order.last.loss))

    trainer = trainer_of(kind=Sometimes, logging_steps=3, logging_nan_inf_filter=filtered, trainer={"callbacks": [Every()]})
    trainer.finite = finite
    output = trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    for found, losses in zip([*logged, output.training_loss, output.metrics["train_loss"]], (seen[:3], seen[3:], seen, seen), strict=True):
        kept = [loss for loss in losses if math.isfinite(loss) or not filtered]
        assert found == pytest.approx(sum(kept) / len(kept) if kept else math.nan, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("kind", [zokern.ForwardGradient, zokern.MeZO])
def test_the_sides_have_their_names(kind, trainer_of):
    model = make("opt-lm", attn_implementation="eager")
    settings = {"estimator": "one-sided", "q": 2} if kind is zokern.MeZO else {}
    trainer = trainer_of(model=model, optimizer=(kind, settings), max_steps=1)
    trainer.train()
    entry, measurements = trainer.state.log_history[0], [float(measurement) for measurement in trainer.zeroth_order.measurements]
    if kind is zokern.MeZO:
        assert (entry["loss_minus"], entry["loss_plus"]) == tuple(measurements[:2])
        grads = [(measurements[i] - measurements[0]) / 1e-3 for i in (1, 2)]
        assert entry["projected_grad"] == pytest.approx(math.sqrt(sum(g * g for g in grads) / 2))
    else:
        assert "loss_plus" not in entry and [entry["projected_grad"]] == measurements[1:]


class Objective:
    """0-1 loss over the scores of two candidates, which are the last token's logits: no derivative."""

    def scores(self, model, inputs):
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return logits[:, -1, [7, 11]]

    def loss(self, model, inputs):
        return (self.scores(model, inputs).argmax(-1) != inputs["labels"]).double().mean()


def test_an_objective_without_a_derivative(trainer_of):
    data = [{**row, "labels": torch.tensor(i % 2)} for i, row in enumerate(rows("opt-lm"))]
    metrics = []

    def accuracy(prediction):
        metrics.append(prediction)
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    own = {"objective": Objective(), "train_dataset": data, "eval_dataset": data, "compute_metrics": accuracy}
    settings = dict(gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=6)
    trainer = trainer_of("opt-lm", optimizer=(zokern.MeZO, {"eps": 5e-2, "lr": 1e-3}), trainer=own, **settings)
    trainer.train()
    losses = [entry["loss_plus"] * 8 for entry in trainer.state.log_history if "loss_plus" in entry]
    assert losses == [round(x) for x in losses] and any(losses)  # of 8 rows, in two halves
    (prediction,) = metrics
    inputs = transformers.default_data_collator(data)
    with torch.no_grad():
        expected = Objective().scores(trainer.model, inputs)
    assert torch.allclose(torch.from_numpy(prediction.predictions), expected, atol=1e-5)
    assert prediction.label_ids.tolist() == inputs["labels"].tolist()
    evaluation = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert evaluation["eval_loss"] == pytest.approx(1 - evaluation["eval_accuracy"])
    assert trainer.predict([{k: v for k, v in row.items() if k != "labels"} for row in data]).predictions.shape == (20, 2)


def test_the_trajectory_is_recorded(trainer_of, tmp_path):
    path = tmp_path / "log.jsonl"
    trainer_of(trainer={"trajectory": path}, logging_steps=2, **SAVING).train()
    whole = path.read_text().splitlines()
    again = trainer_of(trainer={"trajectory": path}, logging_steps=2, **SAVING)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert len(path.read_text().splitlines()) == len(whole) > 6
    assert path.read_text().splitlines()[-1] == whole[-1]
    model = make("opt-lm")
    zokern.Trajectory.read(path).replay(model)
    assert same(weights(model), weights(again.model))


REFUSED = {
    "fp16": (dict(fp16=True), {}, ValueError, "fp16=True scales the loss.*bf16=True"),
    "neftune": (dict(neftune_noise_alpha=5.0), {}, ValueError, "neftune_noise_alpha=5.0 works in train"),
    "optim": (dict(optim="sgd"), {}, ValueError, r"optim='sgd' is for an optimizer that Trainer would make: .*zokern.ZOAdam"),
    "adam_beta1": (dict(adam_beta1=0.8), {}, ValueError, "adam_beta1=0.8 is for an optimizer that Trainer"),
    "max_grad_norm": (dict(max_grad_norm=0.5), {}, ValueError, "max_grad_norm=0.5 clips gradients, and there are none.*pass 0"),
    "checkpointing": (dict(activation_checkpointing=True), {}, ValueError, r"activation_checkpointing=True works in train\(\) mode"),
    "ddp": (dict(ddp_static_graph=True), {}, ValueError, "ddp_static_graph=True is for the DDP wrapper, and there is none"),
    "generate": (dict(predict_with_generate=True), {}, ValueError, "predict_with_generate=True is for Seq2SeqTrainer.*class ZOSeq2SeqTr"),
    "beams": (dict(generation_num_beams=4), {}, ValueError, "generation_num_beams=4 is for Seq2SeqTrainer"),
    "full_batch of none": ({}, {"trainer": {"full_batch": 3}, "optimizer": (zokern.ZOAdam, {})}, ValueError, "is of MeZOSVRG.*a ZOAdam"),
    "Adam's lr": (dict(learning_rate=5e-5), {}, ValueError, "learning_rate=5e-05, Trainer's default"),
    "stock class": ({}, {"optimizer": (torch.optim.AdamW, {})}, TypeError, "AdamW takes gradients.*zokern.MeZO"),
    "full_batch": ({}, {"optimizer": (zokern.MeZOSVRG, {}), "trainer": {"full_batch": 21}}, ValueError, r"full_batch=21 of 20.*\[1, 20\]"),
    "full_batch's name": ({}, {"optimizer": (zokern.MeZOSVRG, {}), "trainer": {"full_batch": "all"}}, ValueError, "full_batch='all'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, arguments, trainer_of, tmp_path):
    settings, others, error, message = REFUSED[case]
    args = arguments()
    for name, value in settings.items():  # some need a GPU to be asked for
        setattr(args, name, value)
    with pytest.raises(error, match=message):
        named = dict(optimizer_cls_and_kwargs=others.get("optimizer"), train_dataset=rows("opt-lm"), **others.get("trainer", {}))
        ZOTrainer(make("opt-lm"), args, **named)
    assert not (tmp_path / "run" / "checkpoint-1").exists()


def test_without_arguments_they_are_trainers_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = ZOTrainer(make("opt-lm"), optimizer_cls_and_kwargs=(zokern.MeZO, {"lr": 1e-3}), train_dataset=rows("opt-lm"))
    assert trainer.args.learning_rate == transformers.TrainingArguments().learning_rate
    with pytest.raises(ValueError, match="learning_rate=5e-05, Trainer's default"):
        ZOTrainer(make("opt-lm"), train_dataset=rows("opt-lm"))


def test_the_cure_for_an_evaluation_that_generates_is_one(tmp_path, arguments):
    class ZOSeq2SeqTrainer(ZOTrainer, transformers.Seq2SeqTrainer):
        pass

    torch.manual_seed(0)
    sizes = dict(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    data = [dict(input_ids=torch.arange(3 + i, 9 + i), labels=torch.arange(4)) for i in range(8)]
    own = dict(predict_with_generate=True, generation_max_length=6, max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True)
    settings = transformers.Seq2SeqTrainingArguments(str(tmp_path), learning_rate=1e-3, **own)
    trainer = ZOSeq2SeqTrainer(model, settings, train_dataset=data, eval_dataset=data)
    trainer.train()
    found = trainer.predict(data).predictions
    inputs = torch.stack([row["input_ids"] for row in data])
    assert found[:, :6].tolist() == model.generate(inputs, max_length=6).tolist() and not found[:, 6:].any()  # Trainer pads
    with pytest.raises(ValueError, match="predict_with_generate=True with objective="):
        ZOSeq2SeqTrainer(model, settings, train_dataset=data, objective=Objective())


def test_the_cache_is_emptied_as_often_as_asked(trainer_of, monkeypatch):
    emptied = []
    monkeypatch.setattr("zokern.hf.trainer.clear_device_cache", lambda: emptied.append(trainer.state.global_step))
    trainer = trainer_of(torch_empty_cache_steps=2, max_steps=5)
    trainer.train()
    assert emptied == [0, 2, 4]


def test_a_stock_optimizer_is_refused(arguments, trainer_of):
    model = make("opt-lm")
    with pytest.raises(TypeError, match="SGD takes gradients"):
        trainer_of(model=model, trainer={"optimizers": (torch.optim.SGD(model.parameters(), lr=1e-3), None)})
    made = trainer_of(optimizer=(lambda params, **settings: torch.optim.SGD(params, **settings), {}))
    with pytest.raises(TypeError, match="made a SGD"):
        made.train()


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_stock_trainer_is_told_of_this_one(hybrid, arguments):
    model = make("opt-lm")
    optimizer = zokern.MeZO(model.named_parameters())
    if hybrid:
        halves = partial(zokern.MeZO, lr=1e-3), partial(torch.optim.SGD, lr=1e-3)
        optimizer = zokern.Hybrid(model, *halves, zokern.splits.Depth(1))
    trainer = transformers.Trainer(model, arguments(), train_dataset=rows("opt-lm"), optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="closure=None: .*take zokern.hf.ZOTrainer"):
        trainer.train()


def test_a_stream_of_rows_trains_but_has_no_full_batch(trainer_of):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows("opt-lm"))

    trainer = trainer_of(trainer={"train_dataset": Stream()})
    trainer.train()
    assert trainer.state.global_step == 6
    with pytest.raises(ValueError, match="MeZOSVRG needs its full batch"):
        trainer_of(optimizer=(zokern.MeZOSVRG, {}), trainer={"train_dataset": Stream()})


def test_zokern_alone_loads_no_transformers():
    code = "import sys, zokern; sys.exit(any(name in sys.modules for name in ('transformers', 'peft', 'accelerate')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_loss_in_16_bits_is_noticed(dtype, accumulate, trainer_of):
    """Of a function of the user's: a model's own would be evaluated again, under autocast."""
    loss_of = lambda outputs, labels, num_items_in_batch=None: outputs.logits.square().mean().to(dtype)  # noqa: E731
    trainer = trainer_of("opt-cls", gradient_accumulation_steps=accumulate, max_steps=3, trainer={"compute_loss_func": loss_of})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    said = [str(w.message) for w in caught if "torch.bfloat16, which has 8 bits" in str(w.message)]
    assert len(said) == (dtype == torch.bfloat16)
