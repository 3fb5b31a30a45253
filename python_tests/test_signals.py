"""Signals wait in a function that is whole, come through where it lets them, and find their handlers as they were."""

import signal
import threading

import pytest

from zokern.signals import let_through, whole

FIRST, SECOND = signal.SIGUSR1, signal.SIGTERM


@pytest.fixture
def heard():
    """The signals that came, in order; a handler of ours is restored afterwards."""
    came = []
    before = [signal.signal(number, lambda n, frame: came.append(n)) for number in (FIRST, SECOND)]
    yield came
    for number, handler in zip((FIRST, SECOND), before):
        signal.signal(number, handler)


def test_they_wait_for_the_end_of_the_outermost(heard):
    inner = whole(lambda: signal.raise_signal(FIRST))

    @whole
    def outer():
        inner()
        signal.raise_signal(SECOND)
        assert heard == []
        return "done"

    handlers = [signal.getsignal(n) for n in (FIRST, SECOND)]
    assert outer() == "done" and heard == [FIRST, SECOND]
    assert [signal.getsignal(n) for n in (FIRST, SECOND)] == handlers


def test_they_come_through_before_and_in_what_is_not_its_own(heard):
    def foreign():
        assert heard == [FIRST]
        signal.raise_signal(SECOND)
        assert heard == [FIRST, SECOND]
        return 5

    @whole
    def own():
        signal.raise_signal(FIRST)
        assert let_through(foreign) == 5
        signal.raise_signal(FIRST)
        assert heard == [FIRST, SECOND]

    own()
    assert heard == [FIRST, SECOND, FIRST]


def test_what_a_handler_raises_comes_out_where_the_signal_does():
    done = []

    @whole
    def interrupted_inside():
        try:
            let_through(lambda: signal.raise_signal(signal.SIGINT))
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
            done.append("restored")
            raise

    @whole
    def interrupted():
        signal.raise_signal(signal.SIGINT)
        done.append("through")

    for function in (interrupted_inside, interrupted):
        with pytest.raises(KeyboardInterrupt):
            function()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert done == ["restored", "through"]


def test_none_is_lost_where_the_first_raises(heard):
    @whole
    def own():
        for number in (signal.SIGINT, FIRST, SECOND):
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        own()
    assert heard == [FIRST, SECOND]


def test_an_error_of_its_own_is_raised(heard):
    @whole
    def own():
        signal.raise_signal(FIRST)
        raise ValueError("own")

    with pytest.raises(ValueError, match="own"):
        own()
    assert heard == [FIRST]


def test_a_handler_that_is_put_in_place_meanwhile_stays(heard):
    later = lambda *_: heard.append("later")  # noqa: E731
    whole(lambda: let_through(signal.signal, FIRST, later))()
    assert signal.getsignal(FIRST) is later


def test_a_function_within_what_is_not_its_own_is_whole_again(heard):
    inner = whole(lambda: (signal.raise_signal(FIRST), list(heard)))

    @whole
    def outer():
        assert let_through(inner) == (None, [])
        assert heard == [FIRST]
        signal.raise_signal(SECOND)
        assert heard == [FIRST]

    outer()
    assert heard == [FIRST, SECOND]


def test_another_thread_holds_none_up(heard):
    """Python runs handlers in the main thread alone."""
    inside, go_on = threading.Event(), threading.Event()

    @whole
    def own():
        inside.set()
        assert go_on.wait(60)

    thread = threading.Thread(target=own)
    thread.start()
    assert inside.wait(60)
    signal.raise_signal(FIRST)
    assert heard == [FIRST]
    go_on.set()
    thread.join()
