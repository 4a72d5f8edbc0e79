"""The main job on files that the published code wrote: fetch over HTTP, verify, convert, prove."""

from __future__ import annotations

from urllib.parse import urlsplit

import numpy as np
import pytest

from ckptkit.demo import serve_file
from ckptkit.formats.detect import open_reader
from ckptkit.registry.loading import load_registry
from tests.support.commands import runner
from tests.support.moat_reference import recipe_tensor
from tests.support.moganet_weights import recipe_state

CASES = [
    ("tiny_moat0_pe.tar.gz", "tiny-moat0-256", "auto"),
    ("tiny_moat0_pe_tf2.tar.gz", "tiny-moat0-256", "auto"),
    ("tiny_moat0_nope_ema.tar.gz", "tiny-moat0-256-noposemb", "ema"),
    ("tiny_moat0_nope_ema.tar.gz", "tiny-moat0-256-noposemb", "raw"),
]

MOGANET_CASES = [
    ("moga_xtiny_openmixup.pth", "moganet-xt-224", "auto"),
    ("moga_xtiny_openmixup_published.pth", "moganet-xt-224", "auto"),
    ("moga_xtiny_openmixup_ema.pth", "moganet-xt-224", "ema"),
    ("moga_xtiny_openmixup_ema.pth", "moganet-xt-224", "raw"),
    ("moganet_xtiny_timm.pth.tar", "moganet-xt-224-timm", "ema"),
    ("moganet_xtiny_timm.pth.tar", "moganet-xt-224-timm", "raw"),
]


@pytest.fixture
def ckptkit(tmp_path, monkeypatch, capsys):
    """Run ckptkit's commands with a cache of their own; each must end well."""
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path / "home"))
    ran = runner(capsys)

    def run(*arguments):
        done = ran(*arguments)
        assert done.code == 0, done.out + done.err
        return done.out

    return run


def fetch(ckptkit, file, id):
    """Fetch a file from loopback as if it were the published one."""
    published = urlsplit(load_registry()[id].sources[0].url)
    with serve_file(file, published.path) as port:
        mirror = f"{published.scheme}://{published.netloc}=http://127.0.0.1:{port}"
        ckptkit("fetch", id, "--mirror", mirror)


def quick(cases, *places):
    """All cases; those at other places are slow, for what they have in common with these."""
    return [
        pytest.param(case, id=f"{case[0]}-{case[2]}", marks=() if place in places else pytest.mark.slow)
        for place, case in enumerate(cases)
    ]


@pytest.mark.parametrize("case", quick(CASES, 1, 2))
def test_fetch_verify_convert_parity(tmp_path, shared_folder, ckptkit, case):
    file, id, weights = case
    fetch(ckptkit, shared_folder / "checkpoints" / file, id)
    # from here on without the server
    ckptkit("verify", id, "--deep", "--weights", weights, "--offline")
    target = tmp_path / "moat.safetensors"
    ckptkit("convert", id, "--weights", weights, "--output", str(target), "--offline")
    pth = ckptkit("convert", id, "--weights", weights, "--to", "torch", "--offline").strip()
    said = ckptkit("parity", id, "--converted", str(target), "--offline")
    assert said.splitlines()[0].startswith(f"agree: {id} (synthetic weights, float32)")
    # The published code wrote the recipe's values (as moving averages, where it wrote those too).
    name = "moat/block_02_01/attention/q/weight"
    expected = recipe_tensor(name, (128, 4, 32), key_suffix="#raw" if weights == "raw" else "")
    for path in (target, pth):
        with open_reader(path) as reader:
            got = reader.read("stages.2.1.attention.q.weight")
            np.testing.assert_array_equal(got, expected.reshape(128, 128).T)
            assert reader.metadata["entry"] == id
            assert reader.metadata.get("weights", "auto") == weights


@pytest.mark.parametrize("case", quick(MOGANET_CASES, 1, 2, 5))
def test_moganet_fetch_verify_convert_parity(tmp_path, shared_folder, ckptkit, case):
    file, id, weights = case
    fetch(ckptkit, shared_folder / "checkpoints" / file, id)
    ckptkit("verify", id, "--deep", "--weights", weights, "--offline")
    bundle = tmp_path / "moganet.ckpt"
    ckptkit("convert", id, "--weights", weights, "--to", "tf", "--output", str(bundle), "--offline")
    copy = ckptkit("convert", id, "--weights", weights, "--offline").strip()
    said = ckptkit("parity", id, "--converted", str(bundle), "--offline", "--resolution", "96")
    assert said.splitlines()[0].startswith(f"agree: {id} (synthetic weights, float32)")
    assert "PyTorch   reads the original" in said
    # Raw weights of OpenMixup's runs with averages stand beside them, timm's in a state dict of their own.
    kernel = recipe_state("moganet-xt", key_suffix="#raw" if weights == "raw" else "")["head.weight"]
    for path, name, expected in ((bundle, "moganet/head/kernel", kernel.T), (copy, "head.weight", kernel)):
        with open_reader(path) as reader:
            np.testing.assert_array_equal(reader.read(name), expected)
            assert reader.metadata["entry"] == id
            assert reader.metadata.get("weights", "auto") == weights
            assert reader.metadata["attn_force_fp32"] == ("false" if "timm" in id else "true")
