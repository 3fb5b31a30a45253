"""A run of a few steps of a tiny model."""

import pytest

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from hf_cases import EPS, make, rows  # noqa: E402

import zokern  # noqa: E402
from zokern.hf import ZOTrainer  # noqa: E402

transformers.logging.set_verbosity_error()


@pytest.fixture
def arguments(tmp_path):
    """TrainingArguments of a quiet run on the CPU."""

    def of(**settings):
        quiet = dict(output_dir=str(tmp_path / "run"), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", seed=5)
        size = dict(per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1, max_steps=6)
        return transformers.TrainingArguments(**{**quiet, **size, **settings})

    return of


@pytest.fixture
def trainer_of(arguments):
    """(model's name, method, trainer's own settings, TrainingArguments' ...) -> a ZOTrainer of MeZO."""

    def of(name="opt-lm", method="full", optimizer=None, model=None, kind=ZOTrainer, trainer=None, **settings):
        model = make(name, method) if model is None else model
        named = {"optimizer_cls_and_kwargs": optimizer or (zokern.MeZO, {"eps": EPS.get(method, 1e-3)}), **(trainer or {})}
        if "optimizers" in named:
            del named["optimizer_cls_and_kwargs"]
        named.setdefault("train_dataset", rows(name))
        return kind(model, arguments(**settings), **named)

    return of
