"""What Keras configurations, HDF5 files and graphs of ONNX and TensorFlow would do when they are loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ckptkit.base.budget import Budget
from ckptkit.compare.security import Finding, Severity
from ckptkit.formats.hdf5_reader import EXTERNAL_FILES, LAYOUT, MAX_DEPTH, Hdf5File, single
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.formats.pickle_names import what_it_does
from ckptkit.formats.protobuf_wire import LENGTH_DELIMITED, places

# -- Keras ---------------------------------------------------------------------------------------------------

_KERAS_MODULES = ("keras", "tensorflow", "tf_keras", "keras_core", "keras_hub", "keras_cv", "keras_nlp")
_HARMLESS_BUILTINS = frozenset({"function", "dict", "list", "tuple", "slice", "type", "str", "int", "float"})
_SHOWN = 120
_PARSED_STEPS = 4


def keras_config(text: str, place: str, budget: Budget) -> Iterator[Finding]:
    """Findings in the configuration of a model: marshalled functions, and modules that it imports."""
    budget.spend(nbytes=len(text), steps=len(text) // _PARSED_STEPS)
    try:
        waiting: list[Any] = [json.loads(text)]
    except (ValueError, RecursionError):
        yield Finding("suspicious", "not-scanned", place, None, "configuration", "it is not valid JSON")
        return
    seen: set[tuple[str, str]] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            for severity, what, why in _node(value):
                if (what, why) not in seen:
                    seen.add((what, why))
                    yield Finding(severity, "keras-code", place, None, what, why)


def _node(node: dict[str, Any]) -> Iterator[tuple[Severity, str, str]]:
    kind, module, config = (node.get(key) for key in ("class_name", "module", "config"))
    inner = config if isinstance(config, dict) else {}
    name = inner.get("name") if isinstance(inner.get("name"), str) else ""
    if kind == "__lambda__":
        yield "dangerous", "__lambda__", "holds a marshalled Python function, which loading unpacks"
    if kind == "Lambda":
        function = inner.get("function")
        shown = f"Lambda layer {name}".strip()
        if inner.get("function_type") == "lambda" or isinstance(function, list):
            yield "dangerous", shown, "holds a marshalled Python function, which the model runs"
        elif isinstance(function, str):
            yield "suspicious", shown, f"runs a function of other code: {function[:_SHOWN]}"
        elif not isinstance(function, dict):
            yield "suspicious", shown, "runs a function that the configuration does not hold"
        else:
            yield "suspicious", shown, "runs a function that is not a layer of Keras"
    if isinstance(kind, str) and isinstance(module, str):
        yield from _import(module, kind, config)


def _import(module: str, kind: str, config: Any) -> Iterator[tuple[Severity, str, str]]:
    """What Keras imports to make an object of a class that a module has."""
    attribute = config if kind == "function" and isinstance(config, str) else kind
    name = f"{module}.{attribute}"[:_SHOWN]
    root = module.partition(".")[0]
    does = what_it_does(f"{module}.{attribute}")
    if does is not None:
        yield "dangerous", name, does
    elif root not in (*_KERAS_MODULES, "builtins") or (root == "builtins" and kind not in _HARMLESS_BUILTINS):
        yield "suspicious", name, "is imported from other code when the model is loaded"
    elif root in ("tensorflow", "keras") and attribute != kind and ".ops" not in module:
        yield "suspicious", name, "is a function that is called in place of a layer"


# -- HDF5 ----------------------------------------------------------------------------------------------------

_CONFIGS = ("model_config", "training_config")
_VIRTUAL = 3


def hdf5(file: Hdf5File, place: str, budget: Budget) -> Iterator[Finding]:
    """Links to other files, data kept in others, and the configuration in a legacy Keras file."""
    texts = file.attribute_texts(file.header(file.root))
    for key in _CONFIGS:
        text = single(texts.get(key))
        if text is not None:
            yield from keras_config(text, _inside(place, key), budget)
    file.outside = []
    waiting, seen = [("", file.root, 0)], {file.root}
    while waiting:
        path, address, depth = waiting.pop()
        header = file.header(address)
        if next(header.bodies(EXTERNAL_FILES), None) is not None:
            why = "its values are in another file, which reading it opens"
            yield Finding("suspicious", "hdf5-outside", place, address, path, why)
        layout = header.body(LAYOUT)
        if layout is not None and layout.again().fields("BB")[1] == _VIRTUAL:
            why = "a virtual dataset, whose values can be in other files"
            yield Finding("suspicious", "hdf5-outside", place, address, path, why)
        if not header.is_group:
            continue
        for name, link in file.links(header).items():
            budget.spend(nodes=1, names=len(path), steps=8)
            if link.address is not None and link.address not in seen and depth < MAX_DEPTH:
                seen.add(link.address)
                waiting.append((f"{path}/{name}", link.address, depth + 1))
        for name, target in file.outside:
            why = f"a link to another file: {target[:_SHOWN]}"
            yield Finding("suspicious", "hdf5-outside", place, address, f"{path}/{name}", why)
        file.outside.clear()


def _inside(place: str, part: str) -> str:
    return f"{place}/{part}" if place else part


# -- ONNX ----------------------------------------------------------------------------------------------------

_MESSAGES = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "tensor": {13: "pair"},
}
"""Fields that lead to tensors, by the message that they are in; ``pair`` is where one is kept elsewhere."""
_MAX_NESTED = 100


def onnx(file: MappedFile, place: str, budget: Budget) -> Iterator[Finding]:
    """Files that the tensors of a model are in, where they are outside its folder."""
    seen: set[str] = set()
    waiting: list[tuple[str, int, int, int]] = [("model", 0, file.size, 0)]
    while waiting:
        kind, start, stop, depth = waiting.pop()
        for number, wire, begin, end in places(file.data, start, stop, budget):
            inner = _MESSAGES[kind].get(number)
            if inner is None or wire != LENGTH_DELIMITED or depth > _MAX_NESTED:
                continue
            if inner != "pair":
                waiting.append((inner, begin, end, depth + 1))
                continue
            location = _location(file, begin, end, budget)
            if location is None or location in seen:
                continue
            seen.add(location)
            why = _leaves(location, file.path)
            if why is not None:
                yield Finding("suspicious", "onnx-outside", place, begin, location[:_SHOWN], why)


def _location(file: MappedFile, start: int, stop: int, budget: Budget) -> str | None:
    """The value of a pair whose key is ``location``."""
    held = {number: (begin, end) for number, _, begin, end in places(file.data, start, stop, budget)}
    texts = [file.data[slice(*held.get(number, (0, 0)))].decode(errors="replace") for number in (1, 2)]
    budget.spend(names=len(texts[1]))
    return texts[1] if texts[0] == "location" else None


def _leaves(location: str, model: Path) -> str | None:
    way = PurePosixPath(location.replace("\\", "/"))
    if way.is_absolute() or PureWindowsPath(location).drive:
        return "weights in a file with an absolute path, which loading opens"
    if ".." in way.parts:
        return "weights in a file outside the model's folder, which loading opens"
    try:
        linked = any((model.parent / part).is_symlink() for part in (way, *way.parents) if part.parts)
    except (OSError, ValueError):
        linked = True
    return "weights in a file that is reached through a link" if linked else None


# -- TensorFlow graphs, TorchScript --------------------------------------------------------------------------

_TF_OPERATIONS = {
    b"WriteFile": "writes files",
    b"ReadFile": "reads files",
    b"PyFunc": "calls a Python function",
    b"PyFuncStateless": "calls a Python function",
    b"EagerPyFunc": "calls a Python function",
    b"MatchingFiles": "lists files",
    b"SaveV2": "writes files",
    b"PrintV2": "prints, perhaps to a file",
}
_MARSHALLED = b'"function_type": "lambda"'
_OF_SAVING = frozenset({b"SaveV2"})  # which every model with a function to save itself has
_SCRIPT = re.compile(rb"\b(?:torch\.(?:from_file|save|load)|ops\.(?!prim\b|aten\b)\w+\.\w+)")


def saved_model(file: MappedFile, place: str) -> Iterator[Finding]:
    """Operations that touch files, by name: as texts they have their length before them."""
    at = file.data.find(_MARSHALLED, 0, file.size)
    if at >= 0:
        why = "holds a marshalled Python function, which the model runs"
        yield Finding("dangerous", "keras-code", place, at, "Lambda layer", why)
    for name, does in _TF_OPERATIONS.items():
        at = file.data.find(bytes([len(name)]) + name, 0, file.size)
        if at >= 0:
            severity: Severity = "harmless" if name in _OF_SAVING else "suspicious"
            why = f"an operation of the graph that {does}"
            yield Finding(severity, "graph-code", place, at + 1, name.decode(), why)


def torchscript(raw: bytes, place: str) -> Iterator[Finding]:
    """Code that torch's own interpreter runs, and what of it reaches beyond tensors."""
    yield Finding(
        "harmless", "graph-code", place, None, "TorchScript", "a program for torch's own interpreter"
    )
    for found in _SCRIPT.finditer(raw):
        why = "an operation that can read or write files, or is that of an extension"
        yield Finding("suspicious", "graph-code", place, found.start(), found[0].decode()[:_SHOWN], why)
