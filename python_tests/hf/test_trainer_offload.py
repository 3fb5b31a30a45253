"""ZOTrainer over weights that live in a file: the run in memory, bit for bit, gone on with and with the best model loaded."""

import pytest
import torch
from hf_cases import make, rows, same, weights

import zokern
from zokern.mapped import MappedWeights, write

SAVING = dict(save_strategy="steps", save_steps=2)
BEST = dict(eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=True)


@pytest.fixture
def run(trainer_of, tmp_path):
    """(where weights are, resumed?, settings) -> the weights that a trainer ends with; of a file those that it holds."""

    def of(path=None, resume=None, **settings):
        model = make("opt-cls").eval()
        if path is not None and not path.exists():
            write(path, dict(model.named_parameters()))
        streamed = zokern.Streamed(model, source=path)
        options = {"eps": 1e-3, "perturbation": streamed}
        folder = str(tmp_path / (path.stem if path else "memory"))
        trainer = trainer_of(
            "opt-cls",
            model=model,
            optimizer=(zokern.MeZO, options),
            trainer={"eval_dataset": rows("opt-cls", 6)},
            output_dir=folder,
            **settings,
        )
        if streamed.source:
            assert model.score.weight.data_ptr() == streamed.source.tensors["score.weight"].data_ptr()
        trainer.train(resume_from_checkpoint=resume)
        if streamed.source is None:
            return weights(model)
        streamed.source.close()
        return {name: t.clone() for name, t in MappedWeights(path).tensors.items()}

    return of


@pytest.mark.parametrize("more", [{}, BEST], ids=["last", "best"])
def test_resumed_in_another_file(run, tmp_path, more):
    expected = run(max_steps=4, **SAVING, **more)
    assert same(run(tmp_path / "one.safetensors", max_steps=4, **SAVING, **more), expected)
    checkpoint = str(tmp_path / "one" / "checkpoint-2")
    assert same(run(tmp_path / "two.safetensors", checkpoint, max_steps=4, **SAVING, **more), expected)


def test_a_checkpoint_is_loaded_within_an_update(run, tmp_path, monkeypatch):
    """A process that is killed meanwhile leaves a file that is found to be damaged."""
    one = tmp_path / "one.safetensors"
    run(one, max_steps=2, **SAVING)
    seen, load = [], torch.nn.Module.load_state_dict

    def look(model, *given, **options):
        seen.append((tmp_path / "two.safetensors.unsynced").read_text().split()[0])
        return load(model, *given, **options)

    monkeypatch.setattr("transformers.OPTForSequenceClassification.load_state_dict", look)
    run(tmp_path / "two.safetensors", str(tmp_path / "one" / "checkpoint-2"), max_steps=3, **SAVING)
    assert seen == ["updating"]
