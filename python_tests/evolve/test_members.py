"""Members of a population: what they are worth, what they cost, and that they may be answered in any order and elsewhere."""

import math
import time

import pytest
import torch

pytest.importorskip("transformers")

from zokern import EvolutionStrategies  # noqa: E402
from zokern.estimators import Driver  # noqa: E402
from zokern.evolve import Generator, Members, Rewards, Row  # noqa: E402
from zokern.evolve.members import judged, spread  # noqa: E402

ROWS = [Row(f"{word} is", {"word": word}, f"line {i}") for i, word in enumerate(["copy", "right", "of the work"])]
SEED = (7, 3)


def vowels(completions):
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]


def slow(completions):
    time.sleep(0.005)
    return [float(len(text)) for text in completions]


@pytest.fixture
def prompts(tokenizer):
    return [tokenizer(row.prompt)["input_ids"] for row in ROWS]


@pytest.fixture
def made(model_of, tokenizer, prompts):
    """(functions, temperature, settings of the optimizer) -> a model, the optimizer that moves it, the members that it asks."""

    def make(functions=(vowels,), temperature=0.0, dtype=torch.float32, perturbation="copied", **more):
        model = model_of(dtype=dtype)
        given = dict(lr=0.1, sigma=0.1, population=6, maximize=True, perturbation=perturbation) | more
        generator = Generator(model, tokenizer, 6, batch_size=2, temperature=temperature)
        return model, EvolutionStrategies(model.parameters(), **given), Members(generator, Rewards(functions), ROWS, prompts, SEED)

    return make


def explicitly(model, key, scale, layout, explicit):
    """Moves the model by scale z, z as the oracle makes it."""
    with torch.no_grad():
        for p, z in zip(model.parameters(), explicit(key, layout), strict=True):
            p.copy_(p.double() + scale * z)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_member_is_worth_the_mean_of_its_rows(temperature, made, model_of, explicit, prompts):
    """By what copies of the model write that explicit noise has moved, each drawing by its own seed."""
    model, optimizer, members = made([vowels, slow], temperature)
    reward = optimizer.step(members)
    worth, tokens = [], 0
    for number, (key, _) in enumerate(optimizer.last.terms):
        moved = model_of()
        explicitly(moved, key, 0.1, optimizer.layout, explicit)
        members.generator.model = moved
        written, scores = judged(members.generator, members.rewards, ROWS, prompts, (*SEED, number))
        worth.append((sum(scores.values) / 3, scores.means["vowels"], scores.means["slow"]))
        tokens += written.tokens
    means, *each = zip(*worth)
    assert len(set(means)) > 2 and members.means == pytest.approx(means) and float(reward) == pytest.approx(sum(means) / 6)
    assert members.functions() == {name: pytest.approx(sum(values) / 6) for name, values in zip(("vowels", "slow"), each)}
    assert members.tokens == tokens
    shaped = torch.tensor(means, dtype=torch.float64)
    shaped = (shaped - shaped.mean()) / (shaped.std(correction=0) + 1e-8)
    expected = model_of().double()
    for (key, _), weight in zip(optimizer.last.terms, shaped.tolist()):
        explicitly(expected, key, 0.1 / 6 * weight, optimizer.layout, explicit)
    assert all(torch.allclose(p.double(), q, atol=1e-6) for p, q in zip(model.parameters(), expected.parameters(), strict=True))


def test_the_seconds_of_generation_and_of_the_noise_are_all_there_are(made):
    """In which a reward that takes long is generation."""
    _, optimizer, members = made([slow], perturbation="in-place")
    optimizer.step(members)
    members.stop()
    before = members.noise
    time.sleep(0.01)
    members.stop()
    assert members.generating > 6 * 0.005 and 0 < before < members.noise - 0.009


class Backwards(Driver):
    """Answers the points of a request from the last one to the first, as an engine may that has them elsewhere."""

    def __init__(self, members):
        self.members = members

    def answer(self, request):
        request.weights.apply_pending()
        found = {}
        for number in reversed(range(len(request.points))):
            with request.weights.at(request.points[number].terms, request.points[number].part):
                written, scores = judged(*self.of, (*SEED, number))
            found[number] = torch.tensor(sum(scores.values) / len(scores.values), dtype=torch.float64)
        return [found[number] for number in range(len(request.points))]

    @property
    def of(self):
        return self.members.generator, self.members.rewards, self.members.rows, self.members.prompts


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("more", [dict(dtype=torch.bfloat16), dict(mirrored=True), dict(shaping="ranks")], ids=str)
def test_members_may_be_answered_in_any_order(more, temperature, made):
    model, optimizer, members = made(temperature=temperature, **more)
    other, its_optimizer, its_members = made(temperature=temperature, **more)
    for _ in range(2):
        members.means.clear()  # each number draws as before
        assert optimizer.step(members) == its_optimizer.step(Backwards(its_members))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert len(set(members.means)) > 1


@pytest.mark.filterwarnings("ignore:step 0 had members", "ignore:reward 'once' returned NaN")
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_member_that_is_nan_is_left_out(mirrored, made):
    calls = []

    def once(completions):
        calls.append(len(completions))
        return [math.nan if len(calls) == 3 else value for value in vowels(completions)]

    _, optimizer, members = made([once], mirrored=mirrored)
    optimizer.step(members)
    left = [mean for number, mean in enumerate(members.means) if number != 2]
    assert math.isnan(members.means[2]) and optimizer.dropped == 1 and optimizer.skipped == 0
    assert spread(members.means) == (
        pytest.approx(sum(left) / 5),
        max(left),
        pytest.approx(float(torch.tensor(left).double().std(correction=0))),
        5,
    )
    assert mirrored or float(optimizer.last.terms[2][1]) == 0


def test_the_spread_of_nothing():
    assert all(map(math.isnan, spread([math.nan, math.inf])[:3])) and spread([math.nan])[3] == 0 and spread([2.0]) == (2.0, 2.0, 0.0, 1)
