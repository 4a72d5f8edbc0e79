"""How long `ckptkit fetch` takes on loopback, against curl, huggingface_hub's http_get and pooch.

    python tests/benchmarks/bench_fetch.py [--runs 5] [--size 1000000000] [--peers PYTHON] [--server python]

Whole processes, run in turn in one session; medians and their ratios. The server is nginx (Debian's package
nginx-light) with sendfile; with ``--server python``, or where there is no nginx, threads of Python's with
`socket.sendfile` stand in for it. PEERS is the interpreter of an environment that has huggingface_hub and
pooch; without it only curl is compared. ckptkit's time has the start of the process, sha256, fsync, record
and rename in it; curl's has no checksum and no fsync; pooch's has sha256.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HTTP_GET = """
import sys
from huggingface_hub.file_download import http_get
with open(sys.argv[2], "wb") as stream:
    http_get(sys.argv[1], stream)
"""
POOCH = """
import os, sys, pooch
pooch.retrieve(sys.argv[1], known_hash=sys.argv[3], fname=os.path.basename(sys.argv[2]),
               path=os.path.dirname(sys.argv[2]))
"""
ENTRY = """entries:
  - id: bench
    family: moat
    variant: tiny-moat0
    display_name: benchmark
    layout: deeplab2
    format: tf
    sources: [{{url: "{url}"}}]
    sha256: "{sha256}"
    hash_provenance: {{observed_at: "2026-01-01T00:00:00Z", url: "{url}"}}
"""


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    paths = " ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/errors; worker_processes 1;\n"
        f"{'user root;' if os.geteuid() == 0 else ''} events {{ worker_connections 64; }}\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; {paths}\n"
        f"server {{ listen 127.0.0.1:{port}; root {folder}/www; }} }}\n"
    )
    server = subprocess.Popen(["nginx", "-c", str(configuration), "-e", f"{folder}/errors"])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def python_server(folder: Path) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with (folder / "www" / "m.bin").open("rb") as stream:
                self.send_response(200)
                self.send_header("Content-Length", str(os.fstat(stream.fileno()).st_size))
                self.send_header("ETag", '"v1"')
                self.end_headers()
                self.connection.sendfile(stream)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=1_000_000_000)
    parser.add_argument("--peers")
    parser.add_argument("--server", choices=["nginx", "python"], default="nginx")
    parser.add_argument("--connections", default="1")
    arguments = parser.parse_args()
    real = arguments.server == "nginx" and shutil.which("nginx") is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "www").mkdir()
        with (folder / "www" / "m.bin").open("wb") as stream:
            for start in range(0, arguments.size, 1 << 20):
                stream.write(os.urandom(min(1 << 20, arguments.size - start)))
        digest = subprocess.run(
            ["sha256sum", str(folder / "www" / "m.bin")], check=True, capture_output=True, text=True
        ).stdout.split()[0]
        with (nginx if real else python_server)(folder) as base:
            print(f"server: {'nginx' if real else 'Python, sendfile'}; load {os.getloadavg()[0]:.1f}")
            compare(folder, f"{base}/m.bin", digest, arguments)
            print(f"load after: {os.getloadavg()[0]:.1f}")


def compare(folder: Path, url: str, digest: str, arguments: argparse.Namespace) -> None:
    registry, target = folder / "registry.yaml", folder / "out" / "m.bin"
    registry.write_text(ENTRY.format(url=url, sha256=digest))
    fetch = [
        sys.executable,
        "-m",
        "ckptkit.cli.app",
        "--quiet",
        "--registry",
        str(registry),
        "fetch",
        "bench",
    ]
    commands = {
        "ckptkit": [*fetch, "--connections", arguments.connections],
        "curl": ["curl", "-s", "-o", str(target), url],
    }
    if arguments.peers:
        commands["http_get"] = [arguments.peers, "-c", HTTP_GET, url, str(target)]
        commands["pooch"] = [arguments.peers, "-c", POOCH, url, str(target), f"sha256:{digest}"]
    environment = {
        **os.environ,
        "CKPTKIT_HOME": str(folder / "out" / "home"),
        "CKPTKIT_TRUST": str(folder / "out" / "lock.json"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    quiet = (folder / "said").open("w")  # what a command said, to be looked at when it failed
    for turn in range(arguments.runs + 1):
        for name, command in commands.items():
            shutil.rmtree(target.parent, ignore_errors=True)
            target.parent.mkdir()
            os.sync()  # writing back what the one before left belongs to nobody
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=quiet, env=environment)
            if turn:
                times[name].append(time.perf_counter() - start)
    ours = statistics.median(times["ckptkit"])
    for name, values in times.items():
        median = statistics.median(values)
        print(
            f"  {name:8} {median:6.2f} s  ratio {ours / median:.2f}  {[round(value, 2) for value in values]}"
        )


if __name__ == "__main__":
    main()
