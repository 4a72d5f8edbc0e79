"""Filling the Keras MOAT straight from TensorFlow checkpoints, by their own names."""

from __future__ import annotations

import json
import tarfile

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from ckptkit.base.errors import ConversionError
from ckptkit.families.filling import tensors_of
from ckptkit.families.keras_backend import tf
from ckptkit.families.moat import keras_model
from tests.support.moat_keras import GOLDEN_TOLERANCE, logits_departure
from tests.support.moat_reference import (
    load_golden,
    moat_variables,
    recipe_tensor,
    recipe_weights,
    variable_shapes,
)

EMA = "/ExponentialMovingAverage"


def test_stem_names_without_scope_are_taken():
    case = load_golden("tiny_moat0_nope_256_pool2")
    weights = {n.removeprefix("moat/stem/"): w for n, w in recipe_weights("tiny-moat0", False).items()}
    assert "conv_0/kernel" in weights
    model = keras_model.build("tiny-moat0", pos_emb=False)
    keras_model.load_published(model, weights.keys(), weights.__getitem__)
    assert logits_departure(model, case) <= GOLDEN_TOLERANCE


def with_twins(pos_emb=False):
    """Return a checkpoint whose plain parameters are doubled and whose twins are the recipe's."""
    trainable = {name: flag for name, _shape, flag in moat_variables()["tiny-moat0"]["variables"]}
    weights = recipe_weights("tiny-moat0", pos_emb)
    twins = {n + EMA: w for n, w in weights.items() if trainable[n]}
    return (
        {n: 2 * w if trainable[n] else w for n, w in weights.items()} | twins | {"global_step": np.int64(3)}
    )


def test_suffix_takes_the_moving_averages():
    case = load_golden("tiny_moat0_nope_256_pool2")
    checkpoint = with_twins()
    model = keras_model.build("tiny-moat0", pos_emb=False)
    keras_model.load_published(model, checkpoint.keys(), checkpoint.__getitem__, suffix=EMA)
    assert logits_departure(model, case) <= GOLDEN_TOLERANCE
    keras_model.load_published(model, checkpoint.keys(), checkpoint.__getitem__)
    assert logits_departure(model, case) > 0.1


def test_a_parameter_without_its_twin_is_missing():
    checkpoint = with_twins()
    del checkpoint["moat/block_02_03/attention/q/weight" + EMA]
    model = keras_model.build("tiny-moat0", pos_emb=False)
    with pytest.raises(ConversionError, match=r"1 missing \(moat/block_02_03/attention/q/weight/Exp"):
        keras_model.load_published(model, checkpoint.keys(), checkpoint.__getitem__, suffix=EMA)


def test_missing_variables_are_counted_and_named_before_anything_is_read():
    names = [n for n in recipe_weights("tiny-moat0") if "moving_" not in n and "depthwise_kernel" not in n]
    model = keras_model.build("tiny-moat0")

    def read(name):
        raise AssertionError(f"{name} was read")

    with pytest.raises(ConversionError) as caught:
        keras_model.load_published(model, names, read)
    message = str(caught.value)
    assert (
        f"{2 * 43 + 14} missing (moat/stem/norm_0/moving_mean, moat/stem/norm_0/moving_variance, " in message
    )
    assert "\n" not in message


def test_a_wrong_shape_is_named():
    weights = dict(recipe_weights("tiny-moat0"))
    weights["moat/stem/conv_1/kernel"] = weights["moat/stem/conv_1/kernel"][..., :31]
    model = keras_model.build("tiny-moat0")
    with pytest.raises(
        ConversionError, match=r"1 of the wrong shape \(moat/stem/conv_1/kernel \[3, 3, 32, 31\]"
    ):
        keras_model.load_published(model, weights.keys(), weights.__getitem__)


def unpack(shared_folder, name, folder):
    """Unpack a checkpoint written by TensorFlow, and open it with TensorFlow's own reader."""
    with tarfile.open(shared_folder / "checkpoints" / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    (index,) = folder.rglob("*.index")
    reader = tf.train.load_checkpoint(str(index.with_suffix("")))
    return reader, list(reader.get_variable_to_shape_map())


@pytest.mark.parametrize(
    ("name", "case", "suffix"),
    [
        ("tiny_moat0_pe", "tiny_moat0_pe_256_pool2", ""),
        ("tiny_moat0_nope_ema", "tiny_moat0_nope_256_pool2", EMA),
    ],
)
def test_checkpoints_of_the_published_code(name, case, suffix, shared_folder, tmp_path):
    reader, names = unpack(shared_folder, name, tmp_path)
    model = keras_model.build("tiny-moat0", pos_emb=load_golden(case).pos_emb)
    keras_model.load_published(model, names, reader.get_tensor, suffix=suffix)
    assert logits_departure(model, load_golden(case)) <= GOLDEN_TOLERANCE


def test_raw_weights_beside_moving_averages(shared_folder, tmp_path):
    reader, names = unpack(shared_folder, "tiny_moat0_nope_ema", tmp_path)
    model = keras_model.build("tiny-moat0", pos_emb=False)
    keras_model.load_published(model, names, reader.get_tensor)
    variables = tensors_of(model)
    for name, shape in variable_shapes("tiny-moat0", False).items():
        variable = variables[name.replace("depthwise_kernel", "kernel")]
        expected = recipe_tensor(name, shape, key_suffix="#raw" if variable.trainable else "")
        np.testing.assert_array_equal(variable.numpy(), expected, err_msg=name)


def test_object_based_checkpoint_of_the_published_code(shared_folder, tmp_path):
    reader, names = unpack(shared_folder, "tiny_moat0_pe_tf2", tmp_path)
    facts = json.loads((shared_folder / "facts" / "moat_tf2_keys.json").read_text(encoding="utf-8"))
    paths = {facts[path]: path for path in names if facts.get(path)}
    model = keras_model.build("tiny-moat0")
    keras_model.load_published(model, paths, lambda variable: reader.get_tensor(paths[variable]))
    assert logits_departure(model, load_golden("tiny_moat0_pe_256_pool2")) <= GOLDEN_TOLERANCE
