"""Splits are drawn by seed alone, and metrics are those that one counts by hand."""

import os
import subprocess
import sys
from hashlib import sha256

import pytest
import torch

from zokern import tasks
from zokern.errors import BadInput
from zokern.tasks import Example, few_shot, split
from zokern.tasks.metrics import exact_match, normalized, token_f1
from zokern.tasks.reader import f1


def examples(labels):
    return [Example({"sentence": str(i)}, label, f"row {i + 1}") for i, label in enumerate(labels)]


def numbers(rows):
    return [int(row["sentence"]) for row in rows]


def test_a_split_is_drawn_by_its_seed():
    rows = examples([0, 1] * 600)
    drawn = split(rows, seed=7)
    order = sorted(range(1200), key=lambda i: sha256(b"7 %d" % i).hexdigest())
    assert numbers(drawn.train) == order[:512] and numbers(drawn.validation) == order[512:768] and numbers(drawn.test) == order[768:1024]
    assert set(numbers(split(rows, seed=8).train)) != set(order[:512])
    assert split(rows, 7, 1, 0, 0) == (drawn.train[:1], [], [])


def test_a_split_does_not_depend_on_pythons_hash():
    """This process and another one have different hashes of strings, but for a chance of 2^-32."""
    code = "from zokern.tasks import split; print(split(list(range(100)), 3, 20, 5, 5), split(list('abcdefgh'), 3, 2, 2, 2))"
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": other}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
    assert found == f"{split(list(range(100)), 3, 20, 5, 5)} {split(list('abcdefgh'), 3, 2, 2, 2)}\n"


def test_few_shot_takes_k_of_every_class_twice():
    rows = examples([0] * 30 + [1] * 8 + [2] * 20)
    train, validation = few_shot(rows, 4, seed=1)
    for drawn in (train, validation):
        assert sorted(row.label for row in drawn) == [0] * 4 + [1] * 4 + [2] * 4
    assert not set(numbers(train)) & set(numbers(validation))
    assert few_shot(rows, 4, seed=1) == (train, validation) and few_shot(rows, 4, seed=2) != (train, validation)


def test_rows_that_are_not_enough():
    rows = examples([0] * 30 + [1] * 7)
    with pytest.raises(BadInput, match="30 for train \\+ 5 for validation \\+ 5 for test are more than the 37 rows there are"):
        split(rows, 0, 30, 5, 5)
    with pytest.raises(BadInput, match="train=-1"):
        split(rows, 0, -1, 5, 5)
    with pytest.raises(BadInput, match=r"class 1 has 7 rows, but 4 rows of every class \(--shots, in Python k\) for .* need 8"):
        few_shot(rows, 4, 0)
    with pytest.raises(BadInput, match="k=0"):
        few_shot(rows, 0, 0)
    with pytest.raises(BadInput, match="row 38 has no label"):
        few_shot([*rows, Example({"sentence": "37"}, None, "row 38")], 1, 0)


def test_accuracy_and_matthews_by_hand():
    right, found = [1, 1, 1, 0, 0], [1, 0, 1, 0, 1]
    assert tasks.get("sst2").metrics(found, examples(right)) == {"accuracy": 0.6}
    cola = tasks.get("cola").metrics(found, examples(right))
    # tp 2, tn 1, fp 1, fn 1: (2 * 1 - 1 * 1) / sqrt(3 * 3 * 2 * 2)
    assert cola == {"accuracy": 0.6, "matthews": pytest.approx(1 / 6)}


def test_macro_f1_by_hand():
    right, found = [0, 0, 1, 1, 2], [0, 0, 1, 0, 0]
    # Class 0: found 4 times, right twice, 2 hits: 4/6. Class 1: found once, right twice, 1 hit: 2/3. Class 2: 0.
    assert tasks.get("cb").metrics(found, examples(right)) == {"accuracy": 0.6, "f1": pytest.approx((4 / 6 + 2 / 3 + 0) / 3)}


def test_multirc_by_hand():
    places = [(0, 0), (0, 0), (0, 1), (1, 0), (1, 0)]
    rows = [
        Example({"idx": dict(paragraph=p, question=q, answer=i)}, label, "row")
        for i, ((p, q), label) in enumerate(zip(places, (1, 0, 1, 1, 0), strict=True))
    ]
    # Positive: 2 hits, found 3 times, right 3 times. Questions (0, 0) and (0, 1) are right as a whole, (1, 0) is not.
    found = tasks.get("multirc").metrics([1, 0, 1, 0, 1], rows)
    assert found == {"accuracy": 0.6, "f1": pytest.approx(4 / 6), "em": pytest.approx(2 / 3)}


def test_squads_comparison_by_hand():
    assert normalized(" The  Quick, brown-fox!\n") == "quick brownfox" and normalized("Anthem a theory") == "anthem theory"
    assert exact_match("the Denver Broncos.", ("Broncos", "Denver broncos")) and not exact_match("Denver", ("Broncos",))
    # 2 words in common of 3 and 2: precision 2/3, recall 1
    assert token_f1("The big Denver Broncos", ("Carolina", "Denver Broncos")) == pytest.approx(0.8)
    assert token_f1("yes yes", ("yes no yes no",)) == pytest.approx(2 * 2 / 6) and token_f1("", ("x",)) == 0
    rows = [Example({}, None, "row", ("Denver Broncos",)), Example({}, None, "row", ("1912", "in 1912"))]
    assert tasks.get("squad").metrics(["a Denver", "1912."], rows) == {"f1": pytest.approx((2 / 3 + 1) / 2), "em": 0.5}


def test_what_cannot_be_judged():
    rows = examples([0, 1])
    with pytest.raises(BadInput, match="1 predictions for 2 examples"):
        tasks.get("sst2").metrics([0], rows)
    with pytest.raises(BadInput, match="0 predictions for 0 examples"):
        tasks.get("sst2").metrics([], [])
    with pytest.raises(BadInput, match="row 3 has no label"):
        tasks.get("sst2").metrics([0, 1, 1], [*rows, Example({}, None, "row 3")])


@pytest.mark.parametrize("positive", [None, 1])
def test_f1_of_a_batch_is_scikit_learns(positive):
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 3):
        for _ in range(20):
            found, right = torch.randint(classes, (2, 5), generator=generator)
            if positive is None:
                expected = sklearn.f1_score(right, found, average="macro", zero_division=0)
            elif classes == 2:
                expected = sklearn.f1_score(right, found, pos_label=1, zero_division=0)
            else:
                continue
            assert f1(found, right, classes, positive).item() == pytest.approx(expected, abs=1e-6)
