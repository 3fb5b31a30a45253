"""Where elements lie, read from loaders that stack, cut, pad, transpose and compute as those of engines do."""

import pytest
import torch
from torch import nn

import zokern
from zokern.engines.elements import places
from zokern.engines.messages import Plan, Trained, Updates
from zokern.engines.shard import Piece, Shard
from zokern.errors import BadInput
from zokern.estimators.perturbation import Pass
from zokern.layout import Layout

SHAPES = {"embed": (10, 6), "q": (8, 6), "k": (4, 6), "o": (6, 8), "norm": (6,), "turned": (6, 10)}
KEY = zokern.NoiseKey(7, 3)


class Engine(nn.Module):
    """Has the part ``rank`` of ``size`` of the tensors above: rows of q and k in one parameter, columns of o, an embedding of 16 rows of
    which the checkpoint has 10, all of the norm; and one transposed."""

    def __init__(self, rank=0, size=1):
        super().__init__()
        self.rank, self.size = rank, size
        for name, shape in dict(embed=(16 // size, 6), qk=(12 // size, 6), o=(6, 8 // size), norm=(6,), turned=(10, 6)).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape), requires_grad=False))
        if size == 1:
            self.turned.data = torch.zeros(10, 6)

    def mine(self, tensor, dim):
        return tensor.chunk(self.size, dim)[self.rank]

    def load_weights(self, tensors):
        for name, tensor in tensors:
            if name == "embed":
                begin = self.rank * len(self.embed)
                own = tensor[begin : begin + len(self.embed)]
                self.embed.data[: len(own)].copy_(own)
                self.embed.data[len(own) :].fill_(0)
            elif name in ("q", "k"):
                begin = 0 if name == "q" else 8 // self.size
                own = self.mine(tensor, 0)
                self.qk.data[begin : begin + len(own)].copy_(own)
            elif name == "o":
                self.o.data.copy_(self.mine(tensor, 1))
            elif name == "turned":
                self.turned.data.copy_(tensor.t())
            else:
                self.norm.data.copy_(tensor)


def tensors():
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


def plan_of(values):
    layout = Layout(values.items())
    return layout, Plan(tuple(Trained(n, tuple(v.shape), first, 1.0) for (n, v), first in zip(values.items(), layout.first)))


@pytest.mark.parametrize("size", [1, 2])
def test_noise_reaches_each_element_wherever_it_is(size):
    values = tensors()
    if size == 2:
        del values["turned"]  # and in parts
    layout, plan = plan_of(values)
    seen, sums = dict.fromkeys(values, 0), dict.fromkeys(values, 0)
    engines = [Engine(rank, size) for rank in range(size)]
    for engine in engines:
        engine.load_weights(values.items())
        before = {name: (p.data_ptr(), p.stride(), p.dtype, p.detach().clone()) for name, p in engine.named_parameters()}
        held = places(engine, [(t.name, t.shape) for t in plan.tensors])
        for name, p in engine.named_parameters():
            assert (p.data_ptr(), p.stride(), p.dtype) == before[name][:3] and torch.equal(p, before[name][3])
        for piece, tensor in held:
            assert torch.equal(piece.within(values[piece.name]).reshape(-1), tensor.reshape(-1))
            seen[piece.name] += tensor.numel()
        shard = Shard(plan, held)
        shard.go(Updates(0, [Pass([(KEY, 0.5)], 0.9)]), [(KEY.to(1), 0.25)])
        for (piece, _), found in zip(held, shard.checksums()):
            if not (piece.name == "norm" and engine.rank):
                sums[piece.name] += found
    assert seen == {name: v.numel() * (size if name == "norm" else 1) for name, v in values.items()}
    zokern.ops.add_noise_(layout, [(KEY, 0.5)], 0.9)
    whole = Shard(plan, [(Piece(t.name, 0, 1, t.numel, t.numel), values[t.name].view(1, -1)) for t in plan.tensors])
    assert {name: found % 2**64 for name, found in sums.items()} == dict(zip(values, whole.checksums()))
    zokern.ops.add_noise_(layout, [(KEY.to(1), 0.25)])
    for engine in engines:
        expected = Engine(engine.rank, size)
        expected.load_weights(values.items())
        assert all(map(torch.equal, engine.parameters(), expected.parameters()))


def test_a_shard_of_columns_is_one_piece():
    held = places(Engine(1, 2), [("o", (6, 8)), ("q", (8, 6))])
    assert [piece for piece, _ in held] == [Piece("q", 24, 1, 24, 24), Piece("o", 4, 6, 4, 8)]


class Doubling(Engine):
    def load_weights(self, tensors):
        super().load_weights((name, tensor * 2 if name == "norm" else tensor) for name, tensor in tensors)


class Shuffling(Engine):
    def load_weights(self, tensors):
        super().load_weights((name, tensor.flip(0) if name == "norm" else tensor) for name, tensor in tensors)


class Halving(Engine):
    def load_weights(self, tensors):
        self.turned.data[:5].copy_(dict(tensors)["turned"].t()[:5])


class Failing(Engine):
    def load_weights(self, tensors):
        raise KeyError("embed")


def test_loaders_that_compute_are_refused():
    shapes = [("norm", (6,))]
    with pytest.raises(BadInput, match="computes 'norm' from the checkpoint"):
        places(Doubling(), shapes)
    with pytest.raises(BadInput, match="loader cannot place elements.*KeyError"):
        places(Failing(), shapes)
    with pytest.raises(BadInput, match="'turned' transposed and in parts"):
        places(Halving(), [("turned", (6, 10))])


def test_what_is_in_another_order_is_found_too():
    """Element by element, as long as there are not too many of them."""
    engine = Shuffling()
    held = places(engine, [("norm", (6,))])
    assert [piece.offset for piece, _ in held] == [5, 4, 3, 2, 1, 0]
    assert [t.data_ptr() - engine.norm.data_ptr() for _, t in held] == [0, 4, 8, 12, 16, 20]
