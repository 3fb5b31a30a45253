"""A model's parameters become the tensors of a file, or the two are of another model."""

import pytest
import torch
from mapped_cases import assert_equal
from safetensors import torch as safetensors

import zokern
from zokern.errors import BadInput
from zokern.mapped import MappedWeights, write


def model_file(tmp_path, model, rename=lambda name: name):
    write(tmp_path / "model.safetensors", {rename(name): p + 1 for name, p in model.named_parameters()})
    return MappedWeights(tmp_path)


def on_meta(transformer):
    accelerate = pytest.importorskip("accelerate")
    with accelerate.init_empty_weights(include_buffers=False):
        model = type(transformer)().eval()
    model.head.weight = model.embed.weight  # registered anew each time, and so no longer tied
    return model


def test_attached_to_a_model_that_has_its_memory(transformer, tokens, tmp_path):
    weights, before = model_file(tmp_path, transformer), dict(transformer.named_parameters())
    expected = {name: p + 1 for name, p in transformer.named_parameters()}
    weights.attach(transformer)
    assert transformer.head.weight is transformer.embed.weight is before["embed.weight"]
    for name, p in transformer.named_parameters():
        assert p is before[name] and torch.equal(p, expected[name])
        assert p.data_ptr() == weights.tensors[name].data_ptr()
    assert torch.isfinite(transformer(tokens))


def test_attached_to_a_model_on_the_meta_device(transformer, tokens, tmp_path):
    weights, model = model_file(tmp_path, transformer), on_meta(transformer)
    model.blocks.layers[0].requires_grad_(False)
    weights.attach(model)
    assert model.head.weight is model.embed.weight
    assert [p.requires_grad for p in model.parameters()].count(False) == len([*transformer.blocks.layers[0].parameters()])
    with torch.no_grad():
        for p in transformer.parameters():
            p += 1
    assert torch.equal(model(tokens), transformer(tokens))


def test_training_on_mapped_weights_is_training_in_memory(transformer, tokens, tmp_path):
    write(tmp_path / "model.safetensors", dict(transformer.named_parameters()))
    model, weights = on_meta(transformer), MappedWeights(tmp_path)
    weights.attach(model)
    for each in (model, transformer):
        optimizer = zokern.MeZO(each.named_parameters(), lr=1e-3, seed=0)
        for _ in range(3):
            with weights.writing():
                optimizer.step(lambda each=each: each(tokens))
    weights.close()
    assert_equal(safetensors.load_file(tmp_path / "model.safetensors"), dict(transformer.named_parameters()))


def test_a_broken_update_is_made_good_by_replay(transformer, tokens, tmp_path):
    path, log, base = tmp_path / "model.safetensors", tmp_path / "run.jsonl", dict(transformer.named_parameters())
    write(path, base)
    model, weights = on_meta(transformer), MappedWeights(path)
    weights.attach(model)
    optimizer = zokern.MeZO(model.named_parameters(), lr=1e-3, seed=0)
    with zokern.record(optimizer, log):
        for _ in range(3):
            with weights.writing():
                optimizer.step(lambda: model(tokens))
    with pytest.raises(RuntimeError), weights.writing():
        model.embed.weight.data[:5] = 0
        raise RuntimeError("the machine has no more memory")
    weights.close()
    with pytest.raises(BadInput, match="in the middle of an update"):
        MappedWeights(path)
    write(path, base)
    again, weights = on_meta(transformer), MappedWeights(path)
    weights.attach(again)
    with weights.writing():
        zokern.Trajectory.read(log).replay(again)
    weights.close()
    optimizer = zokern.MeZO(transformer.named_parameters(), lr=1e-3, seed=0)
    for _ in range(3):
        optimizer.step(lambda: transformer(tokens))
    assert_equal(safetensors.load_file(path), base)


class Based(torch.nn.Module):
    base_model_prefix = "base"

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.base = torch.nn.Sequential(torch.nn.Linear(3, 4, dtype=dtype), torch.nn.BatchNorm1d(4, dtype=dtype))
        self.base.register_buffer("unsaved", torch.arange(3), persistent=False)


def saved(tmp_path, rename=lambda name: name, **changes):
    net = Based()
    net.base[1].running_mean.fill_(5)
    tensors = {rename(name): t for name, t in net.state_dict().items()} | changes
    write(tmp_path / "net.safetensors", {name: t for name, t in tensors.items() if t is not None})
    return net, MappedWeights(tmp_path)


@pytest.mark.parametrize("rename", [lambda name: name, lambda name: name.removeprefix("base.")], ids=["whole", "base model's"])
def test_names_with_and_without_the_prefix_and_buffers(rename, tmp_path):
    net, weights = saved(tmp_path, rename, **{rename("base.unsaved"): torch.zeros(3)})
    other = Based()
    weights.attach(other)
    assert_equal(other.state_dict(), net.state_dict())
    assert torch.equal(other.base.unsaved, torch.arange(3))  # as its code makes it
    assert other.base[0].weight.data_ptr() == weights.tensors[rename("base.0.weight")].data_ptr()
    assert other.base[1].running_mean.data_ptr() != weights.tensors[rename("base.1.running_mean")].data_ptr()


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"base.0.bias": None}, "lacks 'base.0.bias' of the model"),
        ({"base.1.running_var": None}, "lacks 'base.1.running_var' of the model"),
        ({"base.0.bias": torch.zeros(5)}, r"holds 'base.0.bias' of shape \(5,\), and 'base.0.bias' of the model has \(4,\)"),
        (
            {"base.0.bias": torch.zeros(4).half()},
            r"holds 'base.0.bias' in torch.float16, and .* is torch.float32: pass model.to\(torch.float16\)",
        ),
        ({"base.0.bias": torch.zeros(4).double()}, "in torch.float64, .*: write it in float32, bfloat16 or float16"),
        ({"head": torch.zeros(2), "tail": torch.zeros(2)}, "holds 'head' and 1 more, which no parameter of the model takes"),
    ],
)
def test_files_of_another_model_are_refused_and_the_model_is_as_it_was(changes, error, tmp_path):
    _, weights = saved(tmp_path, **changes)
    net = Based()
    before = {name: (t.data_ptr(), t.clone()) for name, t in net.state_dict().items()}
    with pytest.raises(BadInput, match=error) as raised:
        weights.attach(net)
    assert str(tmp_path) in str(raised.value)
    assert all(before[name][0] == t.data_ptr() and torch.equal(before[name][1], t) for name, t in net.state_dict().items())


def test_a_tied_parameter_that_is_there_twice_is_refused(transformer, tmp_path):
    """transformers may load either of them."""
    write(tmp_path / "twice.safetensors", dict(transformer.named_parameters(remove_duplicate=False)))
    with pytest.raises(BadInput, match="'embed.weight' and 'head.weight', which the model shares"):
        MappedWeights(tmp_path).attach(transformer)
    other = Based()
    other.tied = other.base[0]  # under a name that the prefix is no part of
    write(tmp_path / "twice.safetensors", {"base.0.weight": torch.zeros(4, 3), "0.weight": torch.zeros(4, 3)} | Based().state_dict())
    with pytest.raises(BadInput, match="holds '0.weight', which no parameter"):
        MappedWeights(tmp_path).attach(other)


def test_one_tensor_for_two_parameters_is_refused(tmp_path):
    net = torch.nn.Module()
    net.base_model_prefix = "base"
    net.base, net.weight = torch.nn.Linear(3, 4, bias=False), torch.nn.Parameter(torch.zeros(4, 3))
    write(tmp_path / "one.safetensors", {"weight": net.weight})
    with pytest.raises(BadInput, match="holds 'weight' alone for 'weight' and 'base.weight'"):
        MappedWeights(tmp_path).attach(net)


def test_buffers_without_values_are_refused(tmp_path):
    _, weights = saved(tmp_path)
    with torch.device("meta"):
        net = Based()
    with pytest.raises(BadInput, match=r"buffer 'base.unsaved' .* on the meta device .*include_buffers=False"):
        weights.attach(net)
