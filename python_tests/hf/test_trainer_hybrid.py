"""ZOTrainer takes Hybrid's steps: those of a plain loop of hybrid.step(closure), bit for bit, with gradients that Trainer clips."""

import weakref
from functools import partial

import pytest
import torch
import transformers
from hf_cases import farthest, make, rows, same, weights

import zokern
from zokern import Hybrid, splits
from zokern.hf import ZOTrainer

ZO = partial(zokern.MeZO, lr=1e-3, eps=1e-2, seed=3)
ADAMW = partial(torch.optim.AdamW, lr=5e-3)
SGD = partial(torch.optim.SGD, lr=5e-2, momentum=0.9)
LISA = splits.LISA(gamma=1, every=2, seed=4)  # its draws in six steps are blocks 1, 0 and 1
OWN = {"learning_rate": 5e-5}  # Trainer's default: each half has its own
CLIP = 0.5  # of gradients whose norm is about 3
CASES = {
    "Depth": dict(zo=ZO, fo=ADAMW, split=splits.Depth(1)),
    "Depth, two forwards": dict(zo=ZO, fo=SGD, split=splits.Depth(1), share_forward=True),
    "Inter, ZOAdam": dict(zo=partial(zokern.ZOAdam, lr=1e-3, eps=1e-2), fo=SGD, split=splits.Inter([0])),
    "Intra": dict(zo=ZO, fo=ADAMW, split=splits.Intra(1)),
    "LISA": dict(zo=ZO, fo=ADAMW, split=LISA),
    "LISA, ZOAdam": dict(zo=partial(zokern.ZOAdam, lr=1e-3, eps=1e-2), fo=ADAMW, split=LISA),
    "LISA, the rest frozen": dict(zo=None, fo=ADAMW, split=LISA),
    "ForwardGradient": dict(zo=partial(zokern.ForwardGradient, lr=1e-3), fo=SGD, split=splits.Depth(1)),
}


class Batches:
    """A collator that keeps what it has made."""

    def __init__(self):
        self.made = []

    def __call__(self, features):
        self.made.append(transformers.default_data_collator(features))
        return dict(self.made[-1])


def by_hand(model, settings, batches, steps=6, clip=CLIP, around=lambda: torch.autocast("cpu", enabled=False)):
    """The plain loop, lr falling linearly to 0, gradients clipped as torch does it. -> (losses, norms before clipping)."""
    hybrid, norms, losses = Hybrid(model.eval(), **settings), [], []
    parameters = [p for group in hybrid.fo.param_groups for p in group["params"]]
    hybrid.fo.register_step_pre_hook(lambda *_: norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, clip))))
    begin = [(group, group["lr"]) for half in (hybrid.zo, hybrid.fo) if half for group in half.param_groups]

    def closure():
        with around():
            return model(**batch).loss

    for step in range(steps):
        batch = batches[step]
        for group, lr in begin:
            group["lr"] = lr * (1 - step / steps)
        losses.append(float(hybrid.step(closure)))
    return losses, norms


@pytest.mark.parametrize("name", CASES)
def test_the_steps_are_those_of_a_plain_loop(name, trainer_of):
    settings, collate, config = CASES[name], Batches(), {"attn_implementation": "eager"}
    trainer = trainer_of(
        model=make("opt-cls", **config), optimizer=(Hybrid, settings), trainer={"data_collator": collate, "train_dataset": rows("opt-cls")},
        max_grad_norm=CLIP, **OWN,
    )  # fmt: skip
    trainer.train()
    plain = make("opt-cls", **config)
    plain.config.use_cache = False
    losses, norms = by_hand(plain, settings, collate.made)
    assert same(weights(trainer.model), weights(plain))
    assert farthest(weights(plain), weights(make("opt-cls"))) > 1e-3 and max(norms) > 2 * CLIP
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    if not settings.get("share_forward"):
        assert [entry["loss"] for entry in logged] == pytest.approx(losses, rel=1e-6)
    assert [entry["grad_norm"] for entry in logged] == pytest.approx(norms, rel=1e-6)
    assert ("projected_grad" in logged[0]) == (settings["zo"] is not None) and logged[-1]["skipped_steps"] == 0
    assert ("loss_plus" in logged[0]) == (name not in ("LISA, the rest frozen", "ForwardGradient"))
    assert all(p.grad is None for p in trainer.model.parameters())


def test_one_made_beforehand_with_layers_and_a_schedule_of_its_own(trainer_of):
    """The schedule drives both halves; in the twin each half has its own."""
    runs = []
    for both in (True, False):
        model = make("opt-lm")
        hybrid = Hybrid(zokern.layers(model, blocks=list(model.model.decoder.layers)), ZO, SGD, splits.Depth(1))
        halves = [hybrid] if both else [hybrid.zo, hybrid.fo]
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(half, 0.5) for half in halves]
        if both:
            trainer_of(model=model, trainer={"optimizers": (hybrid, schedulers[0])}, max_grad_norm=0).train()
            assert [group["lr"] for group in hybrid.param_groups] == [1e-3 / 64, 5e-2 / 64]
        else:
            collate = Batches()
            trainer_of(max_steps=6, trainer={"data_collator": collate}).train()  # for its batches
            for batch in collate.made[:6]:
                hybrid.step(lambda: model.eval()(**batch).loss)  # noqa: B023
                for scheduler in schedulers:
                    scheduler.step()
        runs.append(weights(model))
    assert same(*runs)


@pytest.mark.parametrize("name", ["Depth", "Intra", "Depth, two forwards"])
def test_micro_batches_are_one_batch_and_backpropagated_one_by_one(name, trainer_of):
    """8 x 1 = 2 x 4, by tokens. Tolerance as for MeZO: losses near 4 differ by 2**-21, over 2 eps = 2e-2 and times lr |z| = 4e-3, in each
    of 3 steps; AdamW's first steps are of size lr for tiny gradients too, and so SGD is asked."""

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor
            held.add(self)

    class Watched(ZOTrainer):
        def compute_loss(self, *args, **named):
            assert not held  # what a micro-batch keeps for its backward pass is gone when the next one comes
            with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
                loss = super().compute_loss(*args, **named)
            differentiated.append(len(held) > 0)
            return loss

    held = weakref.WeakSet()

    runs = []
    for size, steps in ((8, 1), (2, 4)):
        differentiated = []
        trainer = trainer_of(
            kind=Watched, optimizer=(Hybrid, {**CASES[name], "fo": SGD}), per_device_train_batch_size=size,
            gradient_accumulation_steps=steps, max_steps=3, trainer={"train_dataset": rows("opt-lm", 24), "check": False}, **OWN,
        )  # fmt: skip
        trainer.train()
        runs.append(weights(trainer.model))
        forwards = 2 if "two" in name else 3
        assert sum(differentiated) == 3 * steps and len(differentiated) == 3 * steps * forwards
    assert farthest(*runs) < 2.5e-6 and farthest(runs[0], weights(make("opt-lm"))) > 1e-3


@pytest.mark.parametrize("name", ["Depth", "Intra", "LISA, ZOAdam", "LISA, the rest frozen"])
@pytest.mark.parametrize("stop", [3, 4])  # within a draw of LISA, and at its end
def test_a_resumed_run_is_the_uninterrupted_one(name, stop, trainer_of, tmp_path):
    def start():
        return trainer_of(optimizer=(Hybrid, CASES[name]), save_strategy="steps", save_steps=1, **OWN)

    whole = start()
    whole.train()
    again = start()
    again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stop}"))
    assert same(weights(whole.model), weights(again.model)) and again.zeroth_order.steps == 6
    assert whole.state.log_history[-2] == again.state.log_history[-2]


def test_bf16_is_autocast_by_hand(trainer_of):
    collate = Batches()
    trainer = trainer_of(bf16=True, optimizer=(Hybrid, CASES["Depth"]), trainer={"data_collator": collate}, max_grad_norm=CLIP, **OWN)
    trainer.train()
    plain = make("opt-lm")
    plain.config.use_cache = False
    by_hand(plain, CASES["Depth"], collate.made, around=lambda: torch.autocast("cpu", torch.bfloat16))
    assert same(weights(trainer.model), weights(plain))


def test_an_evaluation_between_the_halves_is_of_settled_weights(trainer_of):
    """It costs the way there and back, a rounding, and leaves the gradients."""

    class Look(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            assert farthest(weights(watched.model), before) > 1e-3  # beside theta
            watched.evaluate()
            assert farthest(weights(watched.model), before) < 1e-6

    runs = []
    for callbacks in ([Look()], []):
        own = {"callbacks": callbacks, "eval_dataset": rows("opt-lm", 4)}
        watched = trainer_of(optimizer=(Hybrid, CASES["Depth"]), trainer=own, max_steps=1, **OWN)
        before = weights(watched.model)
        watched.train()
        runs.append(weights(watched.model))
    assert farthest(*runs) < 1e-6 and farthest(before, runs[0]) > 1e-3


def test_a_loss_that_is_not_finite_moves_nothing_and_is_counted(trainer_of):
    class Broken(ZOTrainer):
        def compute_loss(self, *args, **named):
            loss = super().compute_loss(*args, **named)
            return loss * float("nan") if self.state.global_step == 1 and torch.is_grad_enabled() else loss

    trainer = trainer_of(kind=Broken, optimizer=(Hybrid, CASES["Depth"]), max_steps=2, logging_nan_inf_filter=False, **OWN)
    once = trainer_of(optimizer=(Hybrid, CASES["Depth"]), max_steps=1, **OWN)
    once.train()
    with pytest.warns(RuntimeWarning, match="step 1 was skipped"):
        trainer.train()
    assert farthest(weights(trainer.model), weights(once.model)) < 1e-6
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["skipped_steps"] for entry in logged] == [0, 1] and logged[1]["grad_norm"] == 0


REFUSED = {
    "trajectory": (dict(OWN), {"trajectory": "log.jsonl"}, "trajectory='log.jsonl' with Hybrid.*leave it out"),
    "checkpointing": ({**OWN, "gradient_checkpointing": True}, {}, r"gradient_checkpointing=True works in train\(\) mode.*Depth"),
    "one lr": ({"learning_rate": 1e-3}, {}, "learning_rate=0.001 is for one optimizer, and Hybrid has two: leave it at 5e-05"),
    "one decay": ({**OWN, "weight_decay": 0.1}, {}, "weight_decay=0.1 is for one optimizer, and Hybrid has two: leave it at 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, trainer_of):
    settings, own, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        trainer_of(optimizer=(Hybrid, CASES["Depth"]), trainer=own, **settings)
