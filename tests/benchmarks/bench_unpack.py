"""Unpacking: which gunzip is quickest, and whether to unpack while the archive is still coming.

Run by hand: ``python tests/benchmarks/bench_unpack.py [--megabytes 300] [--runs 5] [--rate MB/s]``. The
archive holds float32 tensors of normal numbers, as checkpoints do, and comes over loopback from a process of
its own that sends as quickly as it can, or at a given rate. Nothing is left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import http.server
import io
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ckptkit.registry.schema import Entry
from ckptkit.store import unpack
from ckptkit.store.cache import Home
from ckptkit.store.fetch import Job, fetch
from ckptkit.store.lockfile import LockFile

PIECE = 1 << 20


def make_archive(path: Path, megabytes: int) -> None:
    generator = np.random.default_rng(1)
    with tarfile.open(path, "w:gz", compresslevel=6) as archive:
        for number in range(4):
            body = generator.standard_normal(megabytes * 1_000_000 // 16, np.float32).tobytes()
            info = tarfile.TarInfo(f"moat/part-{number}")
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))


def serve(path: str, rate: float, address: Any) -> None:
    """Send the file to whoever asks, at a rate in bytes a second (0: as quickly as it goes)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = os.path.getsize(path)  # noqa: PTH202
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.flush()
            began = time.perf_counter()
            with open(path, "rb") as stream:  # noqa: PTH123
                sent = 0
                while sent < size:
                    sent += os.sendfile(self.connection.fileno(), stream.fileno(), sent, PIECE)
                    if rate:
                        time.sleep(max(0.0, sent / rate - (time.perf_counter() - began)))

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address.send(server.server_address[1])
    server.serve_forever()


def fetch_it(url: str, folder: Path, *, at_once: bool) -> None:
    """Download, hash, check and unpack, as `ckptkit fetch` does, with or without overlap."""
    entry = Entry.model_validate(
        {
            "id": "bench",
            "family": "moat",
            "variant": "tiny-moat0",
            "display_name": "a benchmark",
            "layout": "deeplab2",
            "format": "tf",
            "sources": [{"url": url}],
        }
    )
    unpack.FROM_BYTES = 1 << 20 if at_once else 1 << 60
    fetch(Job(entry, Home(folder), lambda *_, **__: None, trust=LockFile(folder / "trust.json")))


def gunzips() -> Iterator[tuple[str, Callable[[Path], Any]]]:
    yield "gzip (zlib)", gzip.open
    with contextlib.suppress(ImportError):
        from isal import igzip

        yield "isal", igzip.open
    with contextlib.suppress(ImportError):
        from zlib_ng import gzip_ng

        yield "zlib-ng", gzip_ng.open


def drained(opened: Callable[[Path], Any], path: Path) -> None:
    with opened(path) as stream:
        while stream.read(256 << 10):
            pass


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def show(figures: dict[str, list[float]], megabytes: int) -> None:
    for name, seconds in figures.items():
        median = statistics.median(seconds)
        every = " ".join(f"{second:.2f}" for second in seconds)
        print(f"  {name:22} {median:6.2f} s  {megabytes / median:6.0f} MB/s   {every}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=0.0, help="MB/s of the server; 0: no bound")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "a.tar.gz")
        make_archive(path, options.megabytes)
        size = path.stat().st_size
        print(f"{options.megabytes} MB of floats, {size / 1e6:.0f} MB packed, load {os.getloadavg()}")
        ways = dict(gunzips())
        figures: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.runs):
            for way, opened in ways.items():
                figures[way].append(timed(lambda opened=opened: drained(opened, path)))  # type: ignore[misc]
        show(figures, options.megabytes)
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(
            target=serve, args=(str(path), options.rate * 1e6, theirs), daemon=True
        )
        server.start()
        url = f"http://127.0.0.1:{ours.recv()}/a.tar.gz"
        together: dict[str, list[float]] = {"one after the other": [], "at once": []}
        for _ in range(options.runs):
            for way, seconds in together.items():
                with tempfile.TemporaryDirectory() as folder:
                    os.sync()
                    began = time.perf_counter()
                    fetch_it(url, Path(folder), at_once=way == "at once")
                    seconds.append(time.perf_counter() - began)
        show(together, options.megabytes)
        server.terminate()


if __name__ == "__main__":
    main()
