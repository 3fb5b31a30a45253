"""A step as a CUDA graph: the very run that eager steps make."""

import pytest
import torch

import zokern
from zokern import MeZO


def test_parameters_on_the_cpu_are_refused():
    theta = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="parameters are on cpu: move them to one NVIDIA GPU"):
        zokern.graph(MeZO([theta]), lambda: theta.sum())


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)).to("cuda", dtype).eval()


def optimizer_of(net, **settings):
    first, last = list(net[0].parameters()), list(net[2].parameters())
    return MeZO([{"params": first, "eps": 1e-2}, {"params": last, "lr": 2e-3}], lr=1e-3, weight_decay=0.1, **settings)


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 20, generator=generator).cuda() for _ in range(count)]


@pytest.mark.gpu
class TestOnGPU:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("q", [1, 2])
    @pytest.mark.parametrize("kind", ["in-place", "copied", "copied-own"])
    def test_replays_are_the_steps_that_eager_ones_would_be(self, dtype, q, kind):
        """With copied weights theta is the same, too; in 16 bits of its own its updates are rounded at random, by each step's bits."""
        settings = dict(q=q, perturbation=kind, rounding="nearest" if "copied" == kind or dtype == torch.float32 else "stochastic")
        data = batches(6)
        x = torch.empty_like(data[0], dtype=dtype)
        runs = []
        for captured in (False, True):
            net = model(dtype)
            opt = optimizer_of(net, **settings)
            schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, 6)
            closure = lambda: net(x).float().square().mean()  # noqa: B023, E731
            x.copy_(data[0])
            step = zokern.graph(opt, closure) if captured else lambda: opt.step(closure)  # noqa: B023
            losses = []
            for batch in data:
                x.copy_(batch)
                losses.append(float(step()))
                schedule.step()
            assert opt.param_groups[0]["step"] == 6 and opt.skipped == 0
            held = [opt.state[p]["theta"] for p in net.parameters()] if "copied" in kind else []
            runs.append((losses, [p.detach().clone() for p in [*net.parameters(), *held]], opt.last))
        (a, weights_a, last_a), (b, weights_b, last_b) = runs
        assert a == b
        assert all(torch.equal(x, y) for x, y in zip(weights_a, weights_b))
        assert [key for key, _ in last_a.terms] == [key for key, _ in last_b.terms]
        assert torch.equal(last_a.projected_grad, last_b.projected_grad)

    @pytest.mark.parametrize("kind", ["in-place", "copied"])
    def test_capturing_moves_nothing(self, kind):
        net = model()
        before = [p.detach().clone() for p in net.parameters()]
        opt = optimizer_of(net, perturbation=kind)
        x = batches(1)[0]
        zokern.graph(opt, lambda: net(x).square().mean())
        assert all(torch.equal(a, b) for a, b in zip(before, net.parameters())) and opt.param_groups[0]["step"] == 0

    def test_eager_steps_and_a_resumed_state_in_between(self):
        net, twin = model(), model()
        x = batches(1)[0]
        opt, eager = optimizer_of(net), optimizer_of(twin)
        closure = lambda: net(x).square().mean()  # noqa: E731
        step = zokern.graph(opt, closure)
        step()
        opt.step(closure)
        step()
        state, weights = opt.state_dict(), {k: v.clone() for k, v in net.state_dict().items()}
        step()
        net.load_state_dict(weights)
        opt.load_state_dict(state)
        step()
        for _ in range(4):
            eager.step(lambda: twin(x).square().mean())
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters()))
        assert opt.param_groups[0]["step"] == 4

    def test_what_is_written_to_copied_weights_between_replays_is_theta(self):
        net, x = model(torch.bfloat16), batches(1)[0].bfloat16()
        opt = optimizer_of(net, perturbation="copied")
        step = zokern.graph(opt, lambda: (net(x) * 0).float().sum())  # whose steps move nothing but by weight decay
        for group in opt.param_groups:
            group["lr"] = 0.0
        step()
        with torch.no_grad():
            net[0].bias.fill_(2.0)
        step()
        assert bool((net[0].bias == 2).all()) and bool((opt.state[net[0].bias]["theta"] == 2).all())

    def test_a_loss_that_is_not_finite_skips(self):
        net = model()
        before = [p.detach().clone() for p in net.parameters()]
        x = batches(1)[0]
        step = zokern.graph(opt := optimizer_of(net), lambda: net(x).square().mean())
        x.fill_(float("nan"))
        with pytest.warns(RuntimeWarning, match="was skipped"):
            for _ in range(3):
                step()
                torch.cuda.synchronize()
        assert opt.skipped == 3
        assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(before, net.parameters()))

    @pytest.mark.parametrize("settings, message", [({"q": 9}, "q=9: pass q <= 8"), ({"defer": True}, "pass defer=False")])
    def test_what_cannot_be_captured_is_refused(self, settings, message):
        net = model()
        with pytest.raises(ValueError, match=message):
            zokern.graph(MeZO(net.parameters(), **settings), lambda: net(batches(1)[0]).sum())

    def test_changed_settings_are_refused(self):
        net = model()
        x = batches(1)[0]
        step = zokern.graph(opt := optimizer_of(net), lambda: net(x).square().mean())
        opt.param_groups[0]["weight_decay"] = 0.5
        with pytest.raises(ValueError, match="changed since the capture: make a new zokern.graph"):
            step()

    def test_graphs_of_one_capture_stream_do_not_share_workspaces(self):
        """Replayed at once on two streams: cuBLAS splits these products, and adds up the parts in a workspace."""
        runs = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            net = torch.nn.Linear(1 << 16, 16, bias=False, device="cuda")
            x = torch.randn(16, 1 << 16, device="cuda")
            opt = MeZO(net.parameters(), lr=0.0, eps=1e-3, seed=seed, perturbation="copied")
            runs.append((zokern.graph(opt, lambda net=net, x=x: net(x).square().mean()), opt, torch.cuda.Stream()))
            for _ in range(29):  # torch has 32 of them in turn, and a graph has taken two
                torch.cuda.Stream()
        alone, both = [[float(step()) for _ in range(20)] for step, _, _ in runs], [[], []]
        for _, opt, _ in runs:
            opt.param_groups[0]["step"] = 0
        torch.cuda.synchronize()
        for _ in range(20):
            for losses, (step, _, stream) in zip(both, runs):
                with torch.cuda.stream(stream):
                    losses.append(step().clone())
        torch.cuda.synchronize()
        assert [[float(loss) for loss in losses] for losses in both] == alone
