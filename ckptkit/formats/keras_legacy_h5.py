"""The ``.h5`` files of Keras 1 and 2, which tf-keras and Keras 3's legacy saving write too.

``model.save_weights`` writes one group a layer, named by the root's attribute ``layer_names``; the group's
attribute ``weight_names`` names the datasets under it. ``model.save`` puts the same under the group
``model_weights``, beside the optimizer's state. Weights outside of any layer are in a group of their own
(since 2.11). Source: keras/src/legacy/saving/legacy_h5_format.py, and files written by tf-keras 2.21.

The first Keras (0.x) had no names: the root's attribute ``nb_layers`` counts groups ``layer_0``, ``layer_1``
…, and each one's ``nb_params`` its datasets ``param_0`` …; a tensor is called ``layer_0/param_0``.

A tensor is called by its weight's whole name without TensorFlow's ``:0``: ``moat/stem/conv_0/kernel``. Where
that does not name the layer (a model inside a model, a layer without a scope), the layer's name stands before
it: ``dense_1/kernel``. So a name says where the weight belongs, whatever else is in the file.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import DTYPES
from ckptkit.formats.hdf5_attributes import Attributes, Texts, single
from ckptkit.formats.hdf5_bytes import Hdf5Bytes
from ckptkit.formats.hdf5_datasets import Dataset, NotRead
from ckptkit.formats.hdf5_objects import Header, Objects
from ckptkit.formats.hdf5_types import BRAIN_FLOAT, VOID16

NEITHER = NotRead("neither a group nor a dataset")
"""Other objects, which hold no values."""

_LAYERS, _WEIGHTS = "layer_names", "weight_names"
_MODEL_WEIGHTS, _OPTIMIZER = "model_weights", "optimizer_weights"
_OUTSIDE_LAYERS = "top_level_model_weights"
_ORIGIN = ("keras_version", "backend")
_CONFIG = "model_config"
_COUNTED_LAYERS, _COUNTED_WEIGHTS = "nb_layers", "nb_params"
_MARKS = frozenset({_LAYERS, f"{_LAYERS}0", "keras_version", _CONFIG, _COUNTED_LAYERS})
_VARIABLE = ":0"


@dataclass(frozen=True)
class Contents:
    """The objects under the root group of an HDF5 file, by path.

    Parameters
    ----------
    groups : dict of str to Header
    objects : dict of str to Dataset or NotRead
        Everything else.
    """

    groups: dict[str, Header] = field(default_factory=dict)
    objects: dict[str, Dataset | NotRead] = field(default_factory=dict)

    @property
    def datasets(self) -> dict[str, Dataset]:
        """The tensors."""
        return {path: one for path, one in self.objects.items() if isinstance(one, Dataset)}

    def not_read(self, *, tensors: bool) -> dict[str, str]:
        """Why the rest is none: of tensors that cannot be carried, or of what is no tensor of the model."""
        return {
            path: one.why
            for path, one in self.objects.items()
            if isinstance(one, NotRead) and one.is_tensor is tensors
        }


@dataclass(frozen=True)
class _Weight:
    """One weight that a layer lists.

    Parameters
    ----------
    layer, name : str
        As they make up tensors' names.
    path : str
        Of its dataset, from the root.
    """

    layer: str
    name: str
    path: str


def is_legacy(of_root: Mapping[str, Texts]) -> bool:
    """Whether the attributes of a file's root group are those that Keras 1 and 2 write.

    Examples
    --------
    >>> is_legacy({"layer_names": ("dense",), "backend": ("tensorflow",)}), is_legacy({"ckptkit": ("{}",)})
    (True, False)
    """
    return not _MARKS.isdisjoint(of_root)


def legacy_weights(
    objects: Objects, attributes: Attributes, of_root: Mapping[str, Texts], found: Contents
) -> tuple[Contents, dict[str, str]]:
    """Name the weights of a file by its own lists of them.

    Parameters
    ----------
    objects : Objects
    attributes : Attributes
    of_root : Mapping of str to Texts
        Attributes of the root group.
    found : Contents
        Every object in the file.

    Returns
    -------
    Contents
        The listed weights, layer by layer, by the names of tensors; notes on what else there is.
    dict of str to str
        ``keras_version`` and ``backend``, where the file says them.

    Raises
    ------
    FormatError
        A list that is missing or no list of texts; a layer or weight that is listed and not there, or listed
        twice; names that no tensor can have.
    """
    if _COUNTED_LAYERS in of_root and _LAYERS not in of_root:
        return _counted_weights(objects, attributes, found), {}
    return _LegacyFile(objects.source, attributes, of_root, found).weights()


def _counted_weights(objects: Objects, attributes: Attributes, found: Contents) -> Contents:
    """The weights of Keras 0.x, whose layers and weights have numbers for names."""
    kept = Contents()
    layers = _count(objects, attributes, objects.header(objects.root), _COUNTED_LAYERS, "/")
    for layer in (f"layer_{number}" for number in range(layers)):
        if layer not in found.groups:
            raise objects.source.error(
                f"no group {layer} of the {layers} layers that {_COUNTED_LAYERS} counts"
            )
        weights = _count(objects, attributes, found.groups[layer], _COUNTED_WEIGHTS, layer)
        for path in (f"{layer}/param_{number}" for number in range(weights)):
            if path not in found.objects:
                raise objects.source.error(f"no {path} of the {weights} that {_COUNTED_WEIGHTS} counts")
            kept.objects[path] = found.objects[path]
    others = [path for path in found.objects if path not in kept.objects]
    kept.objects.update(dict.fromkeys(others, NotRead(f"not among its layer's {_COUNTED_WEIGHTS}")))
    return kept


def _count(objects: Objects, attributes: Attributes, group: Header, name: str, path: str) -> int:
    number = attributes.number(group, name)
    if number is None or number < 0:
        raise objects.source.error(f"group {path}: its attribute {name} is not a count")
    return number


def _whole_name(weight: _Weight) -> str:
    """A weight's name, behind its layer's where that is not in it."""
    scoped = weight.layer == _OUTSIDE_LAYERS or _is_scoped(weight)
    return weight.name if scoped else f"{weight.layer}/{weight.name}"


def _is_scoped(weight: _Weight) -> bool:
    """Whether its layer's name is a step of a weight's name, whole or up to ``_`` or ``:``."""
    layer, name = weight.layer, weight.name
    at = name.find(layer)
    while at >= 0:
        if (at == 0 or name[at - 1] == "/") and name[at + len(layer) :][:1] in ("", "/", "_", ":"):
            return True
        at = name.find(layer, at + 1)
    return False


def _layers_of_bfloat16(config: str) -> set[str]:
    """Layers whose variables are bfloat16, as a model's configuration says; a file of weights has none.

    Examples
    --------
    >>> _layers_of_bfloat16('{"config": {"layers": [{"config": {"name": "d", "dtype": "bfloat16"}}]}}')
    {'d'}
    """
    layers: set[str] = set()
    with contextlib.suppress(ValueError, RecursionError):
        waiting = [json.loads(config)]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                name, policy = value.get("name"), value.get("dtype")
                policy = policy.get("config", {}) if isinstance(policy, dict) else {"name": policy}
                if isinstance(name, str) and isinstance(policy, dict) and policy.get("name") == BRAIN_FLOAT:
                    layers.add(name)
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value
    return layers


class _LegacyFile:
    """Walks over the lists of a file."""

    def __init__(
        self, source: Hdf5Bytes, attributes: Attributes, of_root: Mapping[str, Texts], found: Contents
    ) -> None:
        self._source = source
        self._attributes = attributes
        self._found = found
        self._of_root = self._of_top = of_root
        self._top = ""  # path of the group with the layers, with a slash behind
        if not {_LAYERS, f"{_LAYERS}0"} & of_root.keys():
            if _MODEL_WEIGHTS not in found.groups:
                raise source.error(
                    f"a Keras 2 file without weights: neither {_LAYERS} nor a group {_MODEL_WEIGHTS}",
                    hint="save the model's weights with model.save_weights",
                )
            self._of_top = attributes.texts(found.groups[_MODEL_WEIGHTS])
            self._top = f"{_MODEL_WEIGHTS}/"

    def weights(self) -> tuple[Contents, dict[str, str]]:
        """Name the tensors."""
        listed = list(self._listed())
        paths = {weight.path for weight in listed}
        kept = Contents()
        brain = _layers_of_bfloat16(single(self._of_root.get(_CONFIG)) or "")
        for name, weight in self._named(listed).items():
            found = self._found.objects.get(weight.path, NEITHER)
            if found == NEITHER:
                raise self._error(f"no dataset {weight.path}, which its layer lists among its weights")
            if isinstance(found, Dataset) and found.dtype == VOID16 and weight.layer in brain:
                found = replace(found, dtype=DTYPES[BRAIN_FLOAT])
            kept.objects[name] = found
        kept.objects.update(self._others(paths))
        return kept, self._origin()

    # -- lists -----------------------------------------------------------------------------------------------

    def _listed(self) -> Iterator[_Weight]:
        """Every weight that a layer lists, in order."""
        layers = [self._path(name, "layer") for name in self._list(self._of_top, _LAYERS, self._top)]
        if _OUTSIDE_LAYERS not in layers and self._top + _OUTSIDE_LAYERS in self._found.groups:
            layers.append(_OUTSIDE_LAYERS)
        self._refuse_twice(layers)
        for layer in layers:
            group = self._top + layer
            if group not in self._found.groups:
                raise self._error(f"no group of the layer {group}, which {_LAYERS} lists")
            texts = self._attributes.texts(self._found.groups[group])
            for text in self._list(texts, _WEIGHTS, group):
                name = self._path(text, "weight")
                yield _Weight(layer, name.removesuffix(_VARIABLE), f"{group}/{name}")

    def _list(self, texts: Mapping[str, Texts], name: str, group: str) -> list[str]:
        """A list of texts, which stands in several attributes where one cannot hold it."""
        numbers = sorted(
            int(end)
            for end in (key.removeprefix(name) for key in texts if key.startswith(name))
            if end.isascii() and end.isdecimal() and len(end) < 9
        )
        parts = [name] if name in texts else [f"{name}{number}" for number in numbers]
        whole = not numbers if name in texts else numbers == list(range(len(numbers)))
        if not parts or not whole:
            what = "no attribute" if not parts else "parts missing, or too many, of the attribute"
            raise self._error(f"group {group or '/'}: {what} {name}")
        found: list[str] = []
        for part in parts:
            values = texts.get(part)
            if values is None:
                raise self._error(f"group {group or '/'}: its attribute {part} is no list of texts")
            found += values
        return found

    def _path(self, name: str, what: str) -> str:
        """A name as HDF5 follows it, which takes several slashes for one."""
        steps = [step for step in name.split("/") if step]
        if name.startswith("/") or not steps or steps[-1] == _VARIABLE or {".", ".."} & set(steps):
            raise self._error(f"a {what} named {name!r}, which leads to no place under its group")
        return "/".join(steps)

    # -- names -----------------------------------------------------------------------------------------------

    def _named(self, listed: list[_Weight]) -> dict[str, _Weight]:
        """The weights by the names of tensors; those that would meet have their layers' before them."""
        full = [f"{weight.layer}/{weight.name}" for weight in listed]
        whole = [_whole_name(weight) for weight in listed]
        count = Counter(whole)
        if len(count) < len(whole):
            self._refuse_twice(full)
        self._refuse_twice([weight.path for weight in listed])
        names = [one if count[one] == 1 else other for one, other in zip(whole, full, strict=True)]
        self._refuse_twice(names)
        return dict(zip(names, listed, strict=True))

    def _refuse_twice(self, names: list[str]) -> None:
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise self._error(f"{name} is listed twice")
            seen.add(name)

    # -- what is said of the file ----------------------------------------------------------------------------

    def _others(self, listed: set[str]) -> dict[str, NotRead]:
        """What is no weight of a layer."""
        others = [path for path in self._found.objects if path not in listed]
        of_optimizer = [path for path in others if self._top and path.startswith(f"{_OPTIMIZER}/")]
        unlisted = [path for path in others if not (self._top and path.startswith(f"{_OPTIMIZER}/"))]
        found = dict.fromkeys(unlisted, NotRead(f"listed by no layer's {_WEIGHTS}"))
        if of_optimizer:
            plural = "tensor" if len(of_optimizer) == 1 else "tensors"
            found[_OPTIMIZER] = NotRead(f"{len(of_optimizer)} {plural} of the optimizer")
        return found

    def _origin(self) -> dict[str, str]:
        said = ((key, single(self._of_root.get(key)) or single(self._of_top.get(key))) for key in _ORIGIN)
        return {key: text for key, text in said if text}

    def _error(self, reason: str) -> FormatError:
        return self._source.error(reason, hint="write it anew with Keras' model.save_weights")
