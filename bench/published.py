"""The steps of others, operation by operation as their public code takes them, and written in our own words from their equations.

What costs time is kept: z made anew in every pass, by ``torch.normal`` for each tensor after a seed; sums out of place; a weight decay that
is multiplied by though it is zero; ``optimizer.step()`` once for each tensor. What is a fault is not: each class says what it leaves out.
Losses that are only logged, garbage collection and learning-rate schedules are left out of all.
"""

import statistics

import numpy as np
import torch

from .step import PublishedMeZO


class MeZO(PublishedMeZO):
    """As princeton-nlp/MeZO takes it, multiplications by its weight decay included, which is 0 by default.

    g = (L(theta + eps z) - L(theta - eps z)) / (2 eps);   theta <- theta - lr (g z + weight_decay theta)

    Reference: Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes", Algorithm 1.
    """

    weight_decay = 0.0

    def __init__(self, model, lr, eps):
        super().__init__(model, lr, eps)
        self.decays = {p: not any(part in name for part in ("bias", "layer_norm", "layernorm")) for name, p in model.named_parameters()}

    def update(self, seed, projected_grad):
        for p, z in self.noise(seed):
            if self.decays[p]:
                p.data = p.data - self.lr * (projected_grad * z + self.weight_decay * p.data)
            else:
                p.data = p.data - self.lr * (projected_grad * z)


class LOZO(MeZO):
    """As optsuite/LOZO takes it: the z of a matrix is U V^T, U new in every step, V in every ``interval``-th, and is made in memory.

    Its code draws another U in the update of the steps that have a new V than it measured with; here all passes of a step have the same.

    Reference: Chen et al. 2024, "Enhancing Zeroth-order Fine-tuning for Language Models with Low-rank Structures", Algorithm 1.
    """

    def __init__(self, model, lr, eps, rank=2, interval=50):
        super().__init__(model, lr, eps)
        self.rank, self.interval, self.v = rank, interval, {}

    def noise(self, seed):
        torch.manual_seed(seed)
        for p in self.params:
            theta = p.data
            if theta.ndim < 2:
                yield p, torch.normal(mean=0, std=1, size=theta.size(), device=theta.device, dtype=theta.dtype)
                continue
            if seed % self.interval == 0:
                self.v[p] = torch.randn(theta.size(1), self.rank, device=theta.device, dtype=theta.dtype)
            yield p, torch.randn(theta.size(0), self.rank, device=theta.device, dtype=theta.dtype) @ self.v[p].t()

    def perturb(self, seed, scaling_factor):
        for p, z in self.noise(seed):
            z = scaling_factor * z  # so that the product of U and V is gone when the sum is made, as there
            z = z * self.eps
            p.data = p.data + z

    def update(self, seed, projected_grad):
        for p, z in self.noise(seed):
            z = projected_grad * z
            p.data = p.data - self.lr * (z + self.weight_decay * p.data if self.decays[p] else z)

    @property
    def kept(self):
        return list(self.v.values())


class MeZOSVRG(PublishedMeZO):
    """As amazon-science/mezo_svrg takes it: the full batch's estimate is a tensor, and so is the anchor.

    t mod q = 0:  anchor <- theta;  G <- g_full z;  theta <- theta - lr_full G
    otherwise:    theta <- theta - lr (g_I(theta) - g_I(anchor)) z - lr G

    In its code the anchor is the live weights under a second name, and the two estimates have different z. Here it is a copy, one more pass
    of an anchor's step than there, and they share one z, which each still makes for itself, as often as there.

    Reference: Gautam et al. 2024, "Variance-Reduced Zeroth-Order Methods for Fine-Tuning Language Models", Algorithm 1.
    """

    def __init__(self, model, lr, eps, lr_full, q=2):
        super().__init__(model, lr, eps)
        self.lr_full, self.q = lr_full, q
        self.anchor, self.full = [], []

    @torch.no_grad()
    def step(self, closure, full_closure):
        if (seed := next(self.seeds)) % self.q == 0:
            _, projected_grad = self.two_point(full_closure, seed)
            self.full = [projected_grad * z for _, z in self.noise(seed)]
            self.anchor = [p.data.clone() for p in self.params]
            self.add_full(self.lr_full)
            return
        _, here = self.two_point(closure, seed)
        self.update(seed, here)
        self.exchange()
        _, there = self.two_point(closure, seed)
        self.exchange()
        self.update(seed, -there)
        self.add_full(self.lr)

    def update(self, seed, projected_grad):
        for p, z in self.noise(seed):
            p.data = p.data + -self.lr * projected_grad * z

    def add_full(self, lr):
        for p, full in zip(self.params, self.full):
            p.data = p.data - lr * full

    def exchange(self):
        """The model computes with the anchor, or with theta again."""
        for i, p in enumerate(self.params):
            p.data, self.anchor[i] = self.anchor[i], p.data

    @property
    def kept(self):
        return self.anchor + self.full


class ZOLLM(PublishedMeZO):
    """As ZO-Bench/ZO-LLM takes it: g z is a tensor's gradient, and ``optimizer.step()`` is called once for each tensor, which looks at all
    of them each time.

    theta <- what ``optimizer`` makes of the gradient g z, or sign(g) z

    ``keep``: of each parameter, the share of its z that is not 0. Its code compares normals with the ratio itself, and so masks another
    share than was asked for; here they are compared with the normal distribution's quantile, which costs the same.

    Reference: Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", Appendix A and section 5.
    """

    sign = False

    def __init__(self, model, lr, eps, optimizer=torch.optim.SGD, keep=None, **settings):
        super().__init__(model, lr, eps)
        self.optimizer = optimizer(self.params, lr=lr, **settings)
        self.thresholds = {p: quantile(1 - share) for p, share in zip(self.params, keep)} if keep else {}
        self.masks = torch.Generator(self.params[0].device)

    def noise(self, seed):
        self.masks.manual_seed(seed)
        for p, z in super().noise(seed):
            if p in self.thresholds:
                z[torch.empty_like(z).normal_(generator=self.masks) < self.thresholds[p]] = 0
            yield p, z

    def update(self, seed, projected_grad, scale=1):
        for p, z in self.noise(seed):
            p.grad = scale * ((np.sign(projected_grad) if self.sign else projected_grad) * z)
            self.optimizer.step()
            p.grad = None

    @property
    def kept(self):
        return [value for state in self.optimizer.state.values() for value in state.values() if torch.is_tensor(value) and value.dim()]


def quantile(share) -> float:
    """Below it a standard normal is with this probability."""
    return statistics.NormalDist().inv_cdf(share) if 0 < share < 1 else float("inf") * (share - 0.5)


class ZOLLMSign(ZOLLM):
    """ZO-SGD-Sign with the sign of g alone."""

    sign = True


class ZOLLMConservative(ZOLLM):
    """ZO-SGD-Cons: of theta, theta - lr g z and theta + lr g z the one with the lowest loss; they are tried in place."""

    @torch.no_grad()
    def step(self, closure):
        here = closure()
        seed = next(self.seeds)
        _, projected_grad = self.two_point(closure, seed)
        self.update(seed, projected_grad)
        down = closure()
        self.update(seed, projected_grad, -2.0)
        up = closure()
        if down <= here and down < up:
            self.update(seed, projected_grad, 2.0)
        elif down > here and here < up:
            self.update(seed, projected_grad)


class ZOLLMBlocks(ZOLLM):
    """Block-wise: an estimate for each block, which alone is perturbed; then all are updated.

    Its code makes the same z in every block, as far as their shapes agree; here each has a seed of its own.
    """

    def __init__(self, model, lr, eps, blocks, **settings):
        super().__init__(model, lr, eps, **settings)
        self.blocks = blocks

    @torch.no_grad()
    def step(self, closure):
        found = []
        for block in self.blocks:
            self.params, seed = block, next(self.seeds)
            found.append((seed, self.two_point(closure, seed)[1]))
        for block, (seed, projected_grad) in zip(self.blocks, found):
            self.params = block
            self.update(seed, projected_grad)


class FZOO(PublishedMeZO):
    """As DKmiyan/FZOO takes it: signs instead of normals, every member perturbed and restored, and a pass over the weights for each in the
    update. Its second program, in which members share a forward pass of a rewritten OPT, is another one.

    l_i = L(theta + eps u_i), l_0 = L(theta);   theta <- theta - lr sum_i (l_i - l_0) / (N std(l)) u_i

    Reference: Dang et al. 2025, "FZOO: Fast Zeroth-Order Optimizer for Fine-Tuning Large Language Models towards Adam-Scale Speed",
        Algorithm 1.
    """

    def __init__(self, model, lr, eps, members):
        super().__init__(model, lr, eps)
        self.members = members

    def noise(self, seed):
        torch.manual_seed(seed)
        for p in self.params:
            yield p, torch.randint(0, 2, size=p.data.size(), device=p.data.device, dtype=p.data.dtype) * 2 - 1

    @torch.no_grad()
    def step(self, closure):
        seeds = [next(self.seeds) for _ in range(self.members)]
        losses = []
        for seed in seeds:
            self.perturb(seed, 1)
            losses.append(closure())
            self.perturb(seed, -1)
        losses = torch.tensor(losses, dtype=torch.float32)
        weights = (losses - closure().cpu()) / (self.members * torch.std(losses, unbiased=False))
        for seed, weight in zip(seeds, weights):
            for p, u in self.noise(seed):
                p.data = p.data - self.lr * (weight * u)


class EvolutionStrategies(PublishedMeZO):
    """As VsonicV/es-fine-tuning-paper takes it on one device: noise is added, and subtracted again, in the weights' dtype; the update is
    made tensor by tensor, with every member's noise once more.

    R_n = reward at theta + sigma z_n;   theta <- theta + (alpha / N) sum_n (R_n - mean) / (std + 1e-8) z_n

    Its code seeds all tensors alike, so that equal shapes have equal noise; here each has a seed of its own.

    Reference: Qiu et al. 2025, "Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning", Algorithm 2.
    """

    def __init__(self, model, lr, eps, members):
        super().__init__(model, lr, eps)
        self.members = members

    def draw(self, seed, i):
        p = self.params[i]
        generator = torch.Generator(device=p.device)
        generator.manual_seed(seed << 20 | i)
        return torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)

    def noise(self, seed):
        for i, p in enumerate(self.params):
            yield p, self.draw(seed, i)

    @torch.no_grad()
    def step(self, closure):
        seeds, rewards = [next(self.seeds) for _ in range(self.members)], []
        for seed in seeds:
            self.add(seed, self.eps)
            rewards.append(float(closure()))
            self.add(seed, -self.eps)
        rewards = np.array(rewards, dtype=np.float32)
        shaped = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        for i, p in enumerate(self.params):
            update = torch.zeros_like(p)
            for seed, weight in zip(seeds, shaped):
                update.add_(self.draw(seed, i).mul_(float(weight)))
            update.div_(self.members)
            p.data.add_(self.lr * update)

    def add(self, seed, c):
        for p, z in self.noise(seed):
            p.data.add_(c * z)
