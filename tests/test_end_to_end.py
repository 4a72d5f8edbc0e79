"""The main job on files that the published code wrote: fetch over HTTP, verify, convert, prove."""

from __future__ import annotations

import os
import subprocess
import sys
from urllib.parse import urlsplit

import numpy as np
import pytest

from ckptkit.demo import serve_file
from ckptkit.formats.detect import open_reader
from ckptkit.registry import load_registry
from tests.support.moat_reference import recipe_tensor

CASES = [
    ("tiny_moat0_pe.tar.gz", "tiny-moat0-256", "auto"),
    ("tiny_moat0_pe_tf2.tar.gz", "tiny-moat0-256", "auto"),
    ("tiny_moat0_nope_ema.tar.gz", "tiny-moat0-256-noposemb", "ema"),
    ("tiny_moat0_nope_ema.tar.gz", "tiny-moat0-256-noposemb", "raw"),
]


@pytest.mark.parametrize(
    ("file", "id", "weights"), CASES, ids=[f"{file}-{weights}" for file, _, weights in CASES]
)
def test_fetch_verify_convert_parity(tmp_path, shared_folder, file, id, weights):
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    published = urlsplit(load_registry()[id].sources[0].url)
    environment = {**os.environ, "CKPTKIT_HOME": str(tmp_path / "home")}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "ckptkit.cli.app", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with serve_file(shared_folder / "checkpoints" / file, published.path) as port:
        mirror = f"{published.scheme}://{published.netloc}=http://127.0.0.1:{port}"
        run("fetch", id, "--mirror", mirror)
    # from here on without the server
    run("verify", id, "--deep", "--weights", weights, "--offline")
    target = tmp_path / "moat.safetensors"
    run("convert", id, "--weights", weights, "--output", str(target), "--offline")
    pth = run("convert", id, "--weights", weights, "--to", "torch", "--offline").strip()
    said = run("parity", id, "--converted", str(target), "--offline")
    assert said.splitlines()[-1].startswith(f"agree: {id} (float32)")
    # The published code wrote the recipe's values (as moving averages, where it wrote those too).
    name = "moat/block_02_01/attention/q/weight"
    expected = recipe_tensor(name, (128, 4, 32), key_suffix="#raw" if weights == "raw" else "")
    for path in (target, pth):
        with open_reader(path) as reader:
            got = reader.read("stages.2.1.attention.q.weight")
            np.testing.assert_array_equal(got, expected.reshape(128, 128).T)
            assert reader.metadata["entry"] == id
            assert reader.metadata.get("weights", "auto") == weights
