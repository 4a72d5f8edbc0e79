"""What Keras and TensorFlow save of our Keras models, restored by them and read by us; on toys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from ckptkit.convert.loading import load_tensors
from ckptkit.convert.pipeline import Options, plan
from ckptkit.families.filling import tensors_of
from ckptkit.families.keras_backend import keras, tf
from ckptkit.formats.detect import open_reader
from ckptkit.models import create_model
from tests.support.toys import MOAT, MOGANET, SETTINGS, SIDE, toy_model, toy_variants

SIGNATURE = [tf.TensorSpec((1, SIDE, SIDE, 3))]


@pytest.fixture(scope="module", autouse=True)
def _toys() -> Iterator[None]:
    with toy_variants():
        yield


@pytest.fixture(scope="module")
def toy(request, tmp_path_factory):
    """Return a toy with the weights of its published file: leave it as it is."""
    return toy_model(tmp_path_factory.mktemp("toys"), request.param, "keras")


def values(model):
    return {name: variable.numpy() for name, variable in tensors_of(model).items()}


def fresh(toy):
    model = create_model(toy.variant, "keras", **SETTINGS[toy.variant])
    assert not all(np.array_equal(array, values(toy)[name]) for name, array in values(model).items())
    return model


def read(path: Path | str, layout="keras"):
    with open_reader(path) as reader:
        return load_tensors(reader, layout)


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# --- every way to save, and back ----------------------------------------------------------------------------


def checkpoint(model, folder):
    return tf.train.Checkpoint(model=model).save(folder / "ck")


def from_checkpoint(path, toy):
    model = fresh(toy)
    tf.train.Checkpoint(model=model).restore(path).assert_consumed()
    return values(model)


def weights(model, folder):
    model.save_weights(folder / "x.weights.h5")
    return folder / "x.weights.h5"


def from_weights(path, toy):
    model = fresh(toy)
    model.load_weights(path)
    return values(model)


def whole(model, folder):
    model.save(folder / "x.keras")
    return folder / "x.keras"


def from_whole(path, toy):
    return values(keras.saving.load_model(path))


def export(model, folder):
    model.export(folder / "exported", verbose=False, input_signature=SIGNATURE)
    return folder / "exported"


def from_export(path, toy):
    return {
        variable.name.removesuffix(":0"): variable.numpy() for variable in tf.saved_model.load(path).variables
    }


def saved_model(model, folder):
    tf.saved_model.save(model, folder / "saved", signatures=tf.function(model, input_signature=SIGNATURE))
    return folder / "saved"


def from_saved_model(path, toy):
    """What was loaded, put into a model just built by the attributes that lead to each variable."""
    model = fresh(toy)
    loaded = tf.saved_model.load(path)
    tf.train.Checkpoint(model=model).read(
        tf.train.Checkpoint(model=loaded).write(f"{path}/again")
    ).assert_consumed()
    return values(model)


WAYS = {
    "tf.train.Checkpoint": (checkpoint, from_checkpoint),
    "save_weights": (weights, from_weights),
    "save": (whole, from_whole),
    "export": (export, from_export),
    "tf.saved_model.save": (saved_model, from_saved_model),
}
SECONDS = {(MOAT, "tf.saved_model.save"), (MOGANET, "export"), (MOGANET, "tf.saved_model.save")}


@pytest.mark.parametrize(
    ("toy", "way"),
    [
        pytest.param(toy, way, marks=[pytest.mark.slow] if (toy, way) in SECONDS else [])
        for toy in (MOAT, MOGANET)
        for way in WAYS
    ],
    indirect=["toy"],
)
def test_every_variable_is_saved_and_restored(toy, tmp_path, way):
    save, restore = WAYS[way]
    path = save(toy, tmp_path)
    assert_same(restore(path, toy), values(toy))
    assert_same(read(path), values(toy))


# --- what training leaves behind ----------------------------------------------------------------------------

OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "averages": lambda: keras.optimizers.AdamW(use_ema=True, gradient_accumulation_steps=2),
    "momentum": lambda: keras.optimizers.SGD(momentum=0.9),
    "mixed precision": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(amsgrad=True)),
    "schedule": lambda: keras.optimizers.RMSprop(
        keras.optimizers.schedules.CosineDecay(0.1, 9), centered=True, momentum=0.9
    ),
    "names that say nothing": keras.optimizers.Adafactor,
    "a name of its own": lambda: keras.optimizers.Nadam(name="mine"),
}


@pytest.mark.parametrize(
    ("toy", "kind"),
    [
        *((MOAT, kind) for kind in OPTIMIZERS),
        (MOGANET, "names that say nothing"),
        pytest.param(MOGANET, "averages", marks=pytest.mark.slow),
    ],
    indirect=["toy"],
)
def test_an_optimizers_state_is_left_out_and_listed(toy, tmp_path, kind):
    optimizer = OPTIMIZERS[kind]()
    optimizer.build(toy.trainable_variables)
    path = tf.train.Checkpoint(model=toy, optimizer=optimizer).save(tmp_path / "ck")
    with open_reader(path) as reader:
        conversion = plan(reader, Options("safetensors"))
        assert {move.source for move in conversion.moves} == values(toy).keys()
        assert len(conversion.ignored) == len(optimizer.variables) + 1
        assert reader.specs.keys() == values(toy).keys() | {one.name for one in conversion.ignored}
        assert {one.rule for one in conversion.ignored} <= {
            "optimizer scalars",
            "optimizer slots",
            "optimizer",
            "moving averages of the optimizer",
            "save_counter",
        }
    assert_same(read(path), values(toy))
