"""The operations on parameters: they check once and hand over to a backend."""

from .add_noise import add_noise_, make_noise, noise_like
from .replay import replay_
from .update import update_
from .windowed_adam import windowed_adam_

__all__ = ["add_noise_", "make_noise", "noise_like", "replay_", "update_", "windowed_adam_"]
