"""Record what a model computes, stage by stage, in a file that ``ckptkit parity --case`` reads.

This file needs Python 3.6 or newer and numpy, nothing else: ``ckptkit record --emit recorder.py`` writes it
out for an environment where ckptkit cannot be installed::

    from recorder import Recorder

    with Recorder("left.npz", layout="NHWC") as recorder:
        recorder.input("images", images)
        recorder.record("stem", array)       # by hand, in the order of execution
        recorder.session(session, {"block1": "net/Relu:0"}, feed)  # TensorFlow 1
        with recorder.torch(model):          # every module; keras() for layers
            recorder.output(model(torch.from_numpy(images)))

Names are in the order of execution. A layer or module that runs again is recorded as ``name#2``.
"""

import contextlib
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np


def to_numpy(value: Any) -> Any:
    """An array of a framework's tensor, or None where it has no values."""
    if hasattr(value, "detach"):  # PyTorch: half precision has no other way to numpy
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        return np.array(value.numpy())
    if hasattr(value, "numpy"):  # TensorFlow, eager
        value = value.numpy()
    elif not isinstance(value, (np.ndarray, np.generic)) and not hasattr(value, "__array__"):
        return None
    try:
        array = np.array(value)
    except Exception:  # a symbolic tensor
        return None
    if array.dtype.kind == "V" or str(array.dtype) == "bfloat16":
        array = array.astype(np.float32)
    return array if array.dtype.kind in "fiub" else None


def tensors_in(value: Any, name: str) -> "list[Any]":
    """Pairs of name and value: one of a tensor, several of a tuple or a dictionary of them."""
    if value is None or isinstance(value, (str, bytes, bool, int, float)):
        return []
    if hasattr(value, "items"):
        return [pair for key, one in value.items() for pair in tensors_in(one, name + "." + str(key))]
    fields = getattr(value, "_fields", None) or getattr(type(value), "__dataclass_fields__", None)
    if fields:  # of a named tuple or a dataclass
        return [pair for key in fields for pair in tensors_in(getattr(value, key), name + "." + key)]
    if isinstance(value, (list, tuple)):
        if len(value) == 1:
            return tensors_in(value[0], name)
        return [pair for i, one in enumerate(value) for pair in tensors_in(one, name + "." + str(i))]
    return [(name, value)]


class Recorder:
    """Collects arrays by name, and saves them."""

    def __init__(self, path: Any = None, layout: Any = None, wanted: Any = None, most: int = 0) -> None:
        self.path = path  # where `save` writes when a block ends
        self.layout = layout  # "NCHW" or "NHWC", of images and of maps
        self.wanted = wanted  # names to record; None for all
        self.most = most  # bytes; 0 for any number
        self.inputs = {}  # type: dict[str, Any]
        self.arrays = {}  # type: dict[str, Any]
        self.outputs = []  # type: list[str]
        self.seen = []  # type: list[str]
        self.total = 0
        self._calls = {}  # type: dict[str, int]

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None and self.path is not None:
            self.save(self.path)

    def input(self, name: str, array: Any) -> None:
        """Keep what the model was given."""
        self.inputs[name] = np.asarray(array)

    def record(self, name: str, value: Any) -> None:
        """Keep what a stage gave: an array, a tensor, or several of them."""
        self._calls[name] = self._calls.get(name, 0) + 1
        if self._calls[name] > 1:
            name = name + "#" + str(self._calls[name])
        for part, one in tensors_in(value, name):
            self.seen.append(part)
            if self._wants(part):
                array = to_numpy(one)
                if array is not None:
                    self._keep(part, array)

    def output(self, value: Any, name: str = "output") -> None:
        """Keep what the model gave."""
        for part, one in tensors_in(value, name):
            array = to_numpy(one)
            if array is not None:
                self._keep(part, array)
                self.outputs.append(part)

    def _wants(self, name: str) -> bool:
        if self.wanted is None:
            return True
        return any(name == one or name.endswith("/" + one) for one in self.wanted)

    def _keep(self, name: str, array: Any) -> None:
        self.total += array.nbytes
        if self.most and self.total > self.most:
            raise MemoryError("the outputs of all stages take more than " + str(self.most >> 20) + " MB")
        self.arrays[name] = array

    @contextlib.contextmanager
    def torch(self, model: Any) -> "Iterator[Any]":
        """Record the output of every module of a PyTorch model that runs while the block lasts."""

        def hook_for(name: str) -> Any:
            return lambda module, given, result: self.record(name, result)

        hooks = [
            module.register_forward_hook(hook_for(name)) for name, module in model.named_modules() if name
        ]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    @contextlib.contextmanager
    def keras(self, layer_class: Any, root: str = "") -> "Iterator[Any]":
        """Record the output of every layer that runs eagerly; give ``keras.layers.Layer``."""
        original = layer_class.__call__

        def call(layer: Any, *args: Any, **options: Any) -> Any:
            result = original(layer, *args, **options)
            name = layer_name(layer, root)
            if name:
                self.record(name, result)
            return result

        layer_class.__call__ = call
        try:
            yield self
        finally:
            layer_class.__call__ = original

    def session(self, session: Any, tensors: Any, feed: Any = None) -> None:
        """Record tensors of a TensorFlow 1 graph: a dictionary of names and tensors, or their names."""
        names = list(tensors)
        for name, value in zip(names, session.run([tensors[name] for name in names], feed)):  # noqa: B905
            self.record(name, value)

    def save(self, path: Any) -> None:
        """Write a file of numpy's, with what ckptkit wants to know of it in the archive's comment."""
        about = {"outputs": json.dumps(self.outputs)}
        if self.layout:
            about["layout"] = self.layout
        arrays = [("inputs/" + name, array) for name, array in self.inputs.items()]
        arrays += list(self.arrays.items())
        with zipfile.ZipFile(str(path), "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, array in arrays:
                with archive.open(name + ".npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            archive.comment = b"ckptkit:" + json.dumps(about).encode()


def layer_name(layer: Any, root: str = "") -> str:
    """A Keras layer's name with those of what contains it, without that of the model itself."""
    path = str(getattr(layer, "path", None) or layer.name)
    if path == root:
        return ""
    return path[len(root) + 1 :] if root and path.startswith(root + "/") else path
