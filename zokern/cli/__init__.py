"""zokern finetune | evolve | evaluate | replay | info | bench."""

from .commands import app
from .streams import lasting

__all__ = ["app", "lasting"]
