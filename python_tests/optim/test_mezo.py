"""MeZO against a plain torch implementation with explicit z, and on problems whose answer is known."""

from functools import partial

import pytest
import torch

import zokern
from zokern import MeZO, MeZOSVRG, NoiseKey


def plain_mezo(params, loss, z_of, lr, eps, weight_decay, q, steps):
    """Algorithm 1 of the paper in float64, with z as tensors: the independent oracle. z_of(step, probe) -> [z]."""
    params = [p.double().clone() for p in params]
    losses = []
    for step in range(steps):
        total = [torch.zeros_like(p) for p in params]
        measured = []
        for probe in range(q):
            z = z_of(step, probe)
            plus = loss([p + eps * d for p, d in zip(params, z)])
            minus = loss([p - eps * d for p, d in zip(params, z)])
            measured += [plus, minus]
            total = [t + (plus - minus) / (2 * eps) * d / q for t, d in zip(total, z)]
        params = [(1 - lr * weight_decay) * p - lr * t for p, t in zip(params, total)]
        losses.append(torch.stack(measured).mean())
    return params, losses


@pytest.mark.parametrize("q, weight_decay", [(1, 0.0), (1, 0.1), (3, 0.0), (3, 0.1)])
def test_against_explicit_z_on_a_transformer(transformer, tokens, explicit, q, weight_decay):
    lr, eps, steps = 2e-3, 1e-2, 8
    names = [name for name, _ in transformer.named_parameters()]
    reference = type(transformer)().double().eval()
    optimizer = MeZO(transformer.named_parameters(), lr=lr, eps=eps, weight_decay=weight_decay, q=q, seed=11)

    def loss(values):
        return torch.func.functional_call(reference, {**dict(zip(names, values)), "head.weight": values[0]}, (tokens,)).detach()

    expected, losses = plain_mezo(
        list(transformer.parameters()), loss, lambda step, probe: explicit(NoiseKey(11, step, probe), optimizer.layout),
        lr, eps, weight_decay, q, steps,
    )  # fmt: skip
    for step in range(steps):
        measured = optimizer.step(lambda: transformer(tokens))
        # Float32 forwards are good to about 1e-6 of a loss near 4, so to 1e-6 * 4 / eps = 4e-4 of a projected gradient of size 1.
        torch.testing.assert_close(measured, losses[step].double(), rtol=1e-5, atol=1e-5)
    for p, e in zip(transformer.parameters(), expected):
        # steps * lr * (error of g) * |z|: 8 * 2e-3 * 1e-3 * 4
        torch.testing.assert_close(p.double(), e, rtol=0, atol=6e-5)


def test_groups_have_their_own_lr_eps_and_decay(explicit):
    torch.manual_seed(0)
    a, b = torch.nn.Parameter(torch.randn(30)), torch.nn.Parameter(torch.randn(20))
    opt = MeZO([{"params": [a], "lr": 0.1, "eps": 1e-2}, {"params": [b], "lr": 0.01, "weight_decay": 2.0}], eps=1e-3, seed=5)
    za, zb = explicit(NoiseKey(5), opt.layout)
    loss = lambda a, b: (a.double() ** 2).sum() + (b.double() ** 3).sum()  # noqa: E731
    a0, b0 = a.detach().double(), b.detach().double()
    difference = loss(a0 + 1e-2 * za, b0 + 1e-3 * zb) - loss(a0 - 1e-2 * za, b0 - 1e-3 * zb)
    opt.step(lambda: loss(a, b))
    # Float32 weights put errors of 1e-7 into losses of size 100: 1e-4 relative on g_b, which divides by 2e-3.
    torch.testing.assert_close(a.detach().double(), a0 - 0.1 * difference / 2e-2 * za, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(b.detach().double(), (1 - 0.02) * b0 - 0.01 * difference / 2e-3 * zb, rtol=1e-3, atol=1e-3)


def test_every_step_and_query_draws_another_direction():
    theta = torch.nn.Parameter(torch.ones(4))
    opt, keys = MeZO([theta], q=2, seed=3), []
    for _ in range(3):
        opt.step(lambda: theta.sum())
        keys += [key for key, _ in opt.last.terms]
    assert keys == [NoiseKey(3, step, probe) for step in range(3) for probe in range(2)]


def toy(alpha):
    """Eigenvalues i^-alpha of the 100-dimensional quadratic of Malladi et al. 2023 (figure on the effective rank), and its best lr."""
    eigenvalues = torch.arange(1, 101, dtype=torch.float32) ** -alpha
    return eigenvalues, float(1 / (eigenvalues.sum() + 2 * eigenvalues.max()))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_effective_rank_toy_follows_its_closed_form(alpha):
    """On f = x^T A x / 2 second moments are exact: E x_i^2 <- (1 - 2 lr l_i + 2 lr^2 l_i^2) x_i^2 + lr^2 sum_j l_j^2 x_j^2.

    The mean loss over 40 seeds after 40 steps must lie within 5 standard errors of it (a false alarm in a million, were it normal).
    """
    eigenvalues, lr = toy(alpha)
    second, losses = torch.ones(100, dtype=torch.float64), []
    exact = eigenvalues.double()
    for _ in range(40):
        second = (1 - 2 * lr * exact + 2 * (lr * exact) ** 2) * second + lr**2 * (exact**2 * second).sum()
    for seed in range(40):
        theta = torch.nn.Parameter(torch.ones(100))
        opt = MeZO([theta], lr=lr, eps=1e-3, seed=seed)
        for _ in range(40):
            opt.step(lambda: (eigenvalues * theta.double() ** 2).sum() / 2)  # noqa: B023
        losses.append((eigenvalues * theta.detach().double() ** 2).sum() / 2)
    losses = torch.stack(losses)
    assert abs(losses.mean() - (exact * second).sum() / 2) < 5 * losses.std() / 40**0.5


def test_the_effective_rank_toy_converges():
    """Sharp spectrum (alpha = 3, effective rank 1.2): the loss falls a hundredfold within 3,000 steps and never explodes."""
    eigenvalues, lr = toy(3.0)
    theta = torch.nn.Parameter(torch.ones(100))
    opt = MeZO([theta], lr=lr, eps=1e-3, seed=1)
    for _ in range(3000):
        loss = opt.step(lambda: (eigenvalues * theta.double() ** 2).sum() / 2)
        assert loss < 2
        if loss < 6e-3:
            break
    assert loss < 6e-3


def test_sixteen_bit_weights_train(transformer, tokens):
    for dtype in (torch.bfloat16, torch.float16):
        model = type(transformer)()
        model.load_state_dict(transformer.state_dict())
        model.to(dtype)
        opt = MeZO(model.parameters(), lr=1e-3, eps=3e-2)
        with torch.no_grad():
            before = float(model(tokens))
            for _ in range(60):
                opt.step(lambda: model(tokens))  # noqa: B023
            assert float(model(tokens)) < before - 0.1


def test_every_backend_takes_the_same_step():
    thetas = []
    for backend in ("reference", "cpu"):
        theta = torch.nn.Parameter(torch.arange(100.0))
        with zokern.use_backend(backend):
            opt = MeZO([theta], lr=1e-3, weight_decay=0.1)
            for _ in range(3):
                opt.step(lambda: (theta**2).sum())  # noqa: B023
        thetas.append(theta.detach())
    assert torch.equal(*thetas)


def test_signs_are_the_noise_that_is_asked_for(explicit):
    """Of both purposes: a step of MeZO moves along +1 and -1, and at an anchor MeZO-SVRG along others."""
    for make, purpose in ((partial(MeZO, noise="rademacher"), 4), (partial(MeZOSVRG, noise="rademacher", lr_full=0.5), 5)):
        theta = torch.nn.Parameter(torch.zeros(4099))
        opt = make([theta], lr=0.5, eps=0.25, seed=3)
        loss = lambda: theta[0] + 0.0 * theta.sum()  # noqa: B023, E731
        opt.step(*[loss] * (2 if purpose == 5 else 1))
        (z,) = explicit(NoiseKey.of(3, 0, purpose), opt.layout)
        assert torch.equal(theta.double(), -0.5 * z[0] * z) and set(z.tolist()) == {-1.0, 1.0}
    with pytest.raises(ValueError, match=r"noise='laplace' in param_groups\[0\]: pass \"gaussian\" or \"rademacher\""):
        MeZO([theta], noise="laplace")
