"""Coroutines that begin at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from tidepool.serve import eager


@dataclass
class Work:
    """Waits for `wait`, if there is something to wait for, and says how far it came."""

    wait: asyncio.Future[int] | None = None
    said: list[str] = field(default_factory=list)

    async def do(self) -> int:
        self.said.append("began")
        if self.wait is None:
            return 1
        try:
            value = await self.wait
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.said.append("cancelled")
            raise
        self.said.append("went on")
        return value


async def waiting() -> tuple[Work, asyncio.Future[int], asyncio.Task[int]]:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    work = Work(future)
    task = eager.start(work.do())
    assert isinstance(task, asyncio.Task)
    assert work.said == ["began"]
    return work, future, task


def test_one_that_never_waits_is_done_at_once() -> None:
    async def main() -> None:
        assert eager.start(Work().do()) == 1

    asyncio.run(main())


def test_one_that_waits_goes_on_as_a_task() -> None:
    async def main() -> None:
        work, future, task = await waiting()
        future.set_result(7)
        assert await task == 7
        assert work.said == ["began", "went on"]

    asyncio.run(main())


def test_what_it_waits_for_may_fail() -> None:
    async def main() -> None:
        _, future, task = await waiting()
        future.set_exception(ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            await task

    asyncio.run(main())


@pytest.mark.parametrize("passes", [0, 1, 2])
def test_one_that_is_cancelled_knows_it_however_early(passes: int) -> None:
    async def main() -> None:
        work, _, task = await waiting()
        for _ in range(passes):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.said == ["began", "cancelled"]

    asyncio.run(main())
