"""What workers write on the board, and what the driver reads there."""

from __future__ import annotations

from types import SimpleNamespace

from tidepool.errors import TrainingError
from tidepool.train.board import EVERY_S, Board, News, teller
from tidepool.train.loop import Step


def test_an_error_that_comes_back_is_known_as_such() -> None:
    board = Board()
    assert board.failure() is None
    for what in ("worker 0, step 3", "worker 1, step 3", "worker 0, step 7"):
        board.failed(TrainingError(what))
        assert board.repeated() is None
    board.failed(TrainingError("worker 0, step 3"))
    assert str(board.repeated()) == str(board.failure()) == "worker 0, step 3."


def test_news_and_starts_are_read_together() -> None:
    board = Board()
    board.began(0)
    board.tell(News(5, 0.5, 100.0))
    board.began(4)
    assert board.read() == (News(5, 0.5, 100.0), [0, 4])


def test_news_go_out_now_and_then_and_at_the_end() -> None:
    told: list[News] = []
    now = [10.0]
    board = SimpleNamespace(tell=SimpleNamespace(remote=told.append))
    tell = teller(board, total=100, clock=lambda: now[0])
    for number in range(1, 101):
        now[0] += EVERY_S / 10.5
        tell(Step(number, 1 / number, samples=8))
    assert [news.step for news in told] == [11, 22, 33, 44, 55, 66, 77, 88, 99, 100]
    assert told[-1].loss == 0.01
    assert round(told[-1].samples_per_s) == round(800 / (100 * EVERY_S / 10.5))
