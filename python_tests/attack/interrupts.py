"""Signals at every place of a piece of Python where the interpreter looks for them, and at moments of time."""

import signal
import sys
import time


def at_place(k: int | None, act) -> tuple[int, KeyboardInterrupt | None]:
    """act(), with Ctrl-C at the k-th place where Python looks for signals: where a function is entered, where one of C's has returned,
    and at the next turn of a loop. It is a true signal, so that it waits where signals are made to. -> (places seen, what was raised).
    """
    seen, last = 0, {}

    def look():
        nonlocal seen
        seen += 1
        if seen == k:
            signal.raise_signal(signal.SIGINT)

    def calls(frame, event, arg):
        if event in ("call", "c_return"):
            look()

    def turns(frame, event, arg):
        if event == "line" and frame.f_lasti < last.get(id(frame), -1):
            look()
        last[id(frame)] = -1 if event == "return" else frame.f_lasti
        return turns

    def run():
        before = sys.gettrace()
        try:
            sys.settrace(turns)
            sys.setprofile(calls)
            act()
        finally:
            sys.setprofile(None)
            sys.settrace(before)

    raised = _raised(signal.SIGINT, run)
    return seen, raised


def at_moment(delay: float, act) -> tuple[float, KeyboardInterrupt | None]:
    """act(), with a signal after ``delay`` seconds. -> (seconds that it took, what was raised)."""
    begin = time.perf_counter()

    def run():
        try:
            signal.setitimer(signal.ITIMER_REAL, delay)
            act()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    raised = _raised(signal.SIGALRM, run)
    return time.perf_counter() - begin, raised


def _raised(number, run):
    """The KeyboardInterrupt that run() ends in, kept as a notebook keeps the newest: with its frames, and what is open in them."""
    before = signal.signal(number, signal.default_int_handler)
    try:
        run()
    except KeyboardInterrupt as error:
        return error
    finally:
        signal.signal(number, before)
    return None
