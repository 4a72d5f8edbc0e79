"""A built Keras model written as a TensorFlow SavedModel, and a SavedModel run again.

The folder has one signature, ``serving_default``, from ``images`` (N, H, W, 3) float32 to ``logits``, or to
the stages. Its variables keep their names of the ``keras`` layout, so that ckptkit reads the folder as it
reads any checkpoint. Other facts about it are in ``assets.extra/ckptkit.json``: that folder is
for files of higher-level libraries, which TensorFlow itself leaves alone
(tensorflow/python/saved_model/README.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ckptkit.base.errors import ConversionError, FormatError
from ckptkit.base.files import translated
from ckptkit.base.tensors import Array
from ckptkit.base.text import json_text
from ckptkit.models.graphs.onnx_graph import first_line

INPUT = "images"
LOGITS = "logits"
SIGNATURE = "serving_default"
FACTS = "assets.extra/ckptkit.json"

CONTENTS = frozenset({"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra"})
"""What such a folder holds, at its top."""


def write_saved_model(
    model: Any,
    folder: Path,
    *,
    size: tuple[int, int],
    features: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Write a model as a SavedModel."""
    from ckptkit.families.filling import tensors_of
    from ckptkit.families.keras_backend import stderr_aside, tf

    names: list[str] = []

    def serve(images: Any) -> dict[str, Any]:
        outputs = model.forward_stages(images, head=not features)
        chosen = {LOGITS: outputs[LOGITS]} if LOGITS in outputs else outputs
        names[:] = chosen
        return chosen

    specification = tf.TensorSpec((None, *size, 3), tf.float32, name=INPUT)
    with translated(folder):
        try:
            with stderr_aside(), tf.device("CPU:0"):
                function = tf.function(serve, input_signature=[specification], autograph=False)
                signatures = {SIGNATURE: function.get_concrete_function()}
                tf.saved_model.save(_named(tensors_of(model), tf), str(folder), signatures=signatures)
        except tf.errors.OpError as error:
            raise ConversionError(f"{folder}: TensorFlow cannot write the model: {error.message}") from error
        path = folder / FACTS
        path.parent.mkdir()
        path.write_text(json_text(dict(facts or {}), indent=2) + "\n", encoding="utf-8")
    return tuple(names)


def _named(variables: Mapping[str, Any], tf: Any) -> Any:
    """Put variables into an object through which each is reached by the parts of its name."""
    root = tf.Module()
    for name, variable in variables.items():
        *parts, leaf = name.split("/")
        place = root
        for part in parts:
            if not hasattr(place, part):
                setattr(place, part, tf.Module())
            place = getattr(place, part)
        setattr(place, leaf, variable.value)
    return root


def load_saved_model(folder: Path) -> Callable[[Array], dict[str, Array]]:
    """Load a SavedModel as any TensorFlow program would, on the CPU."""
    from ckptkit.families.keras_backend import stderr_aside, tf

    try:
        with stderr_aside(), tf.device("CPU:0"):
            loaded = tf.saved_model.load(str(folder))
    except (OSError, ValueError, TypeError, KeyError, tf.errors.OpError) as error:
        raise FormatError(folder, f"TensorFlow cannot load it: {first_line(error)}") from error
    if SIGNATURE not in loaded.signatures:
        raise FormatError(folder, f"it has no signature {SIGNATURE}")

    def run(images: Array) -> dict[str, Array]:
        try:
            with tf.device("CPU:0"):  # `loaded` owns the variables: it must live as long as its signature
                outputs = loaded.signatures[SIGNATURE](**{INPUT: tf.constant(images)})
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise FormatError(folder, f"TensorFlow cannot run it: {first_line(error)}") from error
        names = sorted(outputs, key=lambda name: (name == LOGITS, name))
        return {name: outputs[name].numpy() for name in names}

    return run
