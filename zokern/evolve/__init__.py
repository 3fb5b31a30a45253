"""Fine-tune a language model by rewards of what it writes, with evolution strategies: what is behind ``zokern evolve``.

Everything in here raises ``BadInput`` for what a user can cause: one line with the thing, its value and the cure.
"""

from ..engines import Completions, Generator
from ..errors import BadInput
from .job import evolve, resume
from .members import Members
from .prompts import Row
from .report import Result
from .rewards import Rewards, Scores
from .settings import Settings

__all__ = ["BadInput", "Completions", "Generator", "Members", "Result", "Rewards", "Row", "Scores", "Settings", "evolve", "resume"]
