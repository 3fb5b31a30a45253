"""An optimizer from outside the package goes through ZOTrainer, its log and a replay with no other edit."""

import pytest
import torch
from hf_cases import make, rows, same, weights
from own_optimizer import SignMomentum
from transformers import TrainingArguments

import zokern
from zokern.hf import ZOTrainer


def trainer(path, steps=6, optimizer=SignMomentum, **settings):
    arguments = TrainingArguments(
        output_dir=str(path / "out"),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        save_steps=3,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    chosen = (optimizer, {"momentum": 0.7, "power": 0.5, **settings})
    return ZOTrainer(
        make("roberta"),
        arguments,
        train_dataset=rows("roberta"),
        optimizer_cls_and_kwargs=chosen,
        trajectory=path / "run.jsonl",
        check=False,
    )


def test_it_is_trained_logged_and_replayed(tmp_path):
    done = trainer(tmp_path)
    done.train()
    logged = [entry for entry in done.state.log_history if "loss" in entry]
    assert len(logged) == 6 and {"projected_grad", "loss_plus", "loss_minus", "skipped_steps"} <= logged[-1].keys()
    log = zokern.Trajectory.read(tmp_path / "run.jsonl")
    assert log.header["optimizer"] == "SignMomentum" and log.header["groups"][0]["power"] == 0.5 and len(log) == 6
    again = make("roberta")
    optimizer = log.replay(again)
    assert isinstance(optimizer, SignMomentum) and same(weights(again), weights(done.model))
    assert all(torch.equal(optimizer.state[p]["buffer"], done.zeroth_order.state[q]["buffer"]) for p, q in zip_trained(again, done.model))


def zip_trained(*models):
    return zip(*([p for p in model.parameters() if p.requires_grad] for model in models))


def test_it_is_resumed(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.train()
    trainer(tmp_path / "halves", 3).train()
    second = trainer(tmp_path / "halves")
    second.train(resume_from_checkpoint=True)
    assert same(weights(second.model), weights(whole.model))
    assert (tmp_path / "halves" / "run.jsonl").read_bytes() == (tmp_path / "whole" / "run.jsonl").read_bytes()


def test_its_settings_are_checked_by_its_own_rules(tmp_path):
    with pytest.raises(ValueError, match=r"power=2 in param_groups\[0\]: pass a number in \[0, 1\]"):
        trainer(tmp_path, power=2).train()


def test_what_is_not_declared_is_not_registered():
    class Silent(zokern.ZerothOrder):
        def __init__(self, params, lr=1e-3, warmth=1.0):
            super().__init__(params, dict(lr=lr, warmth=warmth))

    with pytest.raises(TypeError, match="Silent declares no name"):
        zokern.optim.register(Silent)
    Silent.name = "silent"
    with pytest.raises(TypeError, match="Silent takes warmth, which it does not declare"):
        zokern.optim.register(Silent)
    with pytest.raises(TypeError, match="cannot be registered: pass a class made of zokern.ZerothOrder"):
        zokern.optim.register(torch.optim.SGD)


def test_a_constructor_that_hides_settings_of_its_base_is_not_registered():
    class Plain(zokern.MeZO):
        name = "plain"

        def __init__(self, params, lr=1e-3, eps=1e-3, weight_decay=0.0, seed=0, defer=False):
            super().__init__(params, lr, eps, weight_decay, 2, seed, defer)

    with pytest.raises(
        TypeError,
        match="Plain does not take estimator, noise, perturbation, q, rounding as MeZO does, so that",
    ):
        zokern.optim.register(Plain)
    assert "plain" not in zokern.optim.optimizers()


def test_names_are_given_once():
    class Second(zokern.MeZO):
        name = "mezo"

    with pytest.raises(ValueError, match="Second is named 'mezo', and there is MeZO"):
        zokern.optim.register(Second)
    assert zokern.optim.named("mezo") is zokern.MeZO
    with pytest.raises(ValueError, match="optimizer='mazo' is not registered: pass one of "):
        zokern.optim.named("mazo")
