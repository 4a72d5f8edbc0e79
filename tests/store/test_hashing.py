"""Checksums taken behind the receiving: the same as in one piece, whatever the order of events."""

from __future__ import annotations

import hashlib
import threading
import time

import google_crc32c
import pytest

from ckptkit.store.behind import OUTSTANDING, Worker
from ckptkit.store.hashing import BackgroundHasher
from ckptkit.store.transport import KEPT
from tests.support.entries import random_bytes

BODY = random_bytes(3_000_001)


@pytest.mark.parametrize("algorithms", [[], ["md5"], ["crc32c"], ["md5", "crc32c", "sha256"]])
@pytest.mark.parametrize("piece", [70_001, 1 << 20, 4_000_000])
def test_digests(algorithms: list[str], piece: int) -> None:
    hasher = BackgroundHasher(algorithms)
    for start in range(0, len(BODY), piece):
        hasher.update(BODY[start : start + piece])
    for _ in range(2):
        found = hasher.digests()
        assert (found.size, found.sha256) == (len(BODY), hashlib.sha256(BODY).hexdigest())
        assert found.md5 == (hashlib.md5(BODY).hexdigest() if "md5" in algorithms else "")
        assert found.crc32c == (f"{google_crc32c.value(BODY):08x}" if "crc32c" in algorithms else "")
    hasher.update(b"more")
    assert hasher.digests().sha256 == hashlib.sha256(BODY + b"more").hexdigest()
    hasher.close()


def test_buffers_that_are_used_again_are_hashed_before() -> None:
    buffers = [memoryview(bytearray(300_000)) for _ in range(KEPT + 2)]
    hasher, plain = BackgroundHasher(["md5", "crc32c"]), hashlib.sha256()
    for number in range(100):
        buffer = buffers[number % len(buffers)]
        buffer[:] = bytes([number]) * len(buffer)
        hasher.update(buffer)
        plain.update(buffer)
    assert hasher.digests().sha256 == plain.hexdigest()
    hasher.close()


def test_no_more_calls_wait_than_promised() -> None:
    assert OUTSTANDING < KEPT
    gate, made = threading.Event(), []
    worker = Worker("test", 3)
    worker.do(gate.wait, 10)
    assert worker.do_if_idle(made.append, 1) and worker.do_if_idle(made.append, 2)
    assert not worker.do_if_idle(made.append, 3)
    giver = threading.Thread(target=worker.do, args=(made.append, 4))
    giver.start()
    time.sleep(0.05)
    assert giver.is_alive() and made == []
    gate.set()
    giver.join(5)
    worker.wait()
    assert made == [1, 2, 4]
    worker.close()


def test_an_error_is_told_every_time_and_nothing_is_done_after_it() -> None:
    made: list[int] = []
    worker = Worker("test")
    worker.do(made.append, 1)
    worker.do(int, "x")
    worker.do(made.append, 2)
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            worker.wait()
    assert made == [1]
    worker.close()
    worker.close()
