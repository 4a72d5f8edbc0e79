"""SavedModels: loaded by TensorFlow alone in a process without ckptkit, and read by ckptkit's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from ckptkit.base.errors import FormatError
from ckptkit.families.filling import tensors_of
from ckptkit.families.recognition import recognise
from ckptkit.formats.detect import open_reader
from ckptkit.models.graphs.saved_model import CONTENTS, FACTS, load_saved_model, write_saved_model
from tests.support.toys import MOAT, MOGANET, SIDE, STAGES, toy_model

SAID = {"entry": "a-toy", "resolution": [SIDE, SIDE]}
LOADED_ALONE = """
import sys
import numpy as np
import tensorflow as tf

sys.modules["ckptkit"] = sys.modules["keras"] = None
signature = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
(images,) = signature.structured_input_signature[1].values()
print(images.name, images.dtype.name, images.shape.as_list(), signature.structured_outputs)
batches = np.load(sys.argv[2])
found = {name: signature(images=tf.constant(batch))["logits"] for name, batch in batches.items()}
found = {name: signature(images=tf.constant(batch))["logits"] for name, batch in batches.items()}
np.savez(sys.argv[3], **found)
"""


class Written(NamedTuple):
    """A SavedModel of a toy with its Keras model."""

    variant: str
    model: Any
    folder: Path
    outputs: tuple[str, ...]


def write(folder: Path, variant: str, **options: Any) -> Written:
    model = toy_model(folder, variant, "keras")
    path = folder / "saved"
    path.mkdir()
    outputs = write_saved_model(model, path, size=(SIDE, SIDE), facts=SAID, **options)
    return Written(variant, model, path, outputs)


@pytest.fixture(scope="module")
def moat(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("moat"), MOAT)


@pytest.fixture(scope="module")
def moganet(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """With the stages instead of logits."""
    return write(tmp_path_factory.mktemp("moganet"), MOGANET, features=True)


def images_of(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, SIDE, SIDE, 3), dtype=np.float32)


def test_it_takes_batches_of_any_number(moat: Written):
    run = load_saved_model(moat.folder)
    for number in (1, 2, 5):
        found = run(images_of(number))
        assert list(found) == ["logits"]
        np.testing.assert_allclose(found["logits"], moat.model(images_of(number)).numpy(), atol=1e-5)


@pytest.mark.slow
def test_tensorflow_alone_runs_it_with_batches_of_any_number(moat: Written, tmp_path: Path):
    batches = {f"batch{number}": images_of(number) for number in (1, 2, 5)}
    np.savez(tmp_path / "in.npz", **batches)
    done = subprocess.run(
        [sys.executable, "-c", LOADED_ALONE, moat.folder, tmp_path / "in.npz", tmp_path / "out.npz"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"TF_CPP_MIN_LOG_LEVEL": "3", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"images float32 [None, {SIDE}, {SIDE}, 3] {{'logits': TensorSpec(")
    found = np.load(tmp_path / "out.npz")
    for name, batch in batches.items():
        np.testing.assert_allclose(found[name], moat.model(batch).numpy(), atol=1e-5, err_msg=name)


def test_stages_can_be_had(moganet: Written):
    assert moganet.outputs == STAGES[MOGANET]
    outputs = load_saved_model(moganet.folder)(images_of(3))
    wanted = moganet.model.forward_stages(images_of(3), head=False)
    assert list(outputs) == list(wanted) == list(STAGES[MOGANET])
    for name, output in outputs.items():
        np.testing.assert_allclose(output, wanted[name].numpy(), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("which", ["moat", "moganet"])
def test_ckptkit_reads_its_variables_as_any_checkpoint(which: str, request: pytest.FixtureRequest):
    written: Written = request.getfixturevalue(which)
    held = {name: v.numpy() for name, v in tensors_of(written.model).items()}
    with open_reader(written.folder) as reader:
        found = recognise(reader.specs)
        assert found is not None
        assert (found.variant, found.layout) == (written.variant, "keras")
        assert reader.specs.keys() == held.keys()
        for name, array in held.items():
            np.testing.assert_array_equal(reader.read(name), array, err_msg=name)


def test_the_folder_holds_what_it_is_said_to_hold(moat: Written):
    assert {path.name for path in moat.folder.iterdir()} <= CONTENTS
    assert json.loads((moat.folder / FACTS).read_text(encoding="utf-8")) == SAID
    assert moat.outputs == ("logits",)


def test_nothing_of_this_machine_is_in_the_graph(moat: Written):
    graph = (moat.folder / "saved_model.pb").read_bytes()
    for trace in (str(Path.cwd()), str(moat.folder.parent), "keras_model.py"):
        assert trace.encode() not in graph


def no_graph(folder: Path) -> None:
    (folder / "saved_model.pb").unlink()


def cut_graph(folder: Path) -> None:
    path = folder / "saved_model.pb"
    path.write_bytes(path.read_bytes()[:1000])


def no_variables(folder: Path) -> None:
    (folder / "variables" / "variables.index").unlink()


@pytest.mark.parametrize("damage", [no_graph, cut_graph, no_variables])
def test_a_damaged_folder_is_refused_in_one_line(
    damage: Callable[[Path], None], moat: Written, tmp_path: Path
):
    import shutil

    folder = tmp_path / "saved"
    shutil.copytree(moat.folder, folder)
    damage(folder)
    with pytest.raises(FormatError, match="TensorFlow cannot load it: "):
        load_saved_model(folder)


def test_a_folder_without_the_signature_is_refused(tmp_path: Path):
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path / "bare"))
    with pytest.raises(FormatError, match="no signature serving_default"):
        load_saved_model(tmp_path / "bare")


def test_inputs_of_another_size_are_refused(moat: Written):
    with pytest.raises(FormatError, match="TensorFlow cannot run it: "):
        load_saved_model(moat.folder)(images_of(1)[:, :32])
