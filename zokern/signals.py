"""Signals wait while the weights and what is known of them are apart.

Python runs the handler of a signal between any two instructions of its main thread, and a handler may raise, as that of Ctrl-C does: after
a pass over the weights and before the line that says so, for one. In a function that is ``whole`` handlers wait until it ends, or until it
calls something that is not its own, by ``let_through``.
"""

import threading
from _signal import getsignal, signal  # those of the module signal make enums of what they give
from collections.abc import Callable
from functools import wraps
from signal import valid_signals
from types import FrameType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SIGNALS = sorted(map(int, valid_signals()))
_holding = False  # whether signals wait; of the main thread, to which alone they come
_within = False  # whether a function that is whole runs, be it in what it lets signals through to
_handlers: dict[int, Any] = {}  # number of a signal -> its handler, which _wait has replaced
_came: list[tuple[int, FrameType | None]] = []  # (number, frame) of those that wait


def whole(function: Callable[P, T]) -> Callable[P, T]:
    """The function, in which signals wait. What a handler then raises is raised when all is done."""

    @wraps(function)
    def undivided(*args: P.args, **kwargs: P.kwargs) -> T:
        global _holding, _within
        if _holding or threading.current_thread() is not threading.main_thread():
            return function(*args, **kwargs)
        within = _within
        try:
            _holding = _within = True
            if not within:
                _take()
            return function(*args, **kwargs)
        finally:
            try:
                if not within:
                    _give_back()
            finally:
                _within, _holding = within, False
                _deliver()

    return undivided


def let_through(function: Callable[..., T], *args: Any) -> T:
    """What ``function(*args)`` gives; those that wait come first, and while it runs none does."""
    global _holding
    if not _holding or threading.current_thread() is not threading.main_thread():
        return function(*args)
    try:
        _holding = False
        _deliver()
        return function(*args)
    finally:
        _holding = True


def _take() -> None:
    for number, handler in zip(SIGNALS, map(getsignal, SIGNALS)):
        if callable(handler) and handler is not _wait:  # and not SIG_DFL or SIG_IGN, which are numbers, or None
            _handlers[number] = handler
            signal(number, _wait)


def _give_back() -> None:
    for number, handler in _handlers.items():
        if getsignal(number) is _wait:  # and not one that was put there meanwhile
            signal(number, handler)


def _wait(number: int, frame: FrameType | None) -> None:
    if _holding:
        _came.append((number, frame))
    else:
        _handlers[number](number, frame)


def _deliver() -> None:
    if _came:
        number, frame = _came.pop(0)
        try:
            _handlers[number](number, frame)
        finally:
            _deliver()
