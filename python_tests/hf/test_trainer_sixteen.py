"""ZOTrainer and weights in 16 bits: whichever way they are perturbed, they move by updates alone, and a run is made again to the bit."""

import json
import warnings
from functools import partial

import pytest
import torch
import transformers
from hf_cases import farthest, make, rows, same, weights

import zokern
from zokern.hf import ZOTrainer, adapt
from zokern.tasks.lean import lean_loss

SIXTEEN = [torch.bfloat16, torch.float16]
# name -> (the optimizer's settings, how the weights are then perturbed, how their updates are rounded)
MODES = {
    "nothing said": ({}, "streamed", "stochastic"),
    "streamed, nearest": ({"perturbation": "streamed", "rounding": "nearest"}, "streamed", "nearest"),
    "copied": ({"perturbation": zokern.Copied()}, "copied", "nearest"),
    "copied-own": ({"perturbation": "copied-own"}, "copied-own", "stochastic"),
}
ALL = MODES | {"in-place": ({"perturbation": "in-place"}, "in-place", "nearest")}
EPS = {"eps": 1e-2}
SAVING = dict(save_strategy="steps", save_steps=3)


def mezo(mode):
    return zokern.MeZO, EPS | ALL[mode][0]


def prebuilt(model, mode, lr=1e-3):
    """An optimizer as a user makes it, who has the model."""
    given = EPS | MODES[mode][0]
    if MODES[mode][1] == "streamed":
        given["perturbation"] = zokern.Streamed(model)
    return zokern.MeZO(model.named_parameters(), lr=lr, **given)


def sixteen(name="opt-lm", dtype=torch.bfloat16, **config):
    return make(name, dtype=dtype, **config)


def theta(trainer):
    """What the optimizer holds of each parameter, by name."""
    state = trainer.zeroth_order.state
    return {name: state[p]["theta"].clone() for name, p in trainer.model.named_parameters() if state.get(p)}


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_without_a_learning_rate_no_bit_moves(mode, dtype, trainer_of):
    trainer = trainer_of(model=sixteen(dtype=dtype), optimizer=mezo(mode), learning_rate=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        trainer.train()
    group = trainer.zeroth_order.param_groups[0]
    assert (group["perturbation"], group["rounding"], group["step"]) == (*MODES[mode][1:], 6)
    assert same(weights(trainer.model), weights(sixteen(dtype=dtype)))
    losses = [entry["loss_plus"] - entry["loss_minus"] for entry in trainer.state.log_history if "loss_plus" in entry]
    assert all(losses)  # they were measured at other weights


def test_in_place_they_drift_which_has_to_be_asked_for(trainer_of):
    trainer = trainer_of(model=sixteen(), optimizer=mezo("in-place"), learning_rate=0.0)
    trainer.train()
    assert not same(weights(trainer.model), weights(sixteen()))


@pytest.mark.parametrize("mode", ALL)
def test_a_run_is_resumed_and_replayed_to_the_bit(mode, trainer_of, tmp_path):
    """With micro-batches, from a checkpoint; theta of copied weights, too."""
    runs = []
    for resume in (None, str(tmp_path / "run" / "checkpoint-3")):
        log = {"trajectory": tmp_path / "log.jsonl"}
        trainer = trainer_of(model=sixteen(), optimizer=mezo(mode), gradient_accumulation_steps=2, trainer=log, **SAVING)
        trainer.train(resume_from_checkpoint=resume)
        runs.append((weights(trainer.model), theta(trainer), log["trajectory"].read_text()))
    assert same(runs[0][0], runs[1][0]) and same(runs[0][1], runs[1][1]) and runs[0][2] == runs[1][2]
    assert not same(runs[0][0], weights(sixteen())) and bool(runs[0][1]) == mode.startswith("copied")
    group = json.loads(runs[0][2].splitlines()[0])["groups"][0]
    assert (group["perturbation"], group["rounding"]) == ALL[mode][1:]
    again = sixteen()
    replayed = zokern.Trajectory.read(tmp_path / "log.jsonl").replay(again)
    assert same(weights(again), runs[0][0])
    assert same({name: replayed.state[p]["theta"] for name, p in again.named_parameters() if replayed.state.get(p)}, runs[0][1])


class Batches:
    def __init__(self):
        self.made = []

    def __call__(self, features):
        self.made.append(transformers.default_data_collator(features))
        return dict(self.made[-1])


@pytest.mark.parametrize("mode", MODES)
def test_the_steps_are_those_of_a_plain_loop(mode, trainer_of):
    collate = Batches()
    trainer = trainer_of(model=sixteen(), optimizer=mezo(mode), trainer={"data_collator": collate}, lr_scheduler_type="constant")
    trainer.train()
    plain = sixteen().eval()
    optimizer = prebuilt(plain, mode)
    for batch in collate.made[:6]:
        optimizer.step(lambda: plain(**batch, use_cache=False).loss)  # noqa: B023
    assert same(weights(trainer.model), weights(plain))


class Watch(transformers.TrainerCallback):
    """The weights at every evaluation."""

    def __init__(self):
        self.seen = []

    def on_evaluate(self, args, state, control, model, **kwargs):
        self.seen.append(weights(model))


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_is_at_theta_and_the_best_model_is_loaded_at_the_end(mode, trainer_of, tmp_path):
    """What is loaded is theta from then on."""
    data, watch, found = rows("opt-cls", 6), Watch(), iter([2.0, 1.0, 3.0])
    trainer = trainer_of(
        "opt-cls",
        model=sixteen("opt-cls"),
        optimizer=mezo(mode),
        trainer={"eval_dataset": data, "callbacks": [watch], "compute_metrics": lambda p: {"odd": next(found)}},
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="odd",
        greater_is_better=False,
        per_device_eval_batch_size=6,
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    for step, seen, loss in zip((2, 4, 6), watch.seen, losses):
        saved = transformers.OPTForSequenceClassification.from_pretrained(tmp_path / "run" / f"checkpoint-{step}")
        assert same(weights(saved), seen)
        batch = transformers.default_data_collator(data)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert loss == pytest.approx(float(saved.eval()(**batch).loss), rel=1e-6)
    assert not same(watch.seen[1], watch.seen[2]) and same(weights(trainer.model), watch.seen[1])
    optimizer, held = trainer.zeroth_order, theta(trainer)
    assert held.keys() == (weights(trainer.model).keys() if "copied" in mode else set())
    assert all(torch.equal(held[name].to(p.dtype), p) for name, p in watch.seen[1].items() if name in held)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step(lambda: trainer.model(**transformers.default_data_collator(data)).loss.float())
    assert same(weights(trainer.model), watch.seen[1])


@pytest.mark.parametrize("mode", MODES)
def test_generation_in_an_evaluation_is_at_theta(mode, tmp_path):
    class ZOSeq2SeqTrainer(ZOTrainer, transformers.Seq2SeqTrainer):
        pass

    torch.manual_seed(0)
    sizes = dict(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).bfloat16()
    data = [dict(input_ids=torch.arange(3 + i, 9 + i), labels=torch.arange(4)) for i in range(8)]
    own = dict(predict_with_generate=True, generation_max_length=6, max_steps=3, use_cpu=True, report_to=[], disable_tqdm=True)
    settings = transformers.Seq2SeqTrainingArguments(str(tmp_path), learning_rate=1e-2, eval_strategy="steps", eval_steps=1, **own)
    found = []
    trainer = ZOSeq2SeqTrainer(
        model,
        settings,
        train_dataset=data,
        eval_dataset=data,
        optimizers=(prebuilt(model, mode, lr=1e-2), None),
        compute_metrics=lambda p: found.append((p.predictions, weights(model))) or {},
    )
    trainer.train()
    assert len(found) == 3 and not same(found[0][1], found[2][1])
    for predictions, held in found:
        model.load_state_dict(held, strict=False)
        ids = torch.stack([row["input_ids"] for row in data])
        expected = model.generate(ids, max_length=6)
        assert predictions[:, : expected.shape[1]].tolist() == expected.tolist()  # Trainer pads


class Own(ZOTrainer):
    """A loss of its own, without the model's full logits."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return lean_loss(model, **inputs)


def test_a_loss_of_ones_own_is_that_of_explicit_weights(trainer_of):
    collate = Batches()
    trainer = trainer_of(model=sixteen(), kind=Own, optimizer=mezo("nothing said"), trainer={"data_collator": collate, "check": False})
    trainer.train()
    assert trainer.zeroth_order.param_groups[0]["perturbation"] == "streamed"
    explicit, batch = sixteen().eval(), collate.made[0]
    layout, key = zokern.Layout(list(explicit.parameters())), zokern.NoiseKey.of(0, 0)
    theta = [p.detach().clone() for p in explicit.parameters()]
    for c, name in ((1e-2, "loss_plus"), (-1e-2, "loss_minus")):
        zokern.ops.add_noise_(zokern.Layout(theta), [(key, c)], out=layout.params)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=False):
            assert trainer.state.log_history[0][name] == float(lean_loss(explicit, **batch))


class Accuracy:
    def scores(self, model, inputs):
        return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.float()

    def loss(self, model, inputs):
        return (self.scores(model, inputs).softmax(-1)[:, 0] - inputs["labels"]).abs().double().mean()


OTHERS = {
    "workers": (dict(dataloader_num_workers=2), {}, (zokern.MeZO, EPS)),
    "an objective": ({}, {"objective": Accuracy()}, (zokern.MeZO, EPS)),
    "MeZOSVRG": ({}, {"full_batch": 6}, (zokern.MeZOSVRG, EPS | {"lr": 1e-3, "lr_full": 1e-3})),
    "ZOAdam": ({}, {}, (zokern.ZOAdam, {"lr": 1e-4})),
    "ForwardGradient": ({}, {}, (zokern.ForwardGradient, {})),
    "weight decay": (dict(weight_decay=0.1), {}, (zokern.MeZO, EPS)),
    "deferred": ({}, {}, (zokern.MeZO, EPS | {"defer": True})),
}


@pytest.mark.parametrize("mode", ["nothing said", "copied", "copied-own"])
@pytest.mark.parametrize("case", OTHERS)
def test_a_run_of_another_kind_is_resumed_and_replayed(case, mode, trainer_of, tmp_path):
    settings, own, (kind, given) = OTHERS[case]
    config = {"attn_implementation": "eager"} if kind is zokern.ForwardGradient else {}
    runs = []
    for resume in (None, str(tmp_path / "run" / "checkpoint-3")):
        trainer = trainer_of(
            "opt-cls",
            model=sixteen("opt-cls", **config),
            optimizer=(kind, given | MODES[mode][0]),
            trainer={"trajectory": tmp_path / "log.jsonl", **own},
            **{**SAVING, **settings},
        )
        trainer.train(resume_from_checkpoint=resume)
        runs.append(weights(trainer.model))
    assert same(*runs) and not same(runs[0], weights(sixteen("opt-cls", **config)))
    expected = "in-place" if config and mode == "nothing said" else MODES[mode][1]
    assert trainer.zeroth_order.param_groups[-1]["perturbation"] == expected
    again = sixteen("opt-cls", **config)
    zokern.Trajectory.read(tmp_path / "log.jsonl").replay(again)
    assert same(weights(again), runs[0])


@pytest.mark.parametrize("method", ["lora", "dora", "prefix", "prompt", "head"])
def test_what_is_added_to_a_model_in_16_bits_is_in_float32_and_perturbed_in_place(method, trainer_of):
    model = adapt(sixteen("opt-cls"), method)
    trainer = trainer_of("opt-cls", model=model, optimizer=(zokern.MeZO, EPS))
    trainer.train()
    group = trainer.zeroth_order.param_groups[0]
    assert (group["perturbation"], group["rounding"]) == ("in-place", "nearest")


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
def test_adapters_are_streamed_where_that_is_asked_for(method, trainer_of):
    """By the wrapped model's parts: the same bits of loss as in place at the first step, whose weights are theta + eps z to the bit."""
    seen = []
    for perturbation in ("streamed", "in-place"):
        optimizer = zokern.MeZO, EPS | {"perturbation": perturbation}
        trainer = trainer_of("opt-cls", model=adapt(sixteen("opt-cls"), method), optimizer=optimizer)
        trainer.train()
        assert trainer.zeroth_order.param_groups[0]["perturbation"] == perturbation
        seen.append((trainer.state.log_history[0]["loss_plus"], weights(trainer.model)))
    assert seen[0][0] == seen[1][0] and farthest(seen[0][1], seen[1][1]) < 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_an_optimizer_made_beforehand_is_taken_as_it_is(mode, trainer_of):
    model = sixteen()
    optimizer = prebuilt(model, mode)
    trainer = trainer_of(model=model, trainer={"optimizers": (optimizer, None)})
    trainer.train()
    made = trainer_of(model=sixteen(), optimizer=mezo(mode))
    made.train()
    assert trainer.zeroth_order is optimizer and same(weights(model), weights(made.model))


COMPILED = dict(torch_compile=True, torch_compile_backend="eager", max_steps=1)


def test_a_compiled_model_is_not_streamed(trainer_of):
    with pytest.raises(ValueError, match=r"torch_compile=True holds the weights .* \{\"perturbation\": zokern.Copied\(\)\}"):
        trainer_of(model=sixteen(), optimizer=mezo("nothing said"), **COMPILED).train()


def test_a_compiled_model_is_copied(trainer_of):
    try:
        torch.compile(sixteen(), backend="eager")(**{key: value[None] for key, value in rows("opt-lm")[0].items()})
    except Exception as error:  # of torch 2.6, with transformers as it is since
        pytest.skip(f"torch {torch.__version__} cannot compile transformers' OPT: {error}")
    runs = []
    for settings in ({}, COMPILED):
        trainer = trainer_of(model=sixteen(), optimizer=mezo("copied"), **{"max_steps": 1, **settings}, trainer={"check": False})
        trainer.train()
        runs.append(weights(trainer.model))
    assert same(*runs) and not same(runs[0], weights(sixteen()))


def test_a_hybrid_streams_its_zeroth_order_half(trainer_of, tmp_path):
    """Or copies it; the first-order half is of 16 bits as ever."""
    for mode in ("nothing said", "copied"):
        runs = []
        for resume in (None, str(tmp_path / "run" / "checkpoint-3")):
            model = sixteen()
            given = {"perturbation": zokern.Streamed(model)} if mode == "nothing said" else MODES[mode][0]
            halves = dict(zo=partial(zokern.MeZO, lr=1e-3, **EPS, **given), fo=partial(torch.optim.SGD, lr=1e-2))
            hybrid = zokern.Hybrid, {**halves, "split": zokern.splits.Depth(1)}
            trainer = trainer_of(model=model, optimizer=hybrid, learning_rate=5e-5, **SAVING)
            trainer.train(resume_from_checkpoint=resume)
            runs.append(weights(model))
        assert trainer.zeroth_order.zo.param_groups[0]["perturbation"] == MODES[mode][1]
        assert same(*runs) and not same(runs[0], weights(sixteen()))
