import random
import threading
import time
from collections.abc import Sequence

import pytest

from glue.merging.parallel import Job, Piece, run_all


def test_pieces_start_in_order_and_every_job_ends_once() -> None:
    started: list[tuple[int, int]] = []
    chance = random.Random(1)

    def job(number: int, pieces: int, pause: float) -> Job:
        def piece(place: int) -> Piece:
            return lambda: started.append((number, place))

        def prepare() -> Sequence[Piece]:
            time.sleep(pause)
            return [piece(place) for place in range(pieces)]

        return prepare

    sizes = [chance.randint(0, 4) for _ in range(40)]
    jobs = [job(number, size, chance.random() / 200) for number, size in enumerate(sizes)]
    ends = list(run_all(jobs, workers=1))
    assert ends == list(range(40))
    assert started == [(number, place) for number, size in enumerate(sizes) for place in range(size)]
    started.clear()
    assert sorted(run_all(jobs, workers=4)) == list(range(40))
    assert sorted(started) == [(number, place) for number, size in enumerate(sizes) for place in range(size)]


def test_all_work_on_one_job_at_once() -> None:
    together = threading.Barrier(3, timeout=10)

    def meet() -> None:
        together.wait()

    assert list(run_all([lambda: [meet, meet, meet]], workers=3)) == [0]


@pytest.mark.parametrize("where", ["prepare", "piece"])
def test_an_error_stops_everything_and_is_raised(where: str) -> None:
    ran: list[int] = []

    def fail() -> None:
        raise RuntimeError("here")

    def job(number: int) -> Job:
        def prepare() -> Sequence[Piece]:
            ran.append(number)
            if number == 3 and where == "prepare":
                fail()
            return [fail if number == 3 else lambda: time.sleep(0.001)]

        return prepare

    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="here"):
        list(run_all([job(number) for number in range(200)], workers=2))
    assert len(ran) < 20
    assert threading.active_count() == threads


def test_whoever_stops_listening_stops_the_work() -> None:
    ran: list[int] = []
    ends = run_all([lambda: [lambda: ran.append(1)]] * 5000, workers=2)
    next(ends)
    ends.close()
    done = len(ran)
    time.sleep(0.05)
    assert len(ran) == done
