"""zokern finetune | evaluate | replay | info | bench."""

from .commands import app

__all__ = ["app"]
