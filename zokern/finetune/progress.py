"""How far a run is, told while it runs."""

from collections.abc import Callable, Mapping

# Called with what is counted ("step"), how many there are so far and in all, and what was measured at this one, by the names of log.jsonl:
# the loss, and eval_... of held-out rows.
Progress = Callable[[str, int, int, Mapping[str, float]], None]


def judged(numbers: Mapping[str, float]) -> bool:
    """Whether held-out rows were judged."""
    return any(name.startswith("eval_") for name in numbers)


def record(unit: str, done: int, total: int, numbers: Mapping[str, object]) -> str:
    """A line of a log: ``step=100 of=400 loss=0.412 eval_accuracy=0.875``."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in numbers.items()}
    return " ".join([f"{unit}={done} of={total}", *(f"{name}={value}" for name, value in shown.items())])


def evaluations(say: Callable[[str], None]) -> Progress:
    """Says a line for each evaluation."""

    def progress(unit: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if judged(numbers):
            say(record(unit, done, total, numbers))

    return progress
