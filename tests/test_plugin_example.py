"""The example of a plug-in works in every command, and nothing of ckptkit is changed for it."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.support import preloaded

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "plugin"
REGISTRY = """entries:
  - id: my-pebble
    family: pebble
    variant: pebble-m
    display_name: My pebble
    layout: torch
    format: slab
    negative_slope: 0.25
    test_resolution: 64
    sources: [{url: "https://example.org/pebble.slab"}]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the metadata that an installer makes of the example's ``pyproject.toml``."""
    folder = tmp_path_factory.mktemp("site")
    project = (EXAMPLE / "pyproject.toml").read_text()
    name, version = (re.search(rf'^{key} = "(.*)"', project, re.MULTILINE)[1] for key in ("name", "version"))
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    points = re.findall(r'^\[project\.entry-points\."(.*)"\]\n(.*)\n', project, re.MULTILINE)
    assert {group for group, _ in points} == {"ckptkit.families", "ckptkit.formats"}
    (info / "entry_points.txt").write_text(
        "".join(f"[{group}]\n{line.replace(chr(34), '')}\n\n" for group, line in points)
    )
    (folder / "mine.yaml").write_text(REGISTRY)
    return folder


def ckptkit(site: Path, *words: str | Path, code: int = 0) -> str:
    """Run a command in a process of its own, where the example is installed; what it prints."""
    paths = [str(site), str(EXAMPLE), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = preloaded.run([sys.executable, "-m", "ckptkit", *map(str, words)], site, environment)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def python(site: Path, code: str) -> str:
    """Run a program where the example is installed; what it prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(EXAMPLE), str(ROOT)])}
    done = preloaded.run([sys.executable, "-c", code], site, environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkpoint(site: Path) -> Path:
    ckptkit(site, "synth", "pebble-m", "-o", "pebble.pth")
    return site / "pebble.pth"


def test_list_has_its_entries_and_a_column_for_its_setting(site: Path) -> None:
    shown = ckptkit(
        site,
        "--registry",
        "mine.yaml",
        "list",
        "--family",
        "pebble",
        "--columns",
        "id,negative-slope",
        "--json",
    )
    assert json.loads(shown) == [{"id": "my-pebble", "negative-slope": 0.25}]
    assert "negative_slope 0.25" in ckptkit(site, "--registry", "mine.yaml", "show", "my-pebble")
    schema = json.loads(ckptkit(site, "registry", "schema"))
    assert schema["$defs"]["Entry"]["properties"]["negative_slope"]["description"].startswith("Pebble: ")


def test_a_value_that_its_setting_cannot_have_is_refused(site: Path) -> None:
    (site / "wrong.yaml").write_text(REGISTRY.replace("0.25", "2"))
    wrong = ckptkit(site, "--registry", "wrong.yaml", "list", code=5)
    assert "line 8: entry 'my-pebble': negative_slope: input should be less than 1, found 2" in wrong
    said = ckptkit(site, "convert", "x.pth", "--set", "negative_slope=2", code=2)
    assert "negative_slope cannot be '2'; negative_slope takes a number from 0 to 1" in said


def test_convert_both_ways(site: Path, checkpoint: Path) -> None:
    ckptkit(site, "convert", checkpoint, "--set", "negative_slope=0.125", "-o", "pebble.slab")
    inspected = json.loads(ckptkit(site, "inspect", "pebble.slab", "--json"))
    assert (inspected["format"], inspected["variant"], inspected["layout"]) == ("slab", "pebble-m", "torch")
    assert inspected["metadata"]["negative_slope"] == "0.125"
    ckptkit(site, "convert", "pebble.slab", "--to", "tf", "-o", "pebble.ckpt")
    assert json.loads(ckptkit(site, "inspect", "pebble.ckpt", "--json"))["layout"] == "keras"
    ckptkit(site, "convert", "pebble.ckpt", "--to", "safetensors", "-o", "back.safetensors")
    assert "same: 8 tensors, bit for bit" in ckptkit(site, "diff", checkpoint, "back.safetensors")


def test_verify(site: Path, checkpoint: Path) -> None:
    (found,) = json.loads(ckptkit(site, "verify", checkpoint, "--deep", "--json"))
    assert (found["ok"], found["variant"]) == (True, "pebble-m")


def test_profile(site: Path) -> None:
    pytest.importorskip("torch")
    found = json.loads(ckptkit(site, "profile", "pebble-s", "--json"))
    # A 4×4 convolution of stride 4 over 64 pixels, a 1×1 convolution, and a head of 1,000 classes.
    products = 16 * 16 * 8 * (3 * 4 * 4) + 16 * 16 * 8 * 8 + 8 * 1000
    assert found["parameters"] == 8 * 3 * 16 + 8 + 64 + 8 + 8 * 1000 + 1000
    assert (found["multiply_adds"], found["convention"]["name"]) == (products, "products")


def test_parity(site: Path, checkpoint: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    words = ("parity", checkpoint, "--set", "negative_slope=0.5", "--resolution", "64", "--json")
    (found,) = json.loads(ckptkit(site, *words))
    assert found["ok"] is True
    assert [stage["name"] for stage in found["stages"]] == ["stage1", "stage2", "stage3", "logits"]


def test_python_takes_it(site: Path, checkpoint: Path) -> None:
    pytest.importorskip("torch")
    code = (
        "import ckptkit, torch\n"
        "model = ckptkit.create_model('pebble-m', checkpoint='pebble.pth', negative_slope=0.5)\n"
        "print(model.loaded.settings, tuple(model(torch.zeros(1, 3, 64, 64)).shape))"
    )
    assert python(site, code) == "{'negative_slope': 0.5} (1, 1000)\n"


KERAS = """
import ckptkit, ckptkit.keras, keras, numpy
images = numpy.random.default_rng(1).standard_normal((2, 64, 64, 3)).astype("float32")
opened = keras.saving.load_model("pebble.keras")
model = ckptkit.create_model("pebble-m", "keras", checkpoint="pebble.pth", negative_slope=0.25)
numpy.testing.assert_allclose(opened(images), model(images), rtol=0, atol=1e-6)
"""


def test_keras_opens_its_export(site: Path, checkpoint: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    slope = ("--set", "negative_slope=0.25")
    ckptkit(site, "export", checkpoint, "--to", "keras", "-o", "pebble.keras", *slope)
    ckptkit(site, "convert", "pebble.keras", "-o", "again.safetensors")
    assert "layout keras-h5" in ckptkit(site, "inspect", "pebble.keras")
    python(site, KERAS)
