"""The one place where Keras and TensorFlow are imported: quietly, and Keras on TensorFlow.

Keras chooses its backend once, when it is first imported, so the choice has to come before; TensorFlow reads
how much to log at the same moment.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ckptkit.base.errors import UsageError
from ckptkit.base.text import printed

BACKEND = "tensorflow"
_STDERR = 2


def require_backend() -> None:
    """Choose Keras' TensorFlow backend, or say that another one is chosen already."""
    wanted = os.environ.setdefault("KERAS_BACKEND", BACKEND)
    loaded = sys.modules.get("keras")
    backend = loaded.backend.backend() if loaded is not None else wanted
    if backend != BACKEND:
        raise UsageError(
            f"the Keras models need Keras on {BACKEND}, but its backend here is {backend}",
            hint=f"set KERAS_BACKEND={BACKEND} before keras is imported",
        )


@contextmanager
def stderr_aside() -> Iterator[None]:
    """Keep what native code writes to stderr off the terminal, unless the block fails.

    TensorFlow 2.21's libraries log start-up notes before they look at ``TF_CPP_MIN_LOG_LEVEL``.
    """
    try:
        terminal = os.dup(_STDERR)
    except OSError:  # no stderr at all: nothing to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), _STDERR)
        try:
            yield
        except BaseException:
            aside.seek(0)
            text = aside.read().decode(errors="backslashreplace")
            os.write(terminal, printed(text, "file").encode(errors="backslashreplace"))
            raise
        finally:
            os.dup2(terminal, _STDERR)
            os.close(terminal)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # below 3, a machine without a GPU is an error it logs
require_backend()
with stderr_aside():
    with suppress(ImportError):
        # CUDA builds of torch bring triton 3, whose library crashes when loaded after TensorFlow 2.21's.
        importlib.import_module("triton")
    import tensorflow as tf

    # isort: split
    import keras  # after tensorflow, on which it stands

__all__ = ["keras", "require_backend", "stderr_aside", "tf"]
