"""The shelf of loaded models: what is loaded once, what waits, and what is put away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepool.errors import DoesNotFit, Overloaded
from tidepool.serve.shelf import Shelf


class Book:
    """Takes `size` bytes; `open` lets its loads end."""

    def __init__(self, size: int, expected: int | None = None, is_open: bool = True) -> None:
        self.size, self.expected = size, size if expected is None else expected
        self.open = asyncio.Event()
        if is_open:
            self.open.set()
        self.is_here, self.loads = False, 0
        self.failure: Exception | None = None

    async def load(self) -> int:
        self.loads += 1
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        self.is_here = True
        return self.size

    def put_away(self) -> None:
        self.is_here = False


async def ask(shelf: Shelf, book: Book, until: asyncio.Event | None = None) -> None:
    """Hold a book for a moment, or until an event."""
    async with shelf.held(book):
        assert book.is_here
        await (asyncio.sleep(0) if until is None else until.wait())
        assert book.is_here


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def run(story: Callable[[], Awaitable[Any]]) -> None:
    async def told() -> None:
        await story()

    asyncio.run(told())


def test_two_first_requests_load_once() -> None:
    async def story() -> None:
        shelf, book = Shelf(10), Book(4)
        await asyncio.gather(ask(shelf, book), ask(shelf, book))
        await ask(shelf, book)
        assert book.loads == 1
        assert shelf.statistics(book)["hits"] == 1

    run(story)


def test_a_slow_load_keeps_nobody_else_waiting() -> None:
    async def story() -> None:
        shelf, slow, here, new = Shelf(10), Book(4, is_open=False), Book(2), Book(2)
        await ask(shelf, here)
        waiting = asyncio.create_task(ask(shelf, slow))
        await turns()
        await asyncio.wait_for(ask(shelf, here), 60)
        await asyncio.wait_for(ask(shelf, new), 60)
        assert not waiting.done()
        slow.open.set()
        await waiting

    run(story)


def test_the_least_recently_used_goes_first() -> None:
    async def story() -> None:
        shelf, books = Shelf(10), [Book(4) for _ in range(3)]
        for book in (books[0], books[1], books[0], books[2]):
            await ask(shelf, book)
        assert [book.is_here for book in books] == [True, False, True]
        assert shelf.used == 8

    run(story)


def test_what_is_in_use_stays_and_who_needs_room_waits_until_it_is_put_down() -> None:
    async def story() -> None:
        shelf, held, new, done = Shelf(10), Book(8), Book(8), asyncio.Event()
        reader = asyncio.create_task(ask(shelf, held, done))
        await turns()
        waiting = asyncio.create_task(ask(shelf, new))
        await turns()
        assert held.is_here
        assert not new.loads
        done.set()
        await asyncio.gather(reader, waiting)
        assert (held.is_here, new.is_here) == (False, True)

    run(story)


def test_who_waits_too_long_for_room_is_refused_and_the_next_is_not() -> None:
    async def story() -> None:
        shelf, held, new, done = Shelf(10, patience_s=0.01), Book(8), Book(8), asyncio.Event()
        reader = asyncio.create_task(ask(shelf, held, done))
        await turns()
        with pytest.raises(Overloaded, match="in use"):
            await ask(shelf, new)
        done.set()
        await reader
        await ask(shelf, new)

    run(story)


@pytest.mark.parametrize("expected", [0, 11])
def test_what_is_larger_than_the_shelf_is_refused_and_disturbs_nobody_that_it_needn_t(expected: int) -> None:
    async def story() -> None:
        shelf, small, large = Shelf(10), Book(4), Book(11, expected)
        await ask(shelf, small)
        with pytest.raises(DoesNotFit, match="TIDEPOOL_SHARED_MB"):
            await ask(shelf, large)
        assert (large.is_here, small.is_here, shelf.used) == (False, True, 4)

    run(story)


def test_a_load_that_fails_is_tried_again_by_the_next_who_asks() -> None:
    async def story() -> None:
        shelf, book = Shelf(10), Book(4)
        book.failure = OSError("gone")
        outcomes = await asyncio.gather(ask(shelf, book), ask(shelf, book), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["gone", "gone"]
        book.failure = None
        await ask(shelf, book)
        assert (book.loads, shelf.used) == (2, 4)

    run(story)


def test_who_asked_first_may_go_away_and_the_load_goes_on() -> None:
    async def story() -> None:
        shelf, book = Shelf(10), Book(4, is_open=False)
        first, second = (asyncio.create_task(ask(shelf, book)) for _ in range(2))
        await turns()
        first.cancel()
        await turns()
        book.open.set()
        await second
        assert book.loads == 1

    run(story)


def test_what_has_changed_is_loaded_anew_with_its_new_size_while_it_is_in_use() -> None:
    async def story() -> None:
        shelf, book, other, done = Shelf(10), Book(2), Book(5), asyncio.Event()
        await ask(shelf, other)
        reader = asyncio.create_task(ask(shelf, book, done))
        await turns()
        book.size = 6
        await shelf.renew(book)
        assert (shelf.used, other.is_here, book.loads) == (6, False, 2)
        done.set()
        await reader

    run(story)


def test_what_is_not_there_is_not_loaded_anew() -> None:
    async def story() -> None:
        shelf, book = Shelf(10), Book(2)
        await shelf.renew(book)
        assert book.loads == 0

    run(story)


def test_what_is_forgotten_in_the_middle_of_its_load_is_put_away() -> None:
    async def story() -> None:
        shelf, book = Shelf(10), Book(2, is_open=False)
        reader = asyncio.create_task(ask(shelf, book))
        await turns()
        shelf.forget(book)
        book.open.set()
        await asyncio.gather(reader, return_exceptions=True)
        assert (book.is_here, shelf.used) == (False, 0)

    run(story)


@given(
    sizes=st.lists(st.integers(1, 10), min_size=1, max_size=8),
    asked=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5), st.booleans()), max_size=40),
    guesses=st.booleans(),
)
def test_whatever_is_asked_nobody_loses_what_he_holds_and_the_budget_holds_in_the_end(
    sizes: list[int], asked: list[tuple[int, int, bool]], guesses: bool
) -> None:
    async def story() -> None:
        shelf, books = Shelf(10), [Book(size, 0 if guesses else None) for size in sizes]

        async def visit(number: int, length: int, renews: bool) -> None:
            book = books[number % len(books)]
            await turns(length)
            async with shelf.held(book):
                if renews:
                    await shelf.renew(book)
                for _ in range(length):
                    assert book.is_here
                    await asyncio.sleep(0)

        await asyncio.wait_for(asyncio.gather(*(visit(*one) for one in asked)), 60)
        await turns()
        assert shelf.used == sum(book.size for book in books if book.is_here) <= 10

    run(story)
