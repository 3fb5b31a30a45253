"""How right predictions are where scikit-learn has no metric: SQuAD's for texts, MultiRC's for questions. All are fractions of 1."""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from .rows import Example


def whole_questions(predictions: Sequence[int], examples: Sequence[Example]) -> float:
    """MultiRC's exact match: the share of questions of which every answer is judged rightly."""
    right: dict[Any, bool] = defaultdict(lambda: True)
    for prediction, example in zip(predictions, examples, strict=True):
        right[example["idx"]["paragraph"], example["idx"]["question"]] &= prediction == example.label
    return fmean(right.values())


def normalized(text: str) -> str:
    """A text as SQuAD's official script compares it: lower case, no punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(prediction: str, answers: Iterable[str]) -> float:
    """Harmonic mean of the precision and recall of words, against the answer that fits best."""
    return max(words_f1(normalized(prediction).split(), normalized(answer).split()) for answer in answers)


def words_f1(found: Sequence[str], right: Sequence[str]) -> float:
    """Harmonic mean of the precision and recall of words."""
    if not found or not right:
        return float(found == right)
    return 2 * sum((Counter(found) & Counter(right)).values()) / (len(found) + len(right))


def exact_match(prediction: str, answers: Iterable[str]) -> bool:
    return any(normalized(prediction) == normalized(answer) for answer in answers)
