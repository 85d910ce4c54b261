"""Who goes next, and who is refused."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepool.errors import Overloaded, TryLater
from tidepool.serve.queueing import FairQueue, Ticket

Queue = FairQueue[Ticket]


def queue(rate: float = 1000.0, max_requests: int = 1000, max_bytes: int = 1 << 30) -> Queue:
    """In front of an engine that does `rate` a second."""
    return FairQueue(lambda size: size / rate, max_requests, max_bytes)


def push(into: Queue, *tickets: Ticket, now: float = 0.0) -> None:
    for ticket in tickets:
        into.push(ticket, now)


def keys(tickets: list[Ticket]) -> str:
    return "".join(ticket.key for ticket in tickets)


def test_higher_priority_goes_first() -> None:
    low, high = Ticket(1), Ticket(1, priority=5)
    waiting = queue()
    push(waiting, low, high)
    assert waiting.take(1)[0] == [high]
    assert waiting.take(1)[0] == [low]


def test_within_a_key_the_earliest_deadline_goes_first_and_the_first_come_among_equals() -> None:
    none, late, soon, also = Ticket(1), Ticket(1, deadline=9), Ticket(1, deadline=5), Ticket(1, deadline=5)
    waiting = queue()
    push(waiting, none, late, soon, also)
    assert waiting.take(10)[0] == [soon, also, late, none]


def test_a_key_that_asks_much_does_not_hold_up_one_that_asks_little() -> None:
    waiting = queue()
    push(waiting, *(Ticket(1, key="a") for _ in range(50)), *(Ticket(1, key="b") for _ in range(3)))
    assert keys(waiting.take(8)[0]) == "abababaa"


def test_keys_share_by_size_and_not_by_number() -> None:
    waiting = queue()
    push(waiting, *(Ticket(4, key="a") for _ in range(50)), *(Ticket(1, key="b") for _ in range(50)))
    served = Counter[str]()
    for ticket in waiting.take(64)[0]:
        served[ticket.key] += ticket.size
    assert abs(served["a"] - served["b"]) <= 4


def test_a_key_saves_up_no_claim_while_it_is_away() -> None:
    waiting = queue()
    push(waiting, *(Ticket(1, key="a") for _ in range(100)))
    waiting.take(50)
    push(waiting, *(Ticket(1, key="b") for _ in range(50)))
    assert Counter(keys(waiting.take(20)[0])) == {"a": 10, "b": 10}


def test_a_batch_is_of_one_group_and_keeps_its_limit() -> None:
    long, short, other, big = Ticket(1, group="l"), Ticket(1, group="s"), Ticket(1, group="l"), Ticket(9, group="l")
    waiting = queue()
    push(waiting, long, short, big, other)
    assert waiting.take(4)[0] == [long, other]
    assert waiting.take(4)[0] == [short]
    assert waiting.take(4)[0] == [big], "the first may be larger than the limit"


def test_a_deadline_that_cannot_be_met_is_refused_at_once_with_the_time_to_wait() -> None:
    waiting = queue(rate=100)
    push(waiting, *(Ticket(1, deadline=0.2) for _ in range(10)))
    with pytest.raises(TryLater) as refused:
        waiting.push(Ticket(1, deadline=0.2), now=0.0, busy_s=0.16)
    assert refused.value.retry_after_s == pytest.approx(0.16 + 0.11 - 0.2)
    assert isinstance(refused.value, Overloaded)
    waiting.push(Ticket(1, deadline=0.19), now=0.0, busy_s=0.16)  # more urgent than all: nothing is ahead of it
    waiting.remove(waiting.take(1)[0][0])
    assert len(waiting) == 10


def test_only_the_work_ahead_counts() -> None:
    waiting = queue(rate=100)
    push(waiting, *(Ticket(1, key="a", deadline=math.inf) for _ in range(50)))
    push(waiting, Ticket(1, key="b", deadline=0.03))
    push(waiting, Ticket(1, key="a", deadline=0.03))
    push(waiting, Ticket(1, key="a", deadline=0.03, priority=1))


def test_an_idle_engine_refuses_nobody() -> None:
    push(queue(rate=1), Ticket(1, deadline=0.001))


def test_those_whose_time_has_passed_leave_when_they_are_met() -> None:
    waiting = queue()
    late, fine = Ticket(1, deadline=1.0), Ticket(1, deadline=3.0)
    push(waiting, late, fine)
    assert waiting.take(10, ready=2.0) == ([fine], [late])
    assert len(waiting) == waiting.size == 0


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    waiting = queue(rate=100, max_requests=10)
    push(waiting, *(Ticket(1) for _ in range(10)))
    with pytest.raises(TryLater, match="full") as refused:
        waiting.push(Ticket(1), now=0.0)
    assert refused.value.retry_after_s == pytest.approx(0.05)


def test_bytes_are_bounded_but_an_empty_queue_takes_anything() -> None:
    waiting = queue(max_bytes=100)
    push(waiting, Ticket(1, bytes=500))
    with pytest.raises(TryLater, match="500 bytes"):
        waiting.push(Ticket(1, bytes=1), now=0.0)
    assert waiting.bytes == 500


def test_who_fills_the_queue_makes_room_for_who_does_not() -> None:
    waiting = queue(max_requests=10)
    greedy = [Ticket(1, key="a", deadline=deadline) for deadline in range(100, 110)]
    push(waiting, *greedy)
    assert waiting.push(Ticket(1, key="b"), now=0.0) == [greedy[-1]], "the least urgent leaves"
    assert len(waiting) == 10


def test_low_priority_makes_room_for_high_and_not_the_reverse() -> None:
    waiting = queue(max_requests=2)
    low = [Ticket(1), Ticket(1)]
    push(waiting, *low)
    assert waiting.push(Ticket(1, priority=1), now=0.0) == [low[1]]
    assert waiting.push(Ticket(1, priority=1), now=0.0) == [low[0]]
    with pytest.raises(TryLater):
        waiting.push(Ticket(1), now=0.0)


def test_a_removed_ticket_frees_its_place() -> None:
    waiting = queue(max_requests=2)
    first, second = Ticket(1, bytes=7), Ticket(1)
    push(waiting, first, second)
    assert waiting.remove(first)
    assert not waiting.remove(first)
    assert (len(waiting), waiting.bytes) == (1, 0)
    push(waiting, Ticket(1))


tickets = st.builds(
    Ticket,
    size=st.integers(1, 5),
    bytes=st.integers(0, 9),
    deadline=st.sampled_from([1.0, 2.0, 3.0, math.inf]),
    priority=st.integers(-1, 1),
    key=st.sampled_from("abc"),
    group=st.sampled_from("xy"),
)
steps = st.one_of(tickets, st.tuples(st.just("take"), st.integers(1, 12)), st.tuples(st.just("remove"), st.integers(0)))


@given(st.lists(steps, max_size=80))
def test_every_ticket_leaves_once_in_batches_that_keep_the_rules(
    script: list[Ticket | tuple[str, int]],
) -> None:
    waiting = queue(max_requests=20)
    inside, left = list[Ticket](), list[Ticket]()
    for step in [*script, *([("take", 12)] * 80)]:
        if isinstance(step, Ticket):
            try:
                gone = waiting.push(step, now=0.0)
            except TryLater:
                continue
            inside.append(step)
        elif step[0] == "remove":
            gone = [inside[step[1] % len(inside)]] if inside else []
            assert all(waiting.remove(ticket) for ticket in gone)
        else:
            gone, late = waiting.take(step[1])
            assert not late
            assert len({ticket.group for ticket in gone}) <= 1
            assert sum(ticket.size for ticket in gone) <= step[1] or len(gone) == 1
            if gone:
                assert gone[0].priority == max(ticket.priority for ticket in inside)
        left += gone
        for ticket in gone:
            inside.remove(ticket)
        assert len(waiting) == len(inside) <= 20
        assert waiting.size == sum(ticket.size for ticket in inside)
        assert waiting.bytes == sum(ticket.bytes for ticket in inside)
    assert not inside
    assert len(left) == len({id(ticket) for ticket in left})
