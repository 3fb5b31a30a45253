"""ZOTrainer looks at its closure before step 0, and the run does not know of it."""

import warnings
from functools import partial

import pytest
import torch
from hf_cases import make, rows, same, weights

import zokern
from zokern.hf import ZOTrainer

HYBRID = dict(zo=partial(zokern.MeZO, lr=1e-3, eps=1e-3), fo=partial(torch.optim.SGD, lr=1e-2), split=zokern.splits.Depth(1))
RUNS = {
    "MeZO": ((zokern.MeZO, {"eps": 1e-3}), {}),
    "MeZO deferred, in micro-batches": ((zokern.MeZO, {"defer": True}), {"gradient_accumulation_steps": 2}),
    "warming up": ((zokern.MeZO, {}), {"warmup_steps": 3}),
    "ZOAdam": ((zokern.ZOAdam, {"lr": 1e-4}), {}),
    "MeZOSVRG": ((zokern.MeZOSVRG, {"lr": 1e-3, "lr_full": 1e-2}), {}),
    "ForwardGradient": ((zokern.ForwardGradient, {}), {}),
    "Hybrid": ((zokern.Hybrid, HYBRID), {"learning_rate": 5e-5}),
}


def run(trainer_of, tmp_path, name, check, **settings):
    optimizer, own = RUNS[name]
    log = {} if name == "Hybrid" else {"trajectory": tmp_path / f"{check}.jsonl"}
    model = make("opt-lm", attn_implementation="eager")
    trainer = trainer_of(model=model, optimizer=optimizer, trainer={"check": check, **log}, **{**own, **settings})
    trainer.train()
    text = log["trajectory"].read_text() if log else None
    return trainer, weights(trainer.model), [entry.get("loss") for entry in trainer.state.log_history], torch.get_rng_state(), text


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_bits_with_the_check_as_without_and_has_no_warning(name, trainer_of, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        checked, *one = run(trainer_of, tmp_path, name, True)
        plain, *other = run(trainer_of, tmp_path, name, False)
    assert same(one[0], other[0]) and one[1] == other[1] and torch.equal(one[2], other[2])
    assert one[3] == other[3] and "disturbed" not in (one[3] or "")
    assert plain.checked is None and checked.checked.problems == [] and checked.checked.wobble == 0 and checked.check_seconds > 0


def test_a_resumed_run_is_not_checked_again(trainer_of, tmp_path):
    saving = dict(save_strategy="steps", save_steps=3)
    whole, *_ = run(trainer_of, tmp_path, "MeZO", True, **saving)
    again = trainer_of(model=make("opt-lm", attn_implementation="eager"), **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert whole.checked is not None and again.checked is None
    assert same(weights(whole.model), weights(again.model))


NEAREST = zokern.MeZO, {"perturbation": "copied-own", "rounding": "nearest"}


class Dropping(ZOTrainer):
    def compute_loss(self, model, *args, **kwargs):
        return super().compute_loss(model.train(), *args, **kwargs)


def test_each_problem_is_one_warning(trainer_of):
    """Dropout, and updates that bfloat16 cannot hold."""
    trainer = trainer_of(model=make("opt-lm", dtype=torch.bfloat16), kind=Dropping, optimizer=NEAREST, learning_rate=1e-7, max_steps=2)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        trainer.train()
    problems = [str(w.message) for w in heard if "before step 0" in str(w.message)]
    assert [p.split(": ", 1)[1].removesuffix(" (ZOTrainer(check=False) does not look)") for p in problems] == trainer.checked.problems
    assert "at the same weights" in problems[0] and "of the weights in 16 bits where they are" in problems[1] and len(problems) == 2


def test_weights_in_16_bits_at_a_small_rate_are_warned_of_and_adapters_are_not(trainer_of):
    """lr 1e-6 of a whole model in bfloat16; LoRA's are float32."""
    for method, lost in (("full", True), ("lora", False)):
        rounded = NEAREST if lost else (zokern.MeZO, {})
        model = make("opt-cls", method, torch.bfloat16)
        trainer = trainer_of("opt-cls", model=model, optimizer=rounded, learning_rate=1e-6, max_steps=1)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            trainer.train()
        assert any("of the weights in 16 bits where they are" in str(w.message) for w in heard) == lost
        assert trainer.checked.lost == (pytest.approx(0.95, abs=0.05) if lost else None)


class Objective:
    """0-1 loss, or cross-entropy, which says that it is smooth."""

    def __init__(self, smooth):
        if smooth:
            self.smooth = True

    def scores(self, model, inputs):
        return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits

    def loss(self, model, inputs):
        scores = self.scores(model, inputs)
        if hasattr(self, "smooth"):
            return torch.nn.functional.cross_entropy(scores, inputs["labels"])
        return (scores.argmax(-1) != inputs["labels"]).float().mean()


@pytest.mark.parametrize("smooth", [False, True])
def test_an_objective_that_is_counted_is_asked_for_its_repetition_alone(smooth, trainer_of):
    trainer = trainer_of("opt-cls", trainer={"objective": Objective(smooth), "train_dataset": rows("opt-cls")}, max_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        trainer.train()
    assert trainer.checked.smooth == smooth and [len(slopes) for slopes in trainer.checked.slopes] == [3 if smooth else 1]


def test_a_hybrid_without_a_zeroth_order_half_has_nothing_to_check(trainer_of):
    lisa = zokern.splits.LISA(gamma=1, every=2, seed=4)
    trainer = trainer_of(optimizer=(zokern.Hybrid, {**HYBRID, "zo": None, "split": lisa}), learning_rate=5e-5, max_steps=1)
    trainer.train()
    assert trainer.checked is None
