"""A new user's session, from the table to a folder for the hub that is loaded again.

Each command is typed as the README has it; the published hosts are on loopback and hold synthetic files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import preloaded
from tests.support.commands import runner
from tests.support.showground import picture, published_hosts

RELOAD = """
import sys
import numpy, torch
import ckptkit

image = torch.from_numpy(numpy.load("input.npy"))
reloaded = ckptkit.create_model("for-the-hub")
original = ckptkit.create_model(sys.argv[1], checkpoint=True)
with torch.inference_mode():
    numpy.savez("logits.npz", reloaded=reloaded(image).numpy(), original=original(image).numpy())
"""

SESSIONS = {
    "tiny-moat0-256": ("moat", "safetensors", "moat.safetensors"),
    "moganet-xt-224": ("moganet", "tf", "moganet.ckpt"),
}
"""Entry → family, the format its weights are wanted in, and the file."""


@pytest.fixture(scope="module")
def mirrors(tmp_path_factory):
    with published_hosts(tmp_path_factory.mktemp("published")) as rules:
        yield rules


@pytest.mark.parametrize("id", ["tiny-moat0-256", pytest.param("moganet-xt-224", marks=pytest.mark.slow)])
def test_a_new_users_session(id, mirrors, tmp_path, monkeypatch, capsys):
    for package in ("torch", "tensorflow", "PIL", "captum"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CKPTKIT_MIRROR", mirrors)
    picture(2).save("cat.jpg")
    run = runner(capsys)
    family, to, converted = SESSIONS[id]

    def ckptkit(*words: str) -> str:
        done = run(*words)
        assert done.code == 0, (words, done.out[-2000:], done.err[-2000:])
        return done.out

    assert id in ckptkit("list", "--family", family)
    assert "not pinned" in ckptkit("show", id)
    fetched = ckptkit("fetch", id).strip()
    assert Path(fetched).exists() or Path(fetched + ".index").exists()
    monkeypatch.delenv("CKPTKIT_MIRROR")  # from here on the network is not there
    assert ckptkit("verify", id, "--deep").splitlines()[0] == f"{id}: passed 6 checks"
    ckptkit("convert", id, "--to", to, "-o", converted)
    proof = ckptkit("parity", id, "--converted", converted, "--resolution", "96")
    assert proof.splitlines()[0].startswith(f"agree: {id} (synthetic weights, float32)")

    (predicted,) = json.loads(ckptkit("predict", id, "cat.jpg", "--json"))
    best = predicted["top"][0]
    assert predicted["weights"]["synthetic"], "the bytes came through a mirror, and the numbers say so"
    (shown,) = _listed(json.loads(ckptkit("cam", id, "cat.jpg", "-o", "cam.png", "--json")))
    assert shown["class"]["index"] == best["index"] and shown["synthetic"]
    from PIL import Image

    with Image.open("cam.png") as heat_map:
        assert heat_map.size[0] >= 224

    ckptkit("export", id, "--to", "hf", "-o", "for-the-hub")
    np.save("input.npy", np.random.default_rng(5).normal(size=(1, 3, 96, 96)).astype(np.float32))
    reloaded = preloaded.run([sys.executable, "-c", RELOAD, id], tmp_path)
    assert reloaded.returncode == 0, reloaded.stderr
    with np.load("logits.npz") as logits:
        assert logits["reloaded"].shape == (1, 1000)
        assert np.ptp(logits["original"]) > 0.1
        np.testing.assert_array_equal(logits["reloaded"], logits["original"])


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [value]
