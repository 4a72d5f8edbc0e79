"""What a short conversion imports decides how long it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ckptkit.models.synth import Synthetic, write_checkpoint

HEAVY = {"torch", "tensorflow", "keras", "pydantic", "yaml", "rich", "h5py", "requests"}
FOREIGN = {
    "safetensors": ("hdf5", "keras", "tf_", "npz", "torch_writer"),
    "torch": ("hdf5", "keras", "tf_", "npz", "safetensors"),
    "tf": ("hdf5", "keras", "npz", "safetensors", "torch_writer"),
}

RUN = """
import sys
from ckptkit.cli.app import main

try:
    main(sys.argv[1:])
finally:
    print(*sys.modules)
"""


OF_TYPER = """
import sys, typer

app = typer.Typer()
app.command()(lambda: print(*sys.modules))
app()
"""


@pytest.fixture(scope="module")
def heavy() -> set[str]:
    """What is heavy, less what any command of typer imports: since typer 0.28 that is pydantic."""
    done = subprocess.run([sys.executable, "-c", OF_TYPER], capture_output=True, text=True, check=True)
    of_typer = HEAVY & {*done.stdout.split()}
    assert of_typer <= {"pydantic"}
    return HEAVY - of_typer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PyTorch file as published."""
    path = tmp_path_factory.mktemp("source") / "published.pth"
    write_checkpoint(Synthetic("moganet-xt"), path)
    return path


@pytest.mark.parametrize("to", FOREIGN)
def test_only_what_the_two_formats_need_is_imported(
    to: str, source: Path, heavy: set[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", RUN, "convert", str(source), "--to", to, "-o", str(tmp_path / "result")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert {"ckptkit.convert.pipeline", "ckptkit.formats.torch_reader"} <= loaded
    assert not heavy & {name.partition(".")[0] for name in loaded}
    formats = {
        name.removeprefix("ckptkit.formats.") for name in loaded if name.startswith("ckptkit.formats.")
    }
    assert not {name for name in formats if name.startswith(FOREIGN[to])}
    assert "ckptkit.registry.schema" not in loaded, "a model of pydantic's, whose making takes as long"
    if to == "safetensors":
        assert "numpy" not in loaded, "bytes that do not change need no numpy"
