"""Checksums taken behind the receiving: the same as in one piece, whatever the order of events."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import replace

import google_crc32c
import pytest

from ckptkit.store.partial import BackgroundHasher, BackgroundThread
from ckptkit.store.transfer import Segments, url_opener
from tests.store.conftest import Store
from tests.support.entries import random_bytes
from tests.support.http_server import FaultServer

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


@pytest.mark.parametrize("connections", [1, 3])
def test_a_piece_never_changes_once_it_is_given(store: Store, server: FaultServer, connections: int) -> None:
    url, policy = (
        server.serve("/m.pth", BODY),
        replace(store.policy, segment=300_000, connections=connections),
    )
    with url_opener(policy) as opener, opener(url, 0, None, 1) as first, opener(url, 0, None) as response:
        segments = Segments(url, opener, policy, first.identity, 0)
        pieces = list(response.body if connections == 1 else segments.pieces())
        segments.close()
    assert len(pieces) > 5 and b"".join(pieces) == BODY


def test_no_more_calls_wait_than_promised() -> None:
    gate, made = threading.Event(), []
    thread = BackgroundThread("test", 3)
    thread.submit(gate.wait, 10)
    assert thread.submit_if_idle(made.append, 1) and thread.submit_if_idle(made.append, 2)
    assert not thread.submit_if_idle(made.append, 3)
    giver = threading.Thread(target=thread.submit, args=(made.append, 4))
    giver.start()
    time.sleep(0.05)
    assert giver.is_alive() and made == []
    gate.set()
    giver.join(5)
    thread.wait()
    assert made == [1, 2, 4]
    thread.close()


def test_an_error_is_told_every_time_and_nothing_is_done_after_it() -> None:
    made: list[int] = []
    thread = BackgroundThread("test")
    thread.submit(made.append, 1)
    thread.submit(int, "x")
    thread.submit(made.append, 2)
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            thread.wait()
    assert made == [1]
    thread.close()
    thread.close()
