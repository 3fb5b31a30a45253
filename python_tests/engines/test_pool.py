"""Engines answer an optimizer as the model itself would: the same numbers, the same weights, whoever measured what and whoever died."""

import threading
import time

import pytest
import torch

import zokern
from zokern import FZOO, EvolutionStrategies, MeZO, ZOAdam
from zokern.engines import EngineDied, Local, OptionLoss, Pool, Sampling
from zokern.engines.messages import Updates
from zokern.engines.shard import checksum
from zokern.errors import BadInput
from zokern.layout import Span
from zokern.optim import optimizers

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
OPTIONS = [[[3], [4, 5]], [[20, 21, 22], [3]], [[7], [8]]]


def likelihood(engine, number=0):
    return sum(row[0] for row in engine.score(PROMPTS, OPTIONS)) / 3


def plainly(model_of, tokens, steps, kind=EvolutionStrategies, dtype=torch.float32, theta=torch.float32, **more):
    """The optimizer by itself, its model in this process."""
    model = model_of(dtype)
    given = dict(lr=0.1, sigma=0.05, population=6, maximize=True) if kind is EvolutionStrategies else {}
    optimizer = kind(model.named_parameters(), perturbation=zokern.Copied(theta), **given | more)
    engine = Local(model, tokens)
    return model, optimizer, [float(optimizer.step(lambda: likelihood(engine))) for _ in range(steps)]


@pytest.mark.parametrize(
    "kind, more",
    [
        (EvolutionStrategies, {}),
        (EvolutionStrategies, dict(mirrored=True, weight_decay=0.1, sparsity=0.5)),
        (FZOO, dict(lr=1e-2, q=4)),
        (MeZO, dict(lr=1e-3, eps=1e-2, q=2, weight_decay=0.1)),
    ],
    ids=["es", "mirrored, decayed, sparse", "fzoo", "mezo"],
)
@pytest.mark.parametrize("count", [1, 3])
def test_the_weights_are_those_of_the_optimizer_by_itself(count, kind, more, optimizer_of, engine_of, model_of, tokens):
    """Bit for bit, and the losses too; the parameters here stay until they are pulled."""
    pool, optimizer = optimizer_of([engine_of() for _ in range(count)], kind=kind, **more)
    before = [p.detach().clone() for p in optimizer.layout.params]
    losses = [float(optimizer.step(pool.driver(likelihood))) for _ in range(4)]
    assert all(map(torch.equal, before, optimizer.layout.params))
    model, plain, expected = plainly(model_of, tokens, 4, kind, **more)
    assert losses == expected and len(set(losses)) == 4
    pool.pull(optimizer)
    assert all(map(torch.equal, optimizer.layout.params, model.parameters()))
    assert not all(map(torch.equal, before, optimizer.layout.params))
    optimizer.step(pool.driver(likelihood))  # what was pulled is no change of theirs


OURS = [name for name, cls in optimizers().items() if cls.__module__.startswith("zokern.") and not (cls.takes_model or cls.divides)]


@pytest.mark.parametrize("name", OURS)
def test_each_optimizer_is_as_by_itself_or_refused(name, engine_of, model_of, tokens):
    """Nothing in between: among them one that measures at an anchor, elsewhere than theta."""
    kind, engine = optimizers()[name], Local(model_of(), tokens)
    pool = Pool([engine_of()])
    optimizer = kind(model_of().named_parameters(), lr=1e-3, perturbation=pool)
    before = pool.checksums()

    def stepped(optimizer, loss):
        return optimizer.step(loss(), loss()) if kind.full_batch else optimizer.step(loss())

    if name in ("adamezo", "forward-gradient", "zo-adam", "zo-momentum", "zo-sign"):
        refused(lambda: stepped(optimizer, lambda: pool.driver(likelihood)), "EvolutionStrategies, FZOO or MeZO", ValueError)
        assert pool.checksums() == before
        return
    plain = kind((model := engine.model).named_parameters(), lr=1e-3, perturbation=zokern.Copied())
    for _ in range(3):
        found = stepped(optimizer, lambda: pool.driver(likelihood))
        assert found == stepped(plain, lambda: lambda: likelihood(engine))
    pool.pull(optimizer)
    assert all(map(torch.equal, optimizer.layout.params, model.parameters()))


@pytest.mark.parametrize("theta", [torch.float32, None], ids=["float32", "own"])
def test_sixteen_bits_do_not_drift(theta, optimizer_of, engine_of, model_of, tokens):
    """A hundred points, no update: the very weights; and updates are those of the optimizer by itself, rounded as there."""
    pool, optimizer = optimizer_of([engine_of(torch.bfloat16)], torch.bfloat16, theta=theta)
    before = pool.checksums()
    for number in range(100):
        pool.go([(zokern.NoiseKey(1, number), 0.05)])
    assert pool.checksums() == before
    for _ in range(3):
        optimizer.step(pool.driver(likelihood))
    model, plain, _ = plainly(model_of, tokens, 3, dtype=torch.bfloat16, theta=theta)
    pool.pull(optimizer)
    assert all(map(torch.equal, optimizer.layout.params, model.parameters()))
    assert optimizer.param_groups[0]["rounding"] == plain.param_groups[0]["rounding"] == ("nearest" if theta else "stochastic")
    assert pool.checksums() == {
        name: checksum(t, span) for name, t, span in zip(plain.layout.names, plain.weights.theta[0].params, plain.layout.spans)
    }


class Mortal(Local):
    """Dies at the calls of ``measure`` with these numbers, and comes back at the checkpoint, or not."""

    def __init__(self, make, tokens, dies, returns=True):
        super().__init__(make(), tokens)
        self.make, self.dies, self.returns, self.calls, self.starts = make, set(dies), returns, 0, 0

    def measure(self, function, updates, terms, *args):
        self.calls += 1
        if self.calls in self.dies:
            self.go(updates, terms)  # it was there already
            raise EngineDied("struck by lightning")
        return super().measure(function, updates, terms, *args)

    def restart(self):
        self.starts += 1
        if not self.returns:
            super().restart()
        self.model, self.shard = self.make(), None


@pytest.mark.parametrize("returns", [True, False], ids=["started again", "gone"])
@pytest.mark.parametrize("dies", [(1,), (5, 6, 9), range(3, 6)], ids=str)
def test_deaths_change_no_weight(dies, returns, optimizer_of, engine_of, model_of, tokens):
    mortal = Mortal(model_of, tokens, dies, returns)
    pool, optimizer = optimizer_of([mortal, engine_of()])
    with pytest.warns(RuntimeWarning, match="lightning|cannot be started again"):
        losses = [float(optimizer.step(pool.driver(slowly))) for _ in range(5)]
    model, _, expected = plainly(model_of, tokens, 5)
    assert losses == expected and mortal.starts == (len(dies) if returns else 1) and len(pool.engines) == 1 + returns
    pool.pull(optimizer)
    assert all(map(torch.equal, optimizer.layout.params, model.parameters()))


def slowly(engine, number):
    time.sleep(0.002)  # so that both engines have something to do
    return likelihood(engine)


def test_an_engine_that_only_dies_is_given_up(optimizer_of, model_of, tokens):
    pool, optimizer = optimizer_of([Mortal(model_of, tokens, range(1, 100))])
    with pytest.warns(RuntimeWarning), pytest.raises(BadInput, match="no engine is left.*lightning"):
        optimizer.step(pool.driver(likelihood))
    assert optimizer.param_groups[0]["step"] == 0


def test_engines_work_at_the_same_time_and_take_what_is_left(optimizer_of, engine_of):
    """The first waits until the second has measured five of the six points."""
    first, second = engine_of(), engine_of()
    pool, optimizer = optimizer_of([first, second])
    done, by = threading.Semaphore(0), []

    def measured(engine, number):
        if engine is first:
            for _ in range(5):
                assert done.acquire(timeout=20)
        by.append(engine)
        done.release()
        return float(number)

    driver = pool.driver(measured)
    optimizer.step(driver)
    assert driver.results == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] and by == [second] * 5 + [first]


def test_an_error_ends_a_step_and_moves_nothing(optimizer_of, engine_of):
    pool, optimizer = optimizer_of([engine_of(), engine_of()])
    before = pool.checksums()

    def broken(engine, number):
        if number == 3:
            raise ZeroDivisionError("of the user's")
        return 1.0

    with pytest.raises(ZeroDivisionError, match="of the user's"):
        optimizer.step(pool.driver(broken))
    assert pool.checksums() == before and not pool.passes
    optimizer.step(pool.driver(likelihood))


def test_a_log_brings_engines_to_any_step(optimizer_of, engine_of, model_of, tmp_path):
    pool, optimizer = optimizer_of([engine_of(), engine_of()])
    sums = []
    with zokern.record(optimizer, tmp_path / "log.jsonl"):
        for _ in range(4):
            optimizer.step(pool.driver(likelihood))
            sums.append(pool.checksums())
    log = zokern.Trajectory.read(tmp_path / "log.jsonl")
    others = Pool([engine_of()])
    again = log.replay(model_of(), 2, perturbation=others)
    assert others.checksums() == sums[1]
    for _ in range(2):
        again.step(others.driver(likelihood))
    assert others.checksums() == sums[3]
    model = model_of()  # and without engines
    log.replay(model)
    pool.pull(optimizer)
    assert all(map(torch.equal, optimizer.layout.params, model.parameters()))


def test_plain_closures_find_the_engines_at_the_point(optimizer_of, engine_of, model_of, tokens):
    engine = engine_of()
    pool, optimizer = optimizer_of([engine])
    losses = [float(optimizer.step(lambda: likelihood(engine))) for _ in range(2)]
    assert losses == plainly(model_of, tokens, 2)[2]


@torch.no_grad()
def test_what_engines_write_is_what_a_model_writes(engine_of, optimizer_of):
    engine = engine_of()
    optimizer_of([engine])
    prompts = [[5, 6, 7], [8, 9, 10, 11]]
    drawn = [engine.generate(prompts, Sampling(6, 1.0), seed).texts for seed in ((1, 2), (1, 2), (1, 3))]
    assert drawn[0] == drawn[1] != drawn[2]
    greedy = engine.generate(prompts, Sampling(6))
    ids = torch.tensor([prompts[0]])
    for _ in range(6):
        ids = torch.cat([ids, engine.model(ids).logits[:, -1:].argmax(-1)], 1)
    assert greedy.texts[0] == engine.tokenizer.decode(ids[0, 3:].tolist()) and greedy.tokens == 12
    third = int(ids[0, 5])  # ends the text where it comes first
    ended = engine.generate(prompts[:1], Sampling(6, ends=(third,)))
    assert ended.tokens == ids[0, 3:].tolist().index(third) + 1 < 6
    scores = engine.score(PROMPTS, OPTIONS)
    for prompt, options, found in zip(PROMPTS, OPTIONS, scores):
        for option, score in zip(options, found):
            shares = torch.log_softmax(engine.model(torch.tensor([prompt + option])).logits[0].double(), -1)
            assert score == pytest.approx(sum(float(shares[len(prompt) - 1 + i, t]) for i, t in enumerate(option)), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mean", [False, True])
def test_the_loss_of_options_is_their_cross_entropy(mean, engine_of, optimizer_of):
    pool, optimizer = optimizer_of([engine := engine_of()], kind=MeZO, lr=3e-3, eps=1e-2, q=4)
    answers, losses = [1, 0, 1], []
    for prompt, options, answer in zip(PROMPTS, OPTIONS, answers):
        worth = []
        for option in options:
            shares = torch.log_softmax(engine.model(torch.tensor([prompt + option])).logits[0].double(), -1)
            each = [shares[len(prompt) - 1 + i, token] for i, token in enumerate(option)]
            worth.append(sum(each) / (len(each) if mean else 1))
        losses.append(torch.stack(worth).logsumexp(0) - worth[answer])
    loss = OptionLoss(PROMPTS, OPTIONS, answers, mean)
    assert loss(engine) == pytest.approx(float(sum(losses) / 3), abs=1e-5)
    before = loss(engine)
    for _ in range(20):
        optimizer.step(pool.driver(loss))
    pool.go()
    assert loss(engine) < 0.8 * before
    refused(lambda: OptionLoss(PROMPTS, OPTIONS, [0, 1]), "3 prompts, options of 3 and 2 answers")
    refused(lambda: OptionLoss(PROMPTS, OPTIONS, [0, 2, 0]), "row 1 has the answer 2 of 2 options")


def test_a_checksum_is_of_elements_however_they_are_cut():
    theta = torch.randn(6, 40)
    whole = checksum(theta, Span(4096, 240, 240))
    halves = checksum(theta[:, :16].contiguous(), Span(4096, 16, 40)) + checksum(theta[:, 16:].contiguous(), Span(4112, 24, 40))
    assert halves % 2**64 == whole
    other = theta.clone()
    other[2, 3], other[3, 2] = theta[3, 2], theta[2, 3]
    assert checksum(other, Span(4096, 240, 240)) != whole  # exchanged
    other = theta.clone().view(torch.int32)
    other[5, 39] ^= 1
    assert checksum(other.view(torch.float32), Span(4096, 240, 240)) != whole


def refused(act, match, kind=BadInput):
    with pytest.raises(kind, match=match):
        act()


def test_what_cannot_be_is_refused(optimizer_of, engine_of, model_of, tokens):
    refused(lambda: Pool([]), "engines is empty")
    refused(lambda: Pool([engine_of()], torch.bfloat16), "dtype=torch.bfloat16")
    model = model_of()
    refused(lambda: MeZO(model.parameters(), perturbation=Pool([engine_of()])), "without names")
    halves = [dict(params=[pair], lr=1.0) for pair in model.named_parameters()]
    refused(lambda: MeZO(halves, perturbation=Pool([engine_of()])), "one parameter group")
    refused(lambda: MeZO(model.named_parameters(), perturbation=Pool([engine_of(torch.bfloat16)])), "other weights than the model here")
    other = Local(model_of(rope_theta=7.0, attention_bias=False), tokens)
    with torch.no_grad():
        other.model.model.norm.weight[3] += 1e-6
    refused(lambda: optimizer_of([engine_of(), other]), "'model.norm.weight'")
    renamed = [(name.replace("model.", "net."), p) for name, p in model.named_parameters()]
    refused(lambda: MeZO(renamed, perturbation=Pool([engine_of()])), "'net.embed_tokens.weight' is not there")


def test_optimizers_whose_updates_are_no_terms_are_refused(optimizer_of, engine_of):
    pool, optimizer = optimizer_of([engine_of()], kind=ZOAdam, lr=1e-3)
    before = pool.checksums()
    refused(lambda: optimizer.step(pool.driver(likelihood)), "take one of them whose updates are terms", ValueError)
    assert pool.checksums() == before


def test_states_do_not_bring_engines_anywhere(optimizer_of, engine_of, model_of):
    """A state knows nothing of theta: the log does. One of step 0 is as good as none."""
    pool, optimizer = optimizer_of([engine_of()])
    fresh = optimizer.state_dict()
    optimizer.step(pool.driver(likelihood))
    other, again = optimizer_of([engine_of()])
    before = other.checksums()
    refused(lambda: again.load_state_dict(optimizer.state_dict()), "state is of step 1.*replay", ValueError)
    again.load_state_dict(fresh)
    plain = EvolutionStrategies(model_of().named_parameters(), perturbation=zokern.Copied(), population=6)
    plain.step(lambda: 1.0)
    refused(lambda: again.load_state_dict(plain.state_dict()), "state is of step 1", ValueError)
    assert other.checksums() == before and again.param_groups[0]["step"] == 0


def test_a_deferred_update_is_pulled_too(optimizer_of, engine_of, model_of, tokens):
    pool, optimizer = optimizer_of([engine_of()], kind=MeZO, lr=1e-2, eps=1e-2, defer=True)
    optimizer.step(pool.driver(likelihood))
    pool.pull(optimizer)
    model, plain, _ = plainly(model_of, tokens, 1, MeZO, lr=1e-2, eps=1e-2)
    assert all(map(torch.equal, optimizer.layout.params, model.parameters()))


def test_engines_that_are_dropped_are_closed(optimizer_of, engine_of, model_of, tokens):
    mortal = Mortal(model_of, tokens, [2], returns=False)
    pool, optimizer = optimizer_of([mortal, engine_of()])
    with pytest.warns(RuntimeWarning, match="goes on without it"):
        for _ in range(3):
            optimizer.step(pool.driver(slowly))
    assert mortal.shard is None and len(pool.engines) == 1


def test_engines_of_one_run_are_not_taken_for_another(optimizer_of, engine_of, model_of):
    engine = engine_of()
    pool, optimizer = optimizer_of([engine])
    optimizer.step(pool.driver(likelihood))
    refused(lambda: EvolutionStrategies(model_of().named_parameters(), perturbation=pool), "updates of another optimizer")
    pool.go()
    refused(lambda: engine.go(Updates(0, []), []), "have had 1 passes")
    other, _ = optimizer_of([engine_of()])
    refused(lambda: optimizer.step(other.driver(likelihood)), "perturbation=pool", ValueError)
    with torch.no_grad():
        optimizer.layout.params[0].mul_(2)
    refused(lambda: optimizer.step(pool.driver(likelihood)), "engines know nothing", RuntimeError)
