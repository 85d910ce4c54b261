"""How training runs share what serving leaves: priority first, then weighted max-min fairness.

Max-min fairness (Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2): nobody can get more without somebody
who has less, by weight, getting less. Here between a run's minimum and maximum, in whole workers, class by class.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from tidepool.pool.state import EPSILON, Run

Floats = npt.NDArray[np.float64]


def fair_workers(runs: Iterable[Run], budget: float, now: float, patience_s: float) -> dict[str, int]:
    """Workers that each run should have of `budget` accelerators; 0 for those that wait or park.

    Within a priority those that run keep running, and the older starts first. A younger one may pass an older one that
    doesn't fit; but when that one has waited for `patience_s`, no younger one starts until it fits, unless it wouldn't
    fit if all others had ended.
    """
    ranked = sorted(runs, key=lambda run: (-run.priority, not run.workers, run.since, run.name))
    guaranteed = [run.guaranteed for run in ranked]
    left = budget - sum([floor * run.per_worker for floor, run in zip(guaranteed, ranked, strict=True) if floor])
    admitted: dict[int, list[Run]] = {run.priority: [] for run in ranked}
    kept_back = False
    for floor, run in zip(guaranteed, ranked, strict=True):
        least = run.min_workers * run.per_worker
        if floor:
            admitted[run.priority].append(run)
        elif least <= left + EPSILON and (run.size or not kept_back):
            admitted[run.priority].append(run)
            left -= least
        elif not run.size and now - run.since > patience_s and least <= budget:
            kept_back = True
    fair = dict.fromkeys([run.name for run in ranked], 0)
    for peers in filter(None, admitted.values()):
        left += sum([run.min_workers * run.per_worker for run in peers])
        workers = max_min(peers, left)
        for run, count in zip(peers, workers, strict=True):
            fair[run.name] = count
            left -= count * run.per_worker
    return fair


def max_min(runs: Sequence[Run], budget: float) -> list[int]:
    """Weighted max-min fair numbers of workers for runs of one priority, each at least its minimum.

    What whole numbers leave over goes to runs that would else shrink, the dearest pause first, then to those that are
    furthest from their exact share.
    """
    columns = [(run.per_worker, run.min_workers, run.max_workers, run.weight) for run in runs]
    size, least, most, weight = np.array(columns, dtype=float).T
    weight = weight / size
    exact = np.clip(_level(least, most, weight, size, budget) * weight, least, most)
    whole = np.floor(exact + EPSILON)
    left = budget - float(whole @ size)
    if left > EPSILON:
        to_lose = np.array([run.size for run in runs]) > whole
        pause = np.array([run.costs.shrink_pause_s for run in runs])
        for index in np.lexsort((np.arange(len(runs)), whole - exact, -pause * to_lose, ~to_lose)):
            if left < EPSILON:
                break
            if size[index] <= left + EPSILON and whole[index] < most[index]:
                whole[index] += 1
                left -= size[index]
    return [int(count) for count in whole]


def _level(least: Floats, most: Floats, weight: Floats, size: Floats, budget: float) -> float:
    """The water level at which clip(level * weight, least, most) * size adds up to the budget.

    What they add up to rises with the level, in straight lines between the levels at which a run leaves its minimum or
    reaches its maximum: so the level is found by interpolation.
    """
    bends = np.concatenate([least / weight, most / weight])
    order = np.argsort(bends)
    slopes = np.cumsum(np.concatenate([weight * size, -weight * size])[order])
    levels = bends[order]
    sums = float(least @ size) + np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(levels))])
    return float(np.interp(budget, sums, levels))
