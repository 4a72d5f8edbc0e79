"""The bandwidth limit, by a clock that the test moves."""

from __future__ import annotations

import threading

import pytest

from ckptkit.base.net import Throttle
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import entry_of, random_bytes
from tests.support.http_server import FaultServer

BODY = random_bytes(300_000)


class Clock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_rate_is_kept_in_the_long_run() -> None:
    clock = Clock()
    throttle = Throttle(1000, clock=lambda: clock.now, sleep=clock.sleep)
    for _ in range(100):
        throttle.take(125)
    assert clock.now - 100.0 == pytest.approx((12_500 - 250) / 1000)  # the bucket was full at first


def test_what_was_not_used_is_not_saved_up() -> None:
    clock = Clock()
    throttle = Throttle(1000, clock=lambda: clock.now, sleep=clock.sleep)
    clock.now += 3600
    throttle.take(1250)
    assert clock.now == pytest.approx(3701.0)


def test_a_clock_that_goes_back_does_no_harm() -> None:
    clock = Clock()
    throttle = Throttle(1000, clock=lambda: clock.now, sleep=clock.sleep)
    clock.now -= 50
    throttle.take(1250)
    assert clock.now == pytest.approx(51.0)


def test_threads_wait_behind_each_other() -> None:
    waits: list[float] = []
    throttle = Throttle(1000, clock=lambda: 0.0, sleep=waits.append)
    threads = [threading.Thread(target=throttle.take, args=(250,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waits) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("rate", "piece"), [(10, 1024), (80_000, 10_000), (1e9, 1 << 18)])
def test_pieces_are_small_where_the_rate_is(rate: float, piece: int) -> None:
    assert Throttle(rate).piece == piece


@pytest.mark.parametrize("connections", [1, 3])
def test_a_download_takes_as_long_as_the_rate_says(
    server: FaultServer, store: Store, assert_only: AssertOnly, connections: int
) -> None:
    from dataclasses import replace

    clock, lock = Clock(), threading.Lock()

    def sleep(seconds: float) -> None:
        with lock:
            slept.append(seconds)

    slept: list[float] = []
    # Time stands still, so that the last waits for all bytes but those of the first quarter second.
    throttle = Throttle(100_000, clock=lambda: clock.now, sleep=sleep)
    changes = {"throttle": throttle, "connections": connections, "split_from": 100_000, "segment": 50_000}
    store.fetch(entry_of(server.serve("/m.pth", BODY)), policy=replace(store.policy, **changes))
    assert_only(store, BODY)
    assert max(slept) == pytest.approx((300_000 - 25_000) / 100_000)
