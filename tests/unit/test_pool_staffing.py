"""Replicas for an SLO, against Erlang's formula and against a simulated queue."""

from __future__ import annotations

import heapq
import math

import numpy as np
import numpy.typing as npt
import pytest

from tidepool.errors import SpecError
from tidepool.pool.staffing import LatencyCurve, Staffing

IN_FLIGHT = (1, 2, 4, 8, 16)
MEAN_S = (0.10, 0.11, 0.13, 0.18, 0.30)


def speed(in_flight: int) -> float:
    """Requests a second of the simulated replica with so many in flight."""
    if in_flight < 1:
        return 0.0
    rates = [n / s for n, s in zip(IN_FLIGHT, MEAN_S, strict=True)]
    return float(np.interp(in_flight, IN_FLIGHT, rates))


SPEED = [speed(n) for n in range(5000)]


def latencies(replicas: int, rate: float, count: int, closed: int = 0, seed: int = 0) -> npt.NDArray[np.float64]:
    """Latencies in a queue whose replicas share their speed among the requests in flight; the shortest is chosen.

    Each request is exponential work of mean 1. With `closed` requests, one replica always has as many in flight.
    """
    random = np.random.default_rng(seed)
    in_flight, served, last = [0] * replicas, [0.0] * replicas, [0.0] * replicas
    work: list[list[tuple[float, float]]] = [[] for _ in range(replicas)]
    now, done, arrival = 0.0, [], math.inf if closed else 0.0

    def admit(which: int) -> None:
        in_flight[which] += 1
        heapq.heappush(work[which], (served[which] + random.exponential(), now))

    def ends(which: int) -> float:
        if not in_flight[which]:
            return math.inf
        return last[which] + (work[which][0][0] - served[which]) * in_flight[which] / SPEED[in_flight[which]]

    def advance(which: int) -> None:
        if in_flight[which]:
            served[which] += (now - last[which]) * SPEED[in_flight[which]] / in_flight[which]
        last[which] = now

    for _ in range(closed):
        admit(0)
    while len(done) < count:
        which = min(range(replicas), key=ends)
        if arrival < (end := ends(which)):
            now, arrival = arrival, arrival + random.exponential(1 / rate)
            which = min(range(replicas), key=lambda one: in_flight[one])
            advance(which)
            admit(which)
        else:
            now = end
            advance(which)
            done.append(now - heapq.heappop(work[which])[1])
            in_flight[which] -= 1
            if closed:
                admit(0)
    return np.array(done[count // 20 :])


@pytest.fixture(scope="module")
def curve() -> LatencyCurve:
    """The simulated replica, measured as a real one would be: with a constant number of requests in flight."""
    seen = [latencies(1, 0, 4000, closed=n) for n in IN_FLIGHT]
    return LatencyCurve(IN_FLIGHT, tuple(s.mean() for s in seen), tuple(float(np.quantile(s, 0.99)) for s in seen))


@pytest.mark.parametrize("rate", [20.0, 60.0, 150.0])
def test_the_replicas_it_names_hold_the_slo_and_half_as_many_do_not(curve: LatencyCurve, rate: float) -> None:
    slo_s = 0.8
    staffing = Staffing(curve, slo_s, at_most=64)
    replicas = staffing.replicas(rate)
    assert np.mean(latencies(replicas, rate, 12_000) > slo_s) < 0.012
    if replicas > 1:
        fewer = max(1, replicas // 2)
        assert np.mean(latencies(fewer, rate, 6_000) > slo_s) > 0.02


def test_what_it_says_is_late_is_what_is_late(curve: LatencyCurve) -> None:
    staffing = Staffing(curve, 0.8, at_most=16)
    for replicas, rate in ((2, 80.0), (4, 180.0), (4, 200.0)):
        seen = float(np.mean(latencies(replicas, rate, 12_000) > 0.8))
        assert staffing.late(rate, replicas) == pytest.approx(seen, abs=0.01, rel=0.35)


def test_at_constant_speed_it_is_erlangs_formula() -> None:
    """Late are those that find more than 1.45 in flight a replica: C * load ** waiting in a queue with c servers."""
    servers, load = 10, 0.8
    staffing = Staffing(LatencyCurve((1, 2), (1.0, 2.0), (1.0, 2.0)), 1.45, at_most=20)
    offered = servers * load
    terms = [offered**n / math.factorial(n) for n in range(servers)]
    last = offered**servers / math.factorial(servers) / (1 - load)
    erlang_c = last / (sum(terms) + last)
    assert staffing.late(offered, servers) == pytest.approx(erlang_c * load**4, rel=0.02)


def test_many_replicas_need_less_headroom_each(curve: LatencyCurve) -> None:
    staffing = Staffing(curve, 0.8, at_most=500)
    each = [staffing.rate(count) / count for count in (1, 4, 16, 64, 256)]
    assert each == sorted(each)
    assert each[-1] < curve.throughput


def test_the_number_rises_with_the_rate_and_stops_at_the_most(curve: LatencyCurve) -> None:
    staffing = Staffing(curve, 0.8, at_most=32)
    numbers = [staffing.replicas(rate) for rate in np.linspace(0, 3000, 200)]
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1]) == (0, 32)


def test_an_slo_out_of_reach_gives_each_replica_one_request_at_a_time(curve: LatencyCurve) -> None:
    assert Staffing(curve, 0.001, at_most=200).replicas(100.0) == pytest.approx(100 * curve.mean_s[0], abs=1)


def test_points_out_of_order_are_refused() -> None:
    with pytest.raises(SpecError, match="not a latency curve"):
        LatencyCurve((2, 1), (0.1, 0.1), (0.2, 0.2))
    with pytest.raises(SpecError, match="not a latency curve"):
        LatencyCurve((1,), (0.3,), (0.2,))
