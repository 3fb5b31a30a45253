"""A run as a small log, and the weights again from it (docs/trajectories.md)."""

from .recorder import Recorder, record
from .steps import Step, Steps
from .summary import describe, facts, lines
from .trajectory import Trajectory

__all__ = ["Recorder", "Step", "Steps", "Trajectory", "describe", "facts", "lines", "record"]
