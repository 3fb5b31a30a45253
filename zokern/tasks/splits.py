"""The few rows that zeroth-order papers train on, drawn by a seed."""

from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from ..errors import BadInput


class Split(NamedTuple):
    """Lists of examples that share none.

    Attributes:
        train: to train on.
        validation: to choose settings by.
        test: to report.
    """

    train: list
    validation: list
    test: list


def shuffled(count: int, seed: int) -> list[int]:
    """0 .. count - 1 in the order of SHA-256 of "<seed> <i>": the same on every machine and in every version of Python."""
    return sorted(range(count), key=lambda i: sha256(f"{seed} {i}".encode()).digest())


def split(examples: Sequence[Any], seed: int, train: int = 512, validation: int = 256, test: int = 256) -> Split:
    """Rows drawn at random without repetition; by default as many as MeZO-SVRG and ZO-Bench use.

    Args:
        examples: to draw from.
        seed: of the draw, the same on every machine.
        train: how many for training. Default 512.
        validation: how many for validation. Default 256.
        test: how many for the test. Default 256.

    Raises:
        BadInput: there are fewer, or a number is negative.
    """
    sizes = dict(train=train, validation=validation, test=test)
    for name, size in sizes.items():
        if size < 0:
            raise BadInput(f"{name}={size} rows cannot be drawn: pass 0 or more")
    if sum(sizes.values()) > len(examples):
        asked = " + ".join(f"{size} for {name}" for name, size in sizes.items())
        raise BadInput(f"{asked} are more than the {len(examples)} rows there are: pass smaller numbers (--rows), or more rows")
    order = iter(shuffled(len(examples), seed))
    return Split(*([examples[next(order)] for _ in range(size)] for size in sizes.values()))


def few_shot(examples: Sequence[Any], k: int, seed: int) -> tuple[list, list]:
    """k rows of every class for training, and as many for validation, as LM-BFF and MeZO draw them for masked models.

    Args:
        examples: to draw from, with their labels.
        k: rows of a class, >= 1.
        seed: of the draw, the same on every machine.

    Returns:
        (training, validation).

    Raises:
        BadInput: k < 1, a row has no label, or a class has fewer than 2 k rows.
    """
    if k < 1:
        raise BadInput(f"k={k} rows of a class cannot be drawn: pass 1 or more")
    by_label = defaultdict(list)
    for example in (examples[i] for i in shuffled(len(examples), seed)):
        if example.label is None:
            raise BadInput(f"{example.location} has no label, so that k rows of each class cannot be drawn: pass labelled rows")
        by_label[example.label].append(example)
    classes = sorted(by_label.items())
    for label, rows in classes:
        if len(rows) < 2 * k:
            need = f"{k} rows of every class (--shots, in Python k) for training and {k} for validation need {2 * k}"
            raise BadInput(f"class {label} has {len(rows)} rows, but {need}: pass less")
    return [row for _, rows in classes for row in rows[:k]], [row for _, rows in classes for row in rows[k : 2 * k]]
