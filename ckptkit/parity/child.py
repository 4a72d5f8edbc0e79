"""One side of a case, in a process of its own: its framework, the user's code, the checkpoint.

The parent (`process.ChildProcess`) sends requests as lines of JSON and gets one line for each; arrays travel
as recordings (`recorder`) in a private folder. When the parent's end of the pipe is gone, so is this process,
whatever it computes.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import queue
import sys
import tempfile
import textwrap
import threading
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ckptkit.base.errors import CkptkitError, ConversionError, FormatError, NotFoundError, UsageError, listed
from ckptkit.base.tensors import Array
from ckptkit.parity.recorder import Recorder, to_numpy

_Value = TypeVar("_Value")

MOST = 4 << 30
"""Bytes that the outputs of all stages may take."""


def serve(models: Mapping[str, Callable[[dict[str, Any]], Any]] | None = None) -> None:
    """Answer requests on standard input until it ends; the first says which model answers them."""
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    stdin, stdout = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # whatever a library or the model prints
    threading.Thread(target=_listen, args=(stdin, requests), daemon=True).start()
    model = None
    while True:
        request = requests.get()
        try:
            if model is None:
                model = (models or MODELS)[request["framework"]](request)
            answer = model.answer(request)
        except CkptkitError as error:
            answer = {
                "error": error.verdict,
                "details": error.details,
                "hint": error.hint,
                "kind": type(error).__name__,
            }
        except BaseException as error:
            traceback.print_exc()
            answer = {"error": _in_a_line(error, request.get("folder", "")), "kind": "ConversionError"}
        stdout.write(json.dumps({**answer, "number": request["number"]}).encode() + b"\n")
        stdout.flush()


def _listen(stdin: BinaryIO, requests: Any) -> None:
    try:
        for line in stdin:
            requests.put(json.loads(line))
    finally:
        os._exit(1)


def _in_a_line(error: BaseException, folder: str) -> str:
    """An exception, and the line of the user's code that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if folder and frame.filename.startswith(folder)]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    text = textwrap.shorten(str(error), 400, placeholder=" …")
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


class Model(ABC):
    """A model that is ready to run."""

    channels_last = True
    versions = ""
    kept: Mapping[str, Array] = {}  # what fills it, where it is filled anew
    changed: Mapping[str, Array] = {}  # tensors of it that get other values

    def __init__(self, side: Mapping[str, Any]) -> None:
        self.side = side
        self.path = Path(side["checkpoint"]) if side["checkpoint"] else None
        if side["layout"]:
            self.channels_last = side["layout"] == "NHWC"
        self.open()

    @abstractmethod
    def open(self) -> None:
        """Import the framework, build the model and fill it."""

    @abstractmethod
    def call(self, inputs: Mapping[str, Array], recorder: Recorder) -> Any:
        """Run the model; its stages go to the recorder."""

    def explain(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Try changes one at a time; no framework but two can."""
        return {"tried": 0, "found": []}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what the parent asks for."""
        if request["do"] == "open":
            return {"versions": self.versions}
        if request["do"] == "fill":
            self.path = Path(request["checkpoint"])
            self.side = {**self.side, **request, "reverse": False}
            self.kept, self.changed = {}, {}
            self.fill()
            return {}
        if request["do"] == "change":
            self.changed = dict(_changed(self.kept, request))
            if self.changed:
                self.fill()
            return {"changed": bool(self.changed)}
        return self.record(request) if request["do"] == "run" else self.explain(request)

    def fill(self) -> None:
        """Load another checkpoint, now or when the model runs next."""
        raise UsageError(f"a side of {self.side['framework']} cannot be filled anew")

    # -- the same for all ------------------------------------------------------------------------------------

    def factory(self) -> Any:
        """What the user's function gives."""
        module, _, name = self.side["model"].partition(":")
        sys.path.insert(0, self.side["folder"])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and module.split(".")[: len(error.name.split("."))] == error.name.split(
                "."
            ):
                raise NotFoundError(
                    f"no module {module!r}", hint=f"it is looked for in {self.side['folder']}"
                ) from error
            raise
        for part in name.split("."):
            if not hasattr(found, part):
                raise NotFoundError(f"{module} has no {name}", hint=f"it has {listed(_callables(found))}")
            found = getattr(found, part)
        return found()

    def inputs(self, path: str, layouts: Mapping[str, str | None]) -> dict[str, Array]:
        """The inputs, in the order of axes that this side has."""
        import numpy

        with numpy.load(path, allow_pickle=False) as file:
            arrays = {name.partition("/")[2]: file[name] for name in file}
        return {
            name: in_order(array, layouts.get(name), self.channels_last) for name, array in arrays.items()
        }

    def record(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Run once and write what came out."""
        layout = "NHWC" if self.channels_last else "NCHW"
        recorder = Recorder(layout=layout, wanted=request["wanted"], most=MOST)
        given = self.inputs(request["inputs"], request["layouts"])
        if request["keep_inputs"]:
            for name, array in given.items():
                recorder.input(name, array)
        try:
            recorder.output(self.call(given, recorder))
        except MemoryError as error:
            raise UsageError(
                str(error) or "not enough memory", hint="name the stages to compare, or use a smaller batch"
            ) from error
        if not recorder.outputs:
            raise ConversionError(f"{self.side['model']} gives no tensor")
        recorder.save(request["outputs"])
        return {"names": recorder.seen}

    def by_rules(self) -> dict[str, Array] | None:
        """The checkpoint under the model's names, by a rules file; None without one."""
        if not self.side["rules"]:
            return None
        if self.changed:
            return {**self.kept, **self.changed}
        from ckptkit.convert.by_rules import plan_by_rules
        from ckptkit.convert.loading import read_moves
        from ckptkit.formats.detect import open_reader
        from ckptkit.rules.file import load_rules

        assert self.path is not None
        rules = load_rules(self.side["rules"], reverse=self.side["reverse"])
        with open_reader(self.path, state_dict=self.side["state_dict"]) as reader:
            arrays = read_moves(plan_by_rules(reader, rules).moves, reader)
        if self.side.get("do") == "fill":
            self.kept = arrays
        return arrays

    def refuse_misfits(
        self, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
    ) -> None:
        """Name every tensor of the checkpoint or of the model that has no counterpart."""
        faults = {
            "missing": [name for name in wanted if name not in found],
            "unexpected": [name for name in found if name not in wanted],
            "of another shape": [
                f"{name} {list(found[name])} instead of {list(shape)}"
                for name, shape in wanted.items()
                if name in found and tuple(found[name]) != tuple(shape)
            ],
        }
        said = [f"{len(names)} {kind}: {listed(names)}" for kind, names in faults.items() if names]
        if said:
            raise ConversionError(f"{self.path} does not fit {self.side['model']}", details=said)


def _changed(arrays: Mapping[str, Array], request: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    """Tensors with other values: one that is turned, or reversed; or some that are exchanged."""
    import numpy

    name = request.get("turn", "")
    if name in arrays:
        array = arrays[name]
        square = [n for n in range(array.ndim - 1) if array.shape[n] == array.shape[n + 1] > 1]
        forms = [numpy.swapaxes(array, n, n + 1) for n in square[:1]]
        for form in (*forms, array.reshape(-1)[::-1].reshape(array.shape)):
            if not numpy.array_equal(form, array):
                yield name, numpy.ascontiguousarray(form)
                return
    pairs = request.get("exchange", ())
    known = all(one in arrays and other in arrays for one, other in pairs)
    if known and all(arrays[one].shape == arrays[other].shape for one, other in pairs):
        for one, other in pairs:
            if not numpy.array_equal(arrays[one], arrays[other]):
                yield from ((one, arrays[other]), (other, arrays[one]))


def _callables(module: Any) -> list[str]:
    return [name for name, one in vars(module).items() if callable(one) and not name.startswith("_")]


def in_order(array: Array, layout: str | None, channels_last: bool) -> Array:
    """An input with its channels where a side has them."""
    import numpy

    if layout is None or array.ndim != len(layout) or (layout[-1] == "C") == channels_last:
        return array
    return numpy.ascontiguousarray(
        numpy.moveaxis(array, 1, -1) if channels_last else numpy.moveaxis(array, -1, 1)
    )


def called(
    function: Callable[..., Any],
    signature_of: Any,
    values: Mapping[str, Any],
    *,
    packed: Callable[[Mapping[str, Any]], Any] = dict,
    **options: Any,
) -> Any:
    """Call with the inputs of a case, as the parameters want them; a single one takes all, ``packed``."""
    try:
        signature = inspect.signature(signature_of)
    except (TypeError, ValueError):
        return function(*values.values(), **options)
    parameters = signature.parameters
    kinds = {one.kind for one in parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds and not values.keys() <= parameters.keys():
        return function(*values.values(), **options)
    names = [name for name, one in parameters.items() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    if inspect.Parameter.VAR_KEYWORD in kinds and (not names or values.keys() & set(names)):
        return function(**values, **options)
    if len(values) > 1 and len([name for name in names if name in values or name not in _KERAS]) == 1:
        return function(packed(values), **options)
    found = matched(values, names)
    bound = inspect.BoundArguments(signature, {name: found[name] for name in names if name in found})
    return function(*bound.args, **bound.kwargs, **options)


_KERAS = ("training", "mask")
"""Arguments of ``call`` that are no inputs."""


def matched(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Inputs by the names that a model has for them; those of other names in order."""
    others = [value for name, value in values.items() if name not in names]
    free = [name for name in names if name not in values]
    if len(others) > len(free):
        raise UsageError(
            f"the model takes {listed(names) or 'nothing'}, the case gives {listed(values)}",
            hint="name the inputs as the model does",
        )
    return {name: values[name] for name in names if name in values} | dict(zip(free, others, strict=False))


def matched_all(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Inputs by names, in the order of the names, each of which needs one."""
    found = matched(values, names)
    missing = [name for name in names if name not in found]
    if missing:
        raise UsageError(
            f"the model takes {listed(names)}: the case gives no {listed(missing)}",
            hint="name the inputs as the model does",
        )
    return {name: found[name] for name in names}


# -- PyTorch -------------------------------------------------------------------------------------------------


class TorchModel(Model):
    """A ``torch.nn.Module``, in evaluation mode on the CPU."""

    channels_last = False

    def open(self) -> None:
        """Build and fill it."""
        import torch

        self.versions = f"torch {torch.__version__}"
        torch.manual_seed(0)
        self.module = self.factory()
        if not isinstance(self.module, torch.nn.Module):
            raise UsageError(
                f"{self.side['model']} gives {type(self.module).__name__}, not a torch.nn.Module"
            )
        if self.path is not None:
            self._load()
        self._ready()

    def _ready(self) -> None:
        self.module.eval()
        self.buffers = {name: one.clone() for name, one in self.module.named_buffers()}

    def fill(self) -> None:
        """Load another checkpoint."""
        self._load()
        self._ready()

    def _load(self) -> None:
        import torch

        arrays = self.by_rules()
        if arrays is not None:
            from ckptkit.families.filling import in_torch

            state = in_torch(arrays)
        else:
            state = self._state()
        own = self.module.state_dict()
        first: dict[int, str] = {}
        for name, tensor in own.items():  # files hold tied tensors once
            other = first.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
            for one, two in ((name, other), (other, name)):
                if two in state and own[one].shape == own[two].shape:
                    state.setdefault(one, state[two])
        counters = {name for name in own if name.endswith("num_batches_tracked")}
        if arrays is not None:  # of no use to a model that runs: other frameworks have none
            state |= {name: own[name] for name in counters - state.keys()}
        self.refuse_misfits(
            {name: tuple(tensor.shape) for name, tensor in state.items()},
            {name: tuple(tensor.shape) for name, tensor in own.items()},
        )
        with torch.no_grad():
            self.module.load_state_dict(state, strict=True)

    def _state(self) -> dict[str, Any]:
        """The state dict as PyTorch itself reads it."""
        import torch

        assert self.path is not None
        if self.path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(self.path))
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle's, zip's, torch's own
            reason = " ".join(str(error).split())[:200]
            raise FormatError(
                self.path,
                f"torch.load cannot read it with weights_only=True: {reason}",
                hint="with rules: the checkpoint is read without torch.load",
            ) from error
        for key in (self.side["state_dict"] or "").split(".") if self.side["state_dict"] else ():
            if not isinstance(found, Mapping) or key not in found:
                keys = map(str, found) if isinstance(found, Mapping) else ()
                raise UsageError(
                    f"{self.path} has no state dict {self.side['state_dict']}", hint=listed(keys)
                )
            found = found[key]
        below = [key for key, one in found.items() if _is_state(one)] if isinstance(found, Mapping) else []
        if not _is_state(found) and len(below) != 1:
            what = (
                f"holds {len(below)} state dicts: {', '.join(map(str, below))}"
                if below
                else "holds no state dict"
            )
            raise UsageError(f"{self.path} {what}", hint="name one: state_dict: KEY" if below else None)
        return dict(found if _is_state(found) else found[below[0]])

    def given(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        """The inputs as tensors."""
        import numpy
        import torch

        return {name: torch.from_numpy(numpy.array(array)) for name, array in inputs.items()}

    def call(self, inputs: Mapping[str, Array], recorder: Recorder) -> Any:
        """Run it."""
        import torch

        with torch.no_grad(), recorder.torch(self.module):
            return called(self.module, self.module.forward, self.given(inputs))

    def explain(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Try what may be different on the other side."""
        from ckptkit.parity.causes_torch import Segment, explain

        given = self.given(self.inputs(request["inputs"], request["layouts"]))
        segment = Segment(self.module, given, self.buffers, request["after"], request["until"])
        return explain(segment, request)


def _is_state(value: Any) -> bool:
    import torch

    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(one, torch.Tensor) for one in value.values())
    )


# -- Keras and TensorFlow ------------------------------------------------------------------------------------


class KerasModel(Model):
    """A Keras model, in inference mode."""

    def open(self) -> None:
        """Build and fill it."""
        import keras

        self.versions = f"keras {keras.__version__}, backend {keras.backend.backend()}"
        keras.utils.set_random_seed(0)
        if ":" in self.side["model"] and not Path(self.side["folder"], self.side["model"]).exists():
            self.model = self.factory()
        else:
            self.model = keras.saving.load_model(Path(self.side["folder"], self.side["model"]), compile=False)
        if not isinstance(self.model, keras.layers.Layer):
            raise UsageError(f"{self.side['model']} gives {type(self.model).__name__}, not a Keras model")
        self.filled = self.path is None
        self.packed: Callable[[Mapping[str, Any]], Any] = dict

    def fill(self) -> None:
        """Load another checkpoint when the model runs next."""
        self.filled = False

    def call(self, inputs: Mapping[str, Array], recorder: Recorder) -> Any:
        """Run it; a model that is built by its first call is filled after it."""
        import keras

        if not self.model.built or len(inputs) > 1:
            self._try(inputs)
        if not self.filled:
            self._load()
            self.filled = True
        statistics = self.model.non_trainable_variables
        self.statistics = [(one, to_numpy(one.value)) for one in statistics if "seed" not in one.path]
        with recorder.keras(keras.layers.Layer, self.model.name):
            return self._run(inputs)

    def _try(self, inputs: Mapping[str, Array]) -> None:
        """Run it once: ``call(self, inputs)`` may unpack a dictionary or a list."""
        try:
            self._run(inputs)
        except Exception:
            self.packed = _as_list
            try:
                self._run(inputs)
            except Exception:
                self.packed = dict
            if self.packed is dict:
                raise

    def _run(self, inputs: Mapping[str, Array]) -> Any:
        """Call it as ``model(x)``: ``training=False`` would overrule a layer's own ``training=True``."""
        training = inspect.signature(self.model.call).parameters.get("training")
        options = {"training": False} if training and training.default is inspect.Parameter.empty else {}
        structure = getattr(self.model, "_inputs_struct", None)  # of a functional model
        if structure is None or len(inputs) == 1:
            return called(self.model, self.model.call, inputs, packed=self.packed, **options)
        by_name = isinstance(structure, Mapping)
        names = list(structure) if by_name else [one.name for one in self.model.inputs]
        given = matched_all(inputs, names)
        return self.model(given if by_name else list(given.values()), **options)

    def _load(self) -> None:
        assert self.path is not None
        arrays = self.by_rules()
        if arrays is not None and all("/vars/" in name for name in arrays):
            self._load_as_file(arrays)
        elif arrays is not None:
            variables = variables_of(self.model.weights, "path")
            root = self.model.name  # of subclassed models, in front of all names
            fill_variables(self, _without(root, variables), _without(root, arrays))
        elif not self.path.is_file() or self.path.name.endswith(".index"):
            load_tf_checkpoint(self, self.model)
        elif self.path.name.endswith((".weights.h5", ".keras")):
            with self._own_file() as own:  # loading overlooks what is too much
                self.refuse_misfits(_shapes_in(self.path), _shapes_in(own))
            self.model.load_weights(self.path)
        elif self.path.suffix in (".h5", ".hdf5"):
            self._load_legacy()
        else:
            raise UsageError(
                f"Keras has no loader for {self.path.name}", hint="with rules: the model is filled by names"
            )

    def _load_legacy(self) -> None:
        """Load an .h5 of Keras 2, which goes by the order of layers: its own message names no tensor."""
        assert self.path is not None
        try:
            self.model.load_weights(self.path)
        except ValueError:
            with self._own_file(".h5") as file:
                own = _without(self.model.name, _shapes_in(file))
            found = _shapes_in(self.path)
            roots = {name.partition("/")[0] for name in found}
            layers = {name.partition("/")[0] for name in own}
            if len(roots) == 1 and not roots & layers:  # the model's own name, which may have a number
                found = _without(roots.pop(), found)
            self.refuse_misfits(found, own)
            raise

    def _load_as_file(self, arrays: Mapping[str, Array]) -> None:
        """Fill the model by the names that its own .weights.h5 has."""
        import h5py

        with self._own_file() as own:
            shapes = {name: array.shape for name, array in arrays.items()}
            self.refuse_misfits(shapes, _shapes_in(own))
            with h5py.File(own, "r+") as file:
                for name, array in arrays.items():
                    file[name][...] = array
            self.model.load_weights(own)

    @contextmanager
    def _own_file(self, ending: str = ".weights.h5") -> Iterator[Path]:
        """A file that Keras writes of this model."""
        with tempfile.TemporaryDirectory(prefix="ckptkit-own-") as folder:
            own = Path(folder, f"own{ending}")
            (self.model.save if ending == ".h5" else self.model.save_weights)(own)
            yield own

    def explain(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Try what may be different on the other side."""
        from ckptkit.parity.causes_keras import explain

        inputs = self.inputs(request["inputs"], request["layouts"])

        def forward() -> Any:
            for variable, value in self.statistics:  # as they were before anything ran
                variable.assign(value)
            return self._run(inputs)

        return explain(self.model, forward, request)


def _as_list(values: Mapping[str, Any]) -> list[Any]:
    return list(values.values())


def _without(root: str, named: Mapping[str, _Value]) -> dict[str, _Value]:
    return {name.removeprefix(f"{root}/"): value for name, value in named.items()}


def _shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    from ckptkit.formats.detect import open_reader

    with open_reader(path) as reader:
        return {name: spec.shape for name, spec in reader.specs.items() if not name.startswith("optimizer/")}


class TensorFlowModel(Model):
    """Anything that TensorFlow calls: a function, a ``tf.Module``, or a SavedModel."""

    def open(self) -> None:
        """Load or build it, and fill it."""
        import tensorflow as tf

        self.versions = f"tensorflow {tf.__version__}"
        tf.random.set_seed(0)
        self.saved: Any = None
        if ":" in self.side["model"] and not Path(self.side["folder"], self.side["model"]).exists():
            self.function = self.factory()
            if not callable(self.function):
                raise UsageError(f"{self.side['model']} gives {type(self.function).__name__}, not a function")
        else:
            self.saved = tf.saved_model.load(str(Path(self.side["folder"], self.side["model"])))
            signatures = dict(self.saved.signatures)
            self.function = signatures.get("serving_default") or next(iter(signatures.values()), self.saved)
            if (len(signatures) > 1 and "serving_default" not in signatures) or not callable(self.function):
                names = f"signatures {listed(signatures)}" if signatures else "no signature"
                raise UsageError(
                    f"{self.side['model']} has {names}, none of them serving_default",
                    hint="name a function that loads it and returns one: package.module:function",
                )
        self.filled = self.path is None

    def fill(self) -> None:
        """Load another checkpoint when the model runs next."""
        self.filled = False

    def call(self, inputs: Mapping[str, Array], recorder: Recorder) -> Any:
        """Run it; variables are often made by the first call."""
        import tensorflow as tf

        values = {name: tf.constant(array) for name, array in inputs.items()}
        if not self.filled:
            self._run(values)
            self._load()
            self.filled = True
        with self._recorded(recorder):
            return self._run(values)

    def _run(self, values: Mapping[str, Any]) -> Any:
        import tensorflow as tf

        if not hasattr(self.function, "structured_input_signature"):
            return called(self.function, self.function, values)
        specs = self.function.structured_input_signature[1]
        given = matched_all(values, list(specs))
        return self.function(
            **{
                name: tf.cast(value, specs[name].dtype) if value.dtype.is_integer else value
                for name, value in given.items()
            }
        )

    def _recorded(self, recorder: Recorder) -> AbstractContextManager[Any]:
        """Record what modules inside give: their classes' ``__call__`` is wrapped."""
        import tensorflow as tf

        if not isinstance(self.function, tf.Module):
            return nullcontext()
        return _module_calls(self.function, recorder)

    def _load(self) -> None:
        variables = getattr(self.function, "variables", None)
        if variables is None:
            raise UsageError(
                f"{self.side['model']} gives {type(self.function).__name__}, which has no variables to fill",
                hint="return the tf.Module that has them",
            )
        arrays = self.by_rules()
        if arrays is not None:
            fill_variables(self, variables_of(variables, "name"), arrays)
        else:
            load_tf_checkpoint(self, self.saved or self.function)


def _module_calls(root: Any, recorder: Recorder) -> AbstractContextManager[Any]:
    import tensorflow as tf

    names = {
        id(module): "/".join(map(str, path))
        for path, module in root._flatten(with_path=True, predicate=lambda one: isinstance(one, tf.Module))
    }
    stack = ExitStack()
    for kind in {type(module) for module in root.submodules if callable(module)}:
        original = inspect.getattr_static(kind, "__call__")  # a function, or a tf.function

        def call(module: Any, *args: Any, _original: Any = original, **options: Any) -> Any:
            result = _original.__get__(module, type(module))(*args, **options)
            if id(module) in names:
                recorder.record(names[id(module)], result)
            return result

        kind.__call__ = call
        stack.callback(setattr, kind, "__call__", original)
    return stack


def variables_of(variables: Iterable[Any], key: str) -> dict[str, Any]:
    """Variables by name, without TensorFlow's ``:0``."""
    named: dict[str, Any] = {}
    for variable in variables:
        name = str(getattr(variable, key)).split(":", maxsplit=1)[0]
        if named.setdefault(name, variable) is not variable:
            raise ConversionError(
                f"two variables of the model are called {name}", hint="give its layers names of their own"
            )
    return named


def fill_variables(model: Model, variables: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Fill variables by their names, strictly."""
    model.refuse_misfits(
        {name: array.shape for name, array in arrays.items()},
        {name: tuple(variable.shape) for name, variable in variables.items() if "seed_generator" not in name},
    )
    for name, array in arrays.items():
        variables[name].assign(array)


def load_tf_checkpoint(model: Model, root: Any) -> None:
    """Restore a TensorFlow checkpoint by its objects; one without any by the names of variables."""
    import tensorflow as tf

    assert model.path is not None
    prefix = str(model.path).removesuffix(".index")
    stored = dict(tf.train.list_variables(prefix))
    if "_CHECKPOINTABLE_OBJECT_GRAPH" not in stored:
        reader = tf.train.load_checkpoint(prefix)
        variables = variables_of(getattr(root, "variables", ()), "name")
        fill_variables(model, variables, {name: reader.get_tensor(name) for name in stored})
        return
    with tempfile.TemporaryDirectory(prefix="ckptkit-own-") as folder:
        own = _objects(tf.train.Checkpoint(root).write(f"{folder}/own"))
    found = _objects(prefix)
    below = _place_of(own, found)
    model.refuse_misfits(
        {key.removeprefix(below): s for key, s in found.items() if key.startswith(below)}, own
    )
    for part in reversed(below.split("/")[:-1]):
        root = tf.train.Checkpoint(**{part: root})
    tf.train.Checkpoint(root).read(prefix).assert_existing_objects_matched()


def _objects(prefix: str) -> dict[str, tuple[int, ...]]:
    """The variables of a checkpoint of objects, without the state of optimizers, and their shapes."""
    import tensorflow as tf

    ending = "/.ATTRIBUTES/VARIABLE_VALUE"
    return {
        key.removesuffix(ending): tuple(shape)
        for key, shape in tf.train.list_variables(prefix)
        if key.endswith(ending) and "/.OPTIMIZER_SLOT/" not in key and key != f"save_counter{ending}"
    }


def _place_of(own: Iterable[str], found: Iterable[str]) -> str:
    """Under which of the checkpoint's keys most of a model is, such as ``model/``."""
    names = set(own)
    parts = [key.split("/") for key in found]
    places = Counter(
        "/".join(one[:n]) for one in parts for n in range(len(one)) if "/".join(one[n:]) in names
    )
    most = max(places.values(), default=0)
    place = min((one for one, count in places.items() if count == most), key=len, default="")
    return f"{place}/" if place else ""


# -- ONNX and JAX --------------------------------------------------------------------------------------------


class OnnxModel(Model):
    """A graph in ONNX Runtime; every value in it may be a stage."""

    channels_last = False

    def open(self) -> None:
        """Load it."""
        import onnx

        from ckptkit.models.graphs.onnx_graph import open_session

        path = Path(self.side["folder"], self.side["model"])
        graph = onnx.load(str(path), load_external_data=False).graph
        self.outputs = [value.name for value in graph.output]
        inside = [name for node in graph.node for name in node.output if name and name not in self.outputs]
        wanted = self.side["wanted"]
        self.stages = [name for name in inside if wanted is None or name in wanted]
        self.session, self.versions = open_session(path, also=self.stages)

    def call(self, inputs: Mapping[str, Array], recorder: Recorder) -> Any:
        """Run it."""
        kinds = {one.name: one.type for one in self.session.get_inputs()}
        given = {
            name: as_declared(array, kinds[name].removeprefix("tensor(").removesuffix(")"))
            for name, array in matched_all(inputs, list(kinds)).items()
        }
        names = [*self.stages, *self.outputs]
        found = dict(zip(names, self.session.run(names, given), strict=True))
        for name in self.stages:
            recorder.record(name, found[name])
        return {name: found[name] for name in self.outputs}


def as_declared(array: Array, dtype: str) -> Array:
    """Integers as wide as a graph wants them: the other side may want others."""
    return array.astype(dtype) if array.dtype.kind == "i" and dtype in ("int32", "int64") else array


class JaxModel(Model):
    """A function of arrays; or a pair of a function or a module of Flax, and its parameters."""

    def open(self) -> None:
        """Build it, and fill its parameters."""
        import jax

        self.versions = f"jax {jax.__version__}"
        made = self.factory()
        self.function, self.parameters = made if isinstance(made, tuple) else (made, None)
        if not callable(self.function):
            raise UsageError(f"{self.side['model']} gives {type(self.function).__name__}, not a function")
        self.signature_of = self.function if self.parameters is None else partial(self.function, None)
        if (linen := sys.modules.get("flax.linen")) and isinstance(self.function, linen.Module):
            self.versions += f", flax {sys.modules['flax'].__version__}"
            self.function, self.signature_of = self.function.apply, self.function.__call__
        if self.path is not None:
            self.fill()

    def fill(self) -> None:
        """Fill the parameters; their names are the keys to them, joined by slashes."""
        import jax

        from ckptkit.convert.loading import load_tensors
        from ckptkit.formats.detect import open_reader

        if self.parameters is None:
            raise UsageError(
                f"{self.side['model']} gives no parameters to fill", hint="return (function, parameters)"
            )
        arrays = self.by_rules()
        if arrays is None:
            assert self.path is not None
            with open_reader(self.path, state_dict=self.side["state_dict"]) as reader:
                arrays = dict(load_tensors(reader, "as-is"))
        leaves, tree = jax.tree_util.tree_flatten_with_path(self.parameters)
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        own = {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True) if hasattr(leaf, "shape")}
        self.refuse_misfits(
            {name: array.shape for name, array in arrays.items()},
            {name: tuple(leaf.shape) for name, leaf in own.items()},
        )
        filled = [
            jax.numpy.asarray(arrays[name], leaf.dtype) if name in own else leaf
            for name, (_, leaf) in zip(names, leaves, strict=True)
        ]
        self.parameters = jax.tree_util.tree_unflatten(tree, filled)

    def call(self, inputs: Mapping[str, Array], recorder: Recorder) -> Any:
        """Run it; a dictionary of outputs may hold stages, as do the modules of Flax."""
        import jax

        given = {name: jax.numpy.asarray(array) for name, array in inputs.items()}
        first = () if self.parameters is None else (self.parameters,)
        with _flax_calls(recorder):
            return called(partial(self.function, *first), self.signature_of, given)


def _flax_calls(recorder: Recorder) -> AbstractContextManager[Any]:
    """Record what modules of Flax give, one operation after the other: compiled ones have no values."""
    linen = sys.modules.get("flax.linen")
    if linen is None:
        return nullcontext()
    import jax

    def intercepted(function: Any, args: Any, options: Any, context: Any) -> Any:
        result = function(*args, **options)
        if context.method_name == "__call__" and context.module.path:
            recorder.record("/".join(context.module.path), result)
        return result

    stack = ExitStack()
    stack.enter_context(jax.disable_jit())
    stack.enter_context(linen.intercept_methods(intercepted))
    return stack


MODELS: Mapping[str, type[Model]] = {
    "torch": TorchModel,
    "keras": KerasModel,
    "tensorflow": TensorFlowModel,
    "onnx": OnnxModel,
    "jax": JaxModel,
}
"""By the framework of a side."""
