"""Checkpoints of ZOTrainer: where all steps are done none is made, and what is not whole is refused by name before anything moves."""

import os
import shutil
import subprocess
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from hf_cases import make, rows, same, weights

import zokern
from zokern.errors import BadInput
from zokern.hf import checkpoint

SAVING = dict(save_strategy="steps", save_steps=2)


class Endless(torch.utils.data.IterableDataset):
    """Of which Trainer does not know how many steps are an epoch."""

    def __iter__(self):
        while True:
            yield from rows("opt-lm")


def hybrid(model):
    return zokern.Hybrid(model, partial(zokern.MeZO, lr=1e-3), partial(torch.optim.AdamW, lr=1e-3), zokern.splits.Depth(1))


# 20 rows in batches of 4: five steps an epoch, and with accumulate=2 three, the last of one batch.
DONE = {
    "not whole epochs": dict(max_steps=4),
    "whole epochs": dict(max_steps=5),
    "accumulated": dict(max_steps=4, gradient_accumulation_steps=2),
    "the last batch dropped": dict(max_steps=3, per_device_train_batch_size=3, gradient_accumulation_steps=4, dataloader_drop_last=True),
    "epochs": dict(max_steps=-1, num_train_epochs=1.5, gradient_accumulation_steps=2),
    "of no length": dict(max_steps=4, train_dataset=Endless()),
    "constant rate": dict(max_steps=4, lr_scheduler_type="constant"),
    "deferred": dict(max_steps=4, optimizer=(zokern.MeZO, {"defer": True}), lr_scheduler_type="constant"),
    "more than were asked for": dict(max_steps=4, then=dict(max_steps=3)),
    "hybrid": dict(max_steps=4, learning_rate=5e-5, hybrid=True),
}


@pytest.mark.parametrize("case", DONE)
def test_where_all_steps_are_done_none_is_made(case, trainer_of, tmp_path):
    settings = {**DONE[case]}
    own, then = {name: settings.pop(name) for name in ("train_dataset",) if name in settings}, settings.pop("then", {})
    two_halves = settings.pop("hybrid", False)

    def trainer(**more):
        model = make("opt-lm")
        optimizers = {"optimizers": (hybrid(model), None)} if two_halves else {}
        return trainer_of(
            model=model, trainer={"check": False, **own, **optimizers}, save_steps=1, save_strategy="steps", **settings | more
        )

    whole = trainer()
    steps = whole.train().global_step
    again = trainer(**then)
    found = again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{steps}"))
    assert found.global_step == again.state.global_step == steps
    assert getattr(again.zeroth_order, "zo", again.zeroth_order).param_groups[0]["step"] == steps
    assert same(weights(again.model), weights(whole.model)) and not same(weights(again.model), weights(make("opt-lm")))
    assert found.training_loss != found.training_loss  # NaN: the mean of no loss


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """kind -> the checkpoint after two of four steps."""
    made = {}

    def of(kind, trainer_of):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            trainer(kind, trainer_of, output_dir=str(folder)).train()
            made[kind] = folder / "checkpoint-2"
        return made[kind]

    return of


def trainer(kind, trainer_of, **settings):
    model = make("opt-cls", "lora" if kind == "lora" else "full")
    settings = dict(max_steps=4, **SAVING) | settings
    if kind == "hybrid":
        own = {"optimizers": (hybrid(model), None), "train_dataset": rows("opt-cls")}
        return trainer_of("opt-cls", model=model, learning_rate=5e-5, trainer=own, **settings)
    optimizer = (zokern.MeZOSVRG, {"lr": 1e-3, "q": 3, "anchor": "replay"}) if kind == "svrg" else (zokern.ZOAdam, {"lr": 1e-3})
    return trainer_of("opt-cls", model=model, optimizer=optimizer, **settings)


def flipped(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize("kind", ["full", "lora", "svrg", "hybrid"])
def test_every_part_is_missed_and_every_bit(kind, saved, trainer_of, tmp_path):
    weights_file = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    parts = [weights_file, "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"]
    source = saved(kind, trainer_of)
    assert set(parts) <= set(os.listdir(source))
    again = trainer(kind, trainer_of)
    before = weights(again.model)
    for name in parts:
        for word, damage in (("missing", None), ("empty", lambda _: b""), ("damaged", flipped), ("damaged", lambda data: data[:-1])):
            folder = shutil.copytree(source, tmp_path / "copy" / "checkpoint-2", dirs_exist_ok=True)
            data = (folder / name).read_bytes()
            (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage(data))
            with pytest.raises(BadInput, match=f"checkpoint '.*checkpoint-2': {name} is {word}") as error:
                again.train(resume_from_checkpoint=str(folder))
            assert "\n" not in str(error.value) and "move it elsewhere" in str(error.value)
    assert same(weights(again.model), before) and again.state.global_step == 0
    again.train(resume_from_checkpoint=str(source))
    assert again.state.global_step == 4


def test_the_digests_are_those_of_sha256sum(saved, trainer_of, tmp_path):
    source = saved("full", trainer_of)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=source, check=True)
    folder = shutil.copytree(source, tmp_path / "checkpoint-2")
    sums = folder / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    for text, message in (
        ("", "SHA256SUMS is damaged"),
        ("x" + lines[0], "SHA256SUMS is damaged"),
        ("".join(line for line in lines if "optimizer.pt" not in line), "SHA256SUMS does not list optimizer.pt"),
    ):
        sums.write_text(text)
        with pytest.raises(BadInput, match=message):
            checkpoint.check(folder, "rng_state.pth")


def test_a_checkpoint_without_digests_is_read_and_told(saved, trainer_of, tmp_path):
    """As Trainer and earlier versions save it."""
    source = saved("full", trainer_of)
    whole = trainer("full", trainer_of)
    whole.train(resume_from_checkpoint=str(source))
    folder = shutil.copytree(source, tmp_path / "checkpoint-2")
    (folder / "SHA256SUMS").unlink()
    again = trainer("full", trainer_of)
    with pytest.warns(RuntimeWarning, match="has no SHA256SUMS .*: all of its parts are there, but"):
        again.train(resume_from_checkpoint=str(folder))
    assert same(weights(again.model), weights(whole.model))
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"):
        data = (folder / name).read_bytes()
        for word, damaged in (("empty", b""), ("damaged", data[: len(data) // 2])):
            (folder / name).write_bytes(damaged)
            with pytest.raises(BadInput, match=f"{name} is {word}"):
                again.train(resume_from_checkpoint=str(folder))
        (folder / name).unlink()
        with pytest.raises(BadInput, match=f"{name}.* is missing"):
            again.train(resume_from_checkpoint=str(folder))
        (folder / name).write_bytes(data)


def test_checkpoints_go_and_come_in_the_order_of_steps(trainer_of, tmp_path):
    """Whenever they were changed; names of others are theirs. Trainer goes by the time, and takes checkpoint-best for one of its own."""
    run = tmp_path / "run"
    for name in ("checkpoint-best", "checkpoint-2-mine"):
        (run / name).mkdir(parents=True)
        (run / name / "notes").write_text("mine")
        os.utime(run / name, (0, 0))

    class Touch(transformers.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            age = 1e9 - 1000 * state.global_step  # the newest is the oldest
            os.utime(run / f"checkpoint-{state.global_step}", (age, age))

    trainer_of(save_total_limit=2, save_steps=1, save_strategy="steps", trainer={"callbacks": [Touch()]}).train()
    assert sorted(os.listdir(run)) == ["checkpoint-2-mine", "checkpoint-5", "checkpoint-6", "checkpoint-best"]
    assert torch.load(run / "checkpoint-6" / "training_args.bin", weights_only=False).save_total_limit == 2
    assert list(checkpoint.all_of(run)) == [5, 6] and checkpoint.newest(run) == run / "checkpoint-6"
    # A run from the start beside what an earlier one left: its own are kept.
    trainer_of(save_total_limit=2, max_steps=3, save_steps=1, save_strategy="steps").train()
    assert list(checkpoint.all_of(run)) == [2, 3]


class Killed(BaseException):
    pass


def test_a_checkpoint_that_was_not_saved_to_its_end_is_none(trainer_of, tmp_path, monkeypatch):
    """Not even where an earlier one lay in its place."""
    run = tmp_path / "run"
    with pytest.raises(BadInput, match="holds no checkpoint that was saved to its end: leave it out"):
        trainer_of(**SAVING).train(resume_from_checkpoint=True)
    whole = trainer_of(**SAVING)
    whole.train()
    again = trainer_of(**SAVING)
    monkeypatch.setattr(again, "_save_rng_state", lambda folder: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        again.train(resume_from_checkpoint=str(run / "checkpoint-4"))
    assert (run / "checkpoint-6" / "model.safetensors").exists() and checkpoint.newest(run) == run / "checkpoint-4"
    (run / "checkpoint-6" / "trainer_state.json").write_text('{"global_step": 6, "log_')
    again = trainer_of(**SAVING)
    again.train(resume_from_checkpoint=True)
    assert same(weights(again.model), weights(whole.model)) and checkpoint.newest(run) == run / "checkpoint-6"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.check(run / "checkpoint-6", "rng_state.pth")


def test_a_damaged_best_model_is_not_loaded_at_the_end(trainer_of, tmp_path):
    class Damage(transformers.TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            path = Path(state.best_model_checkpoint) / "model.safetensors"
            path.write_bytes(flipped(path.read_bytes()))

    around = dict(eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_loss")
    own = {"eval_dataset": rows("opt-cls", 6), "callbacks": [Damage()]}
    with pytest.raises(BadInput, match="model.safetensors is damaged"):
        trainer_of("opt-cls", trainer=own, max_steps=4, **around, **SAVING).train()
