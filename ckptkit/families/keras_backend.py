"""The one place where Keras and TensorFlow are imported: quietly, and Keras on TensorFlow.

Keras chooses its backend once, when it is first imported, so the choice has to come before; TensorFlow reads
how much to log at the same moment.
"""

from __future__ import annotations

import os
import sys

from ckptkit.errors import UsageError

BACKEND = "tensorflow"


def require_backend() -> None:
    """Choose Keras' TensorFlow backend, or say that another one is chosen already.

    Raises
    ------
    UsageError
        When keras is loaded with another backend, or ``KERAS_BACKEND`` asks for one.
    """
    wanted = os.environ.setdefault("KERAS_BACKEND", BACKEND)
    loaded = sys.modules.get("keras")
    backend = loaded.backend.backend() if loaded is not None else wanted
    if backend != BACKEND:
        raise UsageError(
            f"the Keras models need Keras on {BACKEND}, but its backend here is {backend}",
            hint=f"set KERAS_BACKEND={BACKEND} before keras is imported",
        )


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
require_backend()

import tensorflow as tf  # noqa: E402 - the settings above count only before the import
import keras  # noqa: E402, I001 - after tensorflow, on which it stands

__all__ = ["keras", "tf"]
