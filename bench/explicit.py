"""The rules of suite ``peers`` in float64, from their equations, with z given: what a step, published or ours, must lead to.

Weights are one vector, a loss is a function of it, and ``draw()`` gives the next direction. Each form takes STEPS steps of size LR with
radius EPS.
"""

import torch

from .oracle import EPS, Refused

LR, STEPS = 1e-3, 6
MOMENTUM, BETAS, DELTA = 0.9, (0.9, 0.999), 1e-8
BLOCKS, MEMBERS, ANCHORS = 3, 4, 2  # of a step; steps from anchor to anchor
LR_FULL = 2 * LR
SIGMA = 0.02  # of the weights
SHAPES = (61, 67), (127,), (5, 3), (1,), (2, 129)
OFF = 5e-5  # of the largest move: weights and losses that are kept in float32 are off by 6e-6 of it at most


class Small(torch.nn.Module):
    """Tensors of awkward sizes and a loss, in float64, whose slope is another one everywhere: the more waves, the sooner."""

    def __init__(self, dtype=torch.float64, waves=20.0):
        super().__init__()
        self.waves = waves
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.nn.ParameterList((SIGMA * torch.randn(shape, generator=generator)).to(dtype) for shape in SHAPES)
        n = sum(p.numel() for p in self.weights)
        self.register_buffer("slopes", torch.randn(n, generator=generator, dtype=torch.float64) / n**0.5)

    def forward(self):
        return self.loss(flat(self.weights))

    def loss(self, theta):
        return (self.slopes.to(theta.device) * torch.sin(self.waves * theta)).sum()


def flat(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


def slope(loss, theta, z):
    return (loss(theta + EPS * z) - loss(theta - EPS * z)) / (2 * EPS)


def sgd(theta, loss, draw):
    for _ in range(STEPS):
        z = draw()
        theta = theta - LR * slope(loss, theta, z) * z
    return theta


def sign(theta, loss, draw):
    for _ in range(STEPS):
        z = draw()
        theta = theta - LR * torch.sign(slope(loss, theta, z)) * z
    return theta


def momentum(theta, loss, draw):
    m = 0
    for _ in range(STEPS):
        z = draw()
        m = MOMENTUM * m + slope(loss, theta, z) * z
        theta = theta - LR * m
    return theta


def adam(theta, loss, draw):
    m = v = 0
    b1, b2 = BETAS
    for t in range(1, STEPS + 1):
        z = draw()
        g = slope(loss, theta, z) * z
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        theta = theta - LR * m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + DELTA)
    return theta


def conservative(theta, loss, draw):
    for _ in range(STEPS):
        z = draw()
        move = LR * slope(loss, theta, z) * z
        theta = min((theta, theta - move, theta + move), key=loss)
    return theta


def block_wise(theta, loss, draw):
    """z is 0 outside its block."""
    for _ in range(STEPS):
        directions = [draw() for _ in range(BLOCKS)]
        theta = theta - LR * sum(slope(loss, theta, z) * z for z in directions)
    return theta


def svrg(theta, loss, draw):
    for t in range(STEPS):
        z = draw()
        if t % ANCHORS == 0:
            anchor, full = theta, slope(loss, theta, z) * z
            theta = theta - LR_FULL * full
        else:
            theta = theta - LR * ((slope(loss, theta, z) - slope(loss, anchor, z)) * z + full)
    return theta


def fzoo(theta, loss, draw):
    for _ in range(STEPS):
        directions = [draw() for _ in range(MEMBERS)]
        losses = torch.stack([loss(theta + EPS * u) for u in directions])
        weights = (losses - loss(theta)) / (MEMBERS * losses.std(unbiased=False))
        theta = theta - LR * sum(w * u for w, u in zip(weights, directions))
    return theta


def evolution_strategies(theta, loss, draw):
    for _ in range(STEPS):
        directions = [draw() for _ in range(MEMBERS)]
        rewards = torch.stack([loss(theta + EPS * z) for z in directions])
        shaped = (rewards - rewards.mean()) / (rewards.std(unbiased=False) + 1e-8)
        theta = theta + LR / MEMBERS * sum(s * z for s, z in zip(shaped, directions))
    return theta


def recorded(published) -> dict:
    """seed -> {parameter: z} of every pass that a published step makes from now on.

    Raises:
        Refused, in the pass: it has another z than an earlier one of the same seed.
    """
    drawn, noise = {}, published.noise

    def recording(seed):
        for p, z in noise(seed):
            if not torch.equal(drawn.setdefault(seed, {}).setdefault(p, z.clone()), z):
                raise Refused(f"two passes of seed {seed} have different z")
            yield p, z

    published.noise = recording
    return drawn


def check(step, model, form, directions) -> None:
    """STEPS calls of ``step`` must take the model's weights where ``form`` says.

    Args:
        directions: () -> list of z, one vector each, in their order; asked when the steps are done.
    Raises:
        Refused: they are elsewhere.
    """
    before = flat(model.weights)
    for _ in range(STEPS):
        step()
    given = iter(directions())
    right = form(before, model.loss, lambda: next(given).to(before.device))
    left = len(list(given))
    off, moved = (float((right - there).abs().max()) for there in (flat(model.weights), before))
    if left or not off <= OFF * moved:
        raise Refused(f"after {STEPS} steps weights are {off:.2g} from where explicit z leads, of a way of {moved:.2g}; {left} z unused")
