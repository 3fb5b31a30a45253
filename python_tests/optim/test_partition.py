"""Sparse and block-wise estimates: what is perturbed, and what is not."""

import pytest
import torch

import zokern
from zokern import MeZO, NoiseKey, ZOAdam
from zokern.estimators.partition import kept_by_magnitude
from zokern.noise import reference


def parameters(*sizes, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.nn.Parameter((torch.randn(n) * (i + 1)).to(dtype)) for i, n in enumerate(sizes)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.75, 0.999])
def test_shares_are_those_of_magnitude_pruning(dtype, sparsity):
    strided, zeros = torch.nn.Parameter(torch.randn(40, 90).to(dtype).t()), torch.nn.Parameter(torch.zeros(5))
    params = [*parameters(300_000, 77, dtype=dtype), strided, zeros]
    found = kept_by_magnitude([{"params": params[:2]}, {"params": params[2:]}], sparsity)
    every = torch.cat([p.detach().double().abs().reshape(-1) for p in params])
    rank = int(sparsity * len(every))
    least = every.sort().values[rank]
    part = (len(every) - rank - int((every > least).sum())) / int((every == least).sum())  # of those of just this size
    sizes = [p.detach().double().abs() for p in params]
    wanted = [max(int((x > least).sum()) + part * int((x == least).sum()), 1) / x.numel() for x in sizes]
    assert [ratio for group in found for ratio in group] == pytest.approx(wanted, rel=1e-9)


def test_many_elements_of_one_size_are_left_in_part():
    """As in LoRA, whose B is 0 at first."""
    params = [*parameters(1000, 1000), torch.nn.Parameter(torch.zeros(2000))]
    for sparsity, zeros in ((0.25, 0.5), (0.45, 0.1), (0.5, 1 / 2000)):
        ((a, b, c),) = kept_by_magnitude([{"params": params}], sparsity)
        assert a == b == 1 and c == pytest.approx(zeros)


@pytest.mark.parametrize("bad", [1.0, -0.1, "0.5", True, float("nan")])
def test_a_sparsity_out_of_range_is_named(bad):
    with pytest.raises(ValueError, match=r"sparsity=.*pass a number in \[0, 1\)"):
        MeZO(parameters(10), sparsity=bad)


def test_the_density_is_the_asked_one_and_the_mask_is_drawn_anew():
    (theta,) = parameters(1 << 20)
    opt, moved = MeZO([theta], lr=1e-2, sparsity=0.8), []
    assert abs(opt.layout.keep[0] - 0.2) < 1e-5
    for _ in range(2):
        seen = []
        before = theta.detach().clone()
        opt.step(lambda: seen.append(theta.detach() != before) or (theta**2).sum())  # noqa: B023
        moved.append(theta.detach() != before)
        # 5 standard deviations of a binomial: sqrt(0.2 * 0.8 / 2^20) = 4e-4. (A small move may round to nothing.)
        assert abs(seen[0].double().mean() - 0.2) < 2e-3
        mask = torch.from_numpy(reference.mask(NoiseKey.of(0, opt.param_groups[0]["step"] - 1, 2), opt.layout.keep[0], 0, 1 << 20))
        assert not (seen[0] & ~mask).any() and not (moved[-1] & ~mask).any()  # the same one at the perturbation and at the update
    both = (moved[0] & moved[1]).double().mean()
    assert abs(both - 0.04) < 2e-3


def test_a_mask_belongs_to_the_element_not_to_the_tensor():
    """Half of a tensor, at its own indices, is kept as it is in the whole."""
    whole, key = torch.zeros(8192), NoiseKey(3, 5)
    half = torch.zeros(4096)
    layout = zokern.Layout([whole], keep=[0.4])
    zokern.ops.add_noise_(layout, [(key, 1.0)])
    part = zokern.Layout([torch.zeros(4096), half], keep=[0.4, 0.4])
    zokern.ops.add_noise_(part, [(key, 1.0)])
    assert torch.equal(half, whole[4096:]) and 0 < (half != 0).double().mean() < 1


def test_one_block_is_perturbed_at_a_time_each_along_its_own_z():
    params = parameters(5000, 5000, 5000)
    blocks, seen, before = [[params[1]], [params[0], params[2]]], [], [p.detach().clone() for p in params]
    opt = MeZO(params, lr=1e-3, eps=1e-2, blocks=blocks)
    assert opt.forwards == 4

    def closure():
        seen.append([(p.detach() - old) for p, old in zip(params, before)])
        return (params[0] ** 2).sum() + params[1].sum()

    estimate = opt.estimate(closure)
    touched = [{i for i, d in enumerate(moved) if d.abs().max() > 1e-5} for moved in seen]
    assert touched == [{0, 2}, {0, 2}, {1}, {1}] or touched == [{1}, {1}, {0, 2}, {0, 2}]
    z = [max(seen, key=lambda moved: moved[i].abs().max())[i] / 1e-2 for i in range(3)]  # noqa: B023
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(torch.corrcoef(torch.stack([z[i], z[j]]))[0, 1]) < 5 / 5000**0.5
    ((_, g),) = estimate.terms
    assert g.shape == (2,) == estimate.projected_grad.shape and g[0] != g[1]


def test_blocks_and_groups_together(explicit):
    """A cell for each pair: its eps and lr are the group's, its projected gradient the block's."""
    a, b, c = params = parameters(30, 20, 10)
    opt = MeZO([{"params": [a, b], "eps": 1e-2, "lr": 0.1}, {"params": [c]}], lr=0.01, eps=1e-3, seed=5, blocks=[[a], [b, c]])
    assert len(opt.layout.coefficient_groups) == 3
    za, zb, zc = explicit(NoiseKey(5), opt.layout)
    loss = lambda a, b, c: (a.double() ** 2).sum() + (b.double() ** 3).sum() + c.double().sum()  # noqa: E731
    a0, b0, c0 = (p.detach().double() for p in params)
    first = loss(a0 + 1e-2 * za, b0, c0) - loss(a0 - 1e-2 * za, b0, c0)
    second = loss(a0, b0 + 1e-2 * zb, c0 + 1e-3 * zc) - loss(a0, b0 - 1e-2 * zb, c0 - 1e-3 * zc)
    opt.step(lambda: loss(a, b, c))
    torch.testing.assert_close(a.detach().double(), a0 - 0.1 * first / 2e-2 * za, rtol=0, atol=1e-3)
    torch.testing.assert_close(b.detach().double(), b0 - 0.1 * second / 2e-2 * zb, rtol=0, atol=1e-3)
    torch.testing.assert_close(c.detach().double(), c0 - 0.01 * second / 2e-3 * zc, rtol=0, atol=1e-3)


def test_partitions_survive_a_resume_and_a_group_that_joins():
    def start():
        params = parameters(50, 60)
        return params, ZOAdam(params, lr=1e-2, sparsity=0.5, blocks=[[params[0]], [params[1]]])

    loss = lambda params: sum((p**2).sum() for p in params)  # noqa: E731
    params, opt = start()
    for _ in range(3):
        opt.step(lambda: loss(params))
    again, fresh = start()
    with torch.no_grad():
        for p, q in zip(again, params):
            p.copy_(q)
    fresh.load_state_dict(opt.state_dict())
    opt.step(lambda: loss(params))
    fresh.step(lambda: loss(again))
    assert all(torch.equal(p, q) for p, q in zip(params, again))
    opt.add_param_group({"params": parameters(7)})
    assert opt.layout.blocks == [0, 1, 2] and opt.layout.keep[2] == 1.0 and opt.forwards == 6


def test_blocks_that_are_no_partition_are_refused():
    a, b = params = parameters(5, 6)
    for blocks, message in (
        ([[a]], r"param_groups\[0\]\['params'\]\[1\] of shape \(6,\) is in none of the 1 blocks"),
        ([[a, b], [b]], r"shape \(6,\) is in blocks\[0\] and in blocks\[1\]"),
        ([[a, b], []], r"blocks\[1\] is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            MeZO(params, blocks=blocks)
    with pytest.raises(TypeError, match=r"blocks\[0\] holds a str"):
        MeZO(params, blocks=["layers"])
    with pytest.raises(TypeError, match=r"blocks\[0\] is a tensor of shape \(5,\): pass a list"):
        MeZO(params, blocks=[a, b])


def test_a_model_stands_for_its_layers(transformer, tokens):
    opt = MeZO(transformer.named_parameters(), lr=1e-3, blocks=transformer)
    assert opt.layout.blocks == [0, 1, 2] and opt.forwards == 6  # embedding (the head is tied to it), two layers
    assert {name.split(".")[0] for name, b in zip(opt.layout.names, opt.layout.block) if b == 0} == {"embed"}
    assert opt.step(lambda: transformer(tokens)).isfinite()


def test_modules_stand_for_their_parameters(transformer, tokens):
    """Of a parameter that two of them share, the first has it."""
    params = list(transformer.named_parameters())
    modules = [transformer.embed, *transformer.blocks.layers, transformer.head]
    with pytest.raises(ValueError, match=r"blocks\[3\] is empty, or holds no parameter .* in no earlier one"):  # the head is tied
        MeZO(params, blocks=modules)
    by_module, by_model = (MeZO(params, lr=1e-3, blocks=blocks) for blocks in (modules[:3], transformer))
    assert by_module.layout.block == by_model.layout.block
    mixed = MeZO(params, lr=1e-3, blocks=[[transformer.embed.weight], *transformer.blocks.layers])
    assert mixed.layout.block == by_model.layout.block
    frozen = transformer.blocks.layers[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"blocks\[0\] is empty, or holds no parameter with requires_grad=True"):
        MeZO(transformer.named_parameters(), blocks=[frozen, transformer])


def test_a_parameter_outside_the_modules_names_what_has_a_block_for_it(transformer):
    with pytest.raises(ValueError, match=r"'embed.weight'\) of shape .* in none of the 2 blocks: add it, or pass zokern.layers\(model"):
        MeZO(transformer.named_parameters(), blocks=transformer.blocks.layers[:])
    found = zokern.layers(transformer, blocks=transformer.blocks.layers)
    assert MeZO(transformer.named_parameters(), blocks=found).layout.blocks == [0, 1, 2]
