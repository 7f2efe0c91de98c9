"""Turns and the budget of bytes, with real threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from started import wait_for

from gleaner.errors import Overloaded
from gleaner.serving.turns import ByteBudget, Turns


class Waiting:
    """Threads that wait for a turn, in the order of asking."""

    def __init__(self, turns: Turns, stack: ExitStack) -> None:
        self.turns, self.stack = turns, stack
        self.taken: list[str] = []
        self.refused: list[str] = []

    def ask(self, name: str) -> None:
        """Start a thread that asks, and return once it waits."""
        before = len(self.turns._waiting)
        self._start(lambda: self._take(name))
        assert wait_for(lambda: len(self.turns._waiting) == before + 1)

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work)
        thread.start()
        self.stack.callback(thread.join, 60)

    def _take(self, name: str) -> None:
        try:
            self.turns.take()
            self.taken.append(name)
        except Overloaded:
            self.refused.append(name)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def test_a_turn_beyond_the_number_is_refused_with_its_reason():
    turns = Turns(2, 0.01, "too many predictions at once")
    turns.take()
    turns.take()

    with pytest.raises(Overloaded, match=r"^too many predictions at once$"):
        turns.take()


def test_a_turn_that_came_back_is_given_once():
    turns = Turns(1, 0.01, "full")
    for _ in range(3):
        turns.take()
        turns.give()
    turns.take()

    with pytest.raises(Overloaded):
        turns.take()


def test_turns_are_given_in_the_order_of_asking(stack):
    turns = Turns(1, 60, "full")
    waiting = Waiting(turns, stack)
    turns.take()
    for name in ("first", "second", "third"):
        waiting.ask(name)

    for n in range(3):
        assert wait_for(lambda n=n: len(waiting.taken) == n)
        turns.give()

    assert wait_for(lambda: waiting.taken == ["first", "second", "third"])
    turns.give()
    turns.take()  # nothing waits, and one turn is free


def test_a_turn_that_comes_back_goes_to_a_waiting_thread_before_the_next_one_that_asks(stack):
    turns = Turns(1, 60, "full")
    waiting = Waiting(turns, stack)
    turns.take()
    waiting.ask("first")
    turns._wait = 0.01

    turns.give()
    with pytest.raises(Overloaded):
        turns.take()

    assert wait_for(lambda: waiting.taken == ["first"])


def test_a_thread_that_waited_too_long_is_forgotten(stack):
    turns = Turns(1, 0.01, "full")
    waiting = Waiting(turns, stack)
    turns.take()
    waiting._start(lambda: waiting._take("late"))
    assert wait_for(lambda: waiting.refused == ["late"])

    turns.give()
    turns.take()

    assert [] == waiting.taken
    with pytest.raises(Overloaded):
        turns.take()


def test_many_threads_never_hold_more_turns_than_there_are(stack, eager_threads):
    turns, lock, held, most = Turns(3, 60, "full"), threading.Lock(), [0], [0]

    def work() -> None:
        for _ in range(200):
            turns.take()
            with lock:
                held[0] += 1
                most[0] = max(most[0], held[0])
            with lock:
                held[0] -= 1
            turns.give()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert not any(thread.is_alive() for thread in threads)
    assert 0 == held[0]
    assert 1 <= most[0] <= 3
    for _ in range(3):  # no turn is lost
        turns.take()
    turns._wait = 0.01
    with pytest.raises(Overloaded):
        turns.take()


def test_a_budget_gives_its_last_byte_and_no_more():
    budget = ByteBudget(10)
    budget.take(4)
    budget.take(6)

    with pytest.raises(Overloaded, match="too many large bodies"):
        budget.take(1)


def test_a_refused_size_takes_nothing_from_the_budget():
    budget = ByteBudget(10)
    with pytest.raises(Overloaded):
        budget.take(11)

    budget.take(10)
    budget.give(3)
    budget.take(3)
    with pytest.raises(Overloaded):
        budget.take(1)
