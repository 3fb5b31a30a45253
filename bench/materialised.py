"""The rules of zokern's optimizers as one writes them in torch: z stands in memory, a tensor at a time, made anew for every pass.

As MeZO's published code does it: the generator is seeded again before each pass, and each tensor's z is drawn by torch.normal. Sums are
taken in place, which is faster than the published ``p.data = p.data + c * z``.
"""

import torch

from zokern.noise.spec import ANCHOR, PERTURBATION

from .oracle import EPS

LR = 1e-3
MOMENTUM, BETAS, DELTA = 0.9, (0.9, 0.999), 1e-8


class MeZO:
    """Four passes: to +eps z, to -eps z, back, and the update.

    Args:
        params: list of tensors.
        keep: for each the share of its z that is not masked.
        block: for each the number of its block.
        draw: (direction, indices in ``params``) -> z of each of them; a direction is (step, purpose, probe). None: by torch.normal.
    """

    def __init__(self, params, keep=None, block=None, draw=None):
        self.params, self.keep, self.block, self.draw = params, keep, block, draw or self.normal
        self.steps = 0
        self.state = [[torch.zeros_like(p) for p in params] for _ in range(self.slots)]

    slots = 0

    def normal(self, direction, members):
        step, purpose, probe = direction
        torch.manual_seed(step << 32 | purpose << 24 | probe)
        for i in members:
            p = self.params[i]
            yield torch.normal(0.0, 1.0, p.shape, dtype=p.dtype, device=p.device)

    def noise(self, direction, members=None):
        members = range(len(self.params)) if members is None else members
        return zip((self.params[i] for i in members), self.draw(direction, members))

    def add(self, direction, c, members=None):
        for p, z in self.noise(direction, members):
            p.add_(z, alpha=c)

    def two_point(self, closure, direction, members=None) -> float:
        self.add(direction, EPS, members)
        plus = float(closure())
        self.add(direction, -2 * EPS, members)
        minus = float(closure())
        self.add(direction, EPS, members)
        return (plus - minus) / (2 * EPS)

    @torch.no_grad()
    def step(self, closure):
        self.move(closure, (self.steps, PERTURBATION, 0))
        self.steps += 1

    def move(self, closure, direction):
        self.update(direction, self.two_point(closure, direction))

    def update(self, direction, g):
        self.add(direction, -LR * g)


class Queries(MeZO):
    """The mean of four directions."""

    def move(self, closure, direction):
        directions = [(*direction[:2], probe) for probe in range(4)]
        measured = [self.two_point(closure, each) for each in directions]
        for each, g in zip(directions, measured):
            self.update(each, g / 4)


class Sparse(MeZO):
    """The mask is drawn with z, from the same seed."""

    def normal(self, direction, members):
        for i, z in zip(members, super().normal(direction, members)):
            yield z.mul_(torch.rand_like(z) < self.keep[i])


class BlockWise(MeZO):
    """Every block is perturbed by itself and has a g of its own."""

    def move(self, closure, direction):
        blocks = [[i for i, b in enumerate(self.block) if b == block] for block in sorted(set(self.block))]
        measured = [self.two_point(closure, direction, members) for members in blocks]
        for g, members in zip(measured, blocks):
            self.add(direction, -LR * g, members)


class Conservative(MeZO):
    """The best of theta - lr g z, theta + lr g z and theta."""

    def move(self, closure, direction):
        g = self.two_point(closure, direction)
        losses = []
        for c in (-LR * g, 2 * LR * g, -LR * g):
            self.add(direction, c)
            losses.append(float(closure()))
        if (best := losses.index(min(losses))) < 2:
            self.add(direction, (-LR * g, LR * g)[best])


class Sign(MeZO):
    def update(self, direction, g):
        for p, z in self.noise(direction):
            p.add_(z.mul_(g).sign_(), alpha=-LR)


class Momentum(MeZO):
    slots = 1

    def update(self, direction, g):
        for (p, z), m in zip(self.noise(direction), *self.state):
            m.mul_(MOMENTUM).add_(z, alpha=g)
            p.add_(m, alpha=-LR)


class Adam(MeZO):
    slots = 2

    def update(self, direction, g):
        for p, m, v in self.moments(direction, g):
            self.go(p, m, v, self.steps + 1)

    def moments(self, direction, g):
        """Yields each parameter with its m and v, as they are after a step."""
        b1, b2 = BETAS
        for (p, z), m, v in zip(self.noise(direction), *self.state):
            z.mul_(g)
            yield p, m.mul_(b1).add_(z, alpha=1 - b1), v.mul_(b2).addcmul_(z, z, value=1 - b2)

    def go(self, p, m, v, t):
        b1, b2 = BETAS
        p.addcdiv_(m, v.sqrt().div_((1 - b2**t) ** 0.5).add_(DELTA), value=-LR / (1 - b1**t))


class Window(Adam):
    """AdaMeZO: m and v begin at 0 in every step, and go through the last ones again."""

    def __init__(self, params, keep=None, block=None, draw=None, history=20):
        super().__init__(params, draw=draw)
        self.history, self.past = history, []

    def update(self, direction, g):
        self.past = [*self.past, (direction, g)][-self.history :]
        for tensor in (*self.state[0], *self.state[1]):
            tensor.zero_()
        for step in self.past:
            made = list(self.moments(*step))
        for p, m, v in made:
            self.go(p, m, v, len(self.past))


class FusedAdam(MeZO):
    """The estimate is written into the gradients, all of them at once, and torch's fused Adam takes them from there."""

    def __init__(self, params, keep=None, block=None, draw=None):
        super().__init__(params, draw=draw)
        self.optimizer = torch.optim.Adam(params, lr=LR, betas=BETAS, eps=DELTA, fused=True)

    def update(self, direction, g):
        for p, z in self.noise(direction):
            p.grad = z.mul_(g)
        self.optimizer.step()
        self.optimizer.zero_grad()


class SVRG(MeZO):
    """MeZO-SVRG with q = 2 as its Algorithm 1 has it: the anchor and the full batch's estimate are kept in memory."""

    slots = 2

    def move(self, closure, direction):
        anchor, full = self.state
        if self.steps % 2 == 0:
            for p, copied in zip(self.params, anchor):
                copied.copy_(p)
            direction = (self.steps, ANCHOR, 0)
            g = self.two_point(closure, direction)
            for (p, z), kept in zip(self.noise(direction), full):
                p.add_(torch.mul(z, g, out=kept), alpha=-LR)
            return
        here, weights = self.two_point(closure, direction), self.params
        self.params = anchor
        there = self.two_point(closure, direction)
        self.params = weights
        for (p, z), kept in zip(self.noise(direction), full):
            p.add_(z, alpha=-LR * (here - there)).add_(kept, alpha=-LR)
