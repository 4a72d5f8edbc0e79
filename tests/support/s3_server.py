"""A local S3 server (moto), with a bucket; skips where moto or s3fs is not installed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import pytest

BUCKET = "bucket"


@contextlib.contextmanager
def s3_server() -> Iterator[Any]:
    """Run the server and point every S3 client at it; gives s3fs's file system, with an empty bucket."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    import fsspec
    import requests

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    requests.post(f"http://{host}:{port}/moto-api/reset", timeout=10).raise_for_status()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }.items():
            patch.setenv(name, value)
        files = fsspec.filesystem("s3")
        files.clear_instance_cache()
        files = fsspec.filesystem("s3")
        files.mkdir(BUCKET)
        try:
            yield files
        finally:
            files.clear_instance_cache()
            server.stop()
