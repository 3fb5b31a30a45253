"""A loss that engines can answer: which of some options follows a prompt."""

from collections.abc import Sequence

import torch

from ..errors import BadInput
from .engine import Engine


class OptionLoss:
    """Cross-entropy of the right option of each prompt, by the log-probabilities of all its options: for ``Pool.driver``.

    ``pool.driver(OptionLoss(prompts, options, answers))`` measures a batch; a driver of each step has that step's rows.

    Args:
        prompts: tokens of each row.
        options: of each row its options, each the tokens of a text that may follow the prompt, such as a label's word.
        answers: of each row the number of the right one.
        mean: an option's log-probability is the mean over its tokens. Default False: their sum.

    Raises:
        BadInput: rows of different numbers, an answer that is no option, an empty option.
    """

    def __init__(
        self, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]], answers: Sequence[int], mean: bool = False
    ) -> None:
        if not len(prompts) == len(options) == len(answers) or not prompts:
            raise BadInput(
                f"{len(prompts)} prompts, options of {len(options)} and {len(answers)} answers: pass as many of each, one or more"
            )
        for row, (each, answer) in enumerate(zip(options, answers)):
            if not 0 <= answer < len(each) or not all(each):
                raise BadInput(
                    f"row {row} has the answer {answer} of {len(each)} options: pass its number, and options of one token or more"
                )
        self.prompts, self.options, self.answers, self.mean = prompts, options, answers, mean

    def __call__(self, engine: Engine, *number: int) -> float:
        """The mean over rows, in nats, as a float.

        Args:
            engine: that scores.
            *number: of the point, which does not matter.
        """
        total = 0.0
        for scores, each, answer in zip(engine.score(self.prompts, self.options), self.options, self.answers):
            worth = torch.tensor(scores, dtype=torch.float64)
            if self.mean:
                worth = worth / torch.tensor([len(option) for option in each])
            total -= float(torch.log_softmax(worth, 0)[answer])
        return total / len(self.answers)
