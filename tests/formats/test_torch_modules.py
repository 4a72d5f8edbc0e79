"""Whole pickled modules and TorchScript archives: the state dict that torch has of them, and no code run."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import FormatError
from ckptkit.formats.detect import open_reader
from tests.support.torch_files import STORAGE, TENSOR, call, table, tensor, text, whole, write_zip

FIRST = np.frombuffer(STORAGE, "<f4").tolist()


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def net(torch: Any) -> Any:
    """Modules in modules, tied weights, buffers that are not saved, parameters that are none."""
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.register_buffer("mask", torch.ones(2), persistent=False)
            self.register_buffer("table", torch.arange(3))
            self.register_parameter("none", None)
            self.mere = torch.zeros(2)

        def forward(self, x: Any) -> Any:
            return self.norm(self.conv(x))

    class Net(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(Block(), Block())
            self.shared = self.layers[0]
            self.head = nn.Linear(4, 2)
            self.tied = self.head.weight
            self.brain = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))

        def forward(self, x: Any) -> Any:
            return self.shared(self.layers[0](x))

    for kind in (Block, Net):  # as if they were in a module of a program
        kind.__module__, kind.__qualname__ = __name__, kind.__name__
        globals()[kind.__name__] = kind
    return Net()


def assert_is(path: Path, expected: Any, note: str) -> dict[str, str]:
    """The tensors of a state dict, and nothing else; returns what else is in the file."""
    with open_reader(path) as reader:
        assert reader.format == "torch"
        assert list(reader.specs) == list(expected)
        for name, value in expected.items():
            held = value.detach()
            assert reader.read(name).astype("float64").tolist() == held.double().numpy().tolist(), name
        assert [one for one in reader.notes if one.startswith(note)]
        assert any("none of its code is run" in one for one in reader.notes)
        return dict(reader.extras)


def test_a_pickled_module(torch: Any, tmp_path: Path) -> None:
    model = net(torch)
    torch.save(model, tmp_path / "m.pth")
    extras = assert_is(tmp_path / "m.pth", model.state_dict(), "a whole pickled module (")
    assert extras["layers.0.mere"] == "tensor of float32 [2]"
    with open_reader(tmp_path / "m.pth") as reader:
        assert reader.same["head.weight"] == "tied"


def test_a_pickled_module_of_the_legacy_format(torch: Any, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(model, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    assert_is(
        tmp_path / "m.pth", model.state_dict(), "a whole pickled module (torch.nn.modules.container.Seq"
    )


def test_a_module_that_data_parallel_wraps(torch: Any, tmp_path: Path) -> None:
    torch.save(torch.nn.DataParallel(torch.nn.Linear(2, 2)), tmp_path / "m.pth")
    with open_reader(tmp_path / "m.pth") as reader:
        assert list(reader.specs) == ["weight", "bias"]
    with open_reader(tmp_path / "m.pth", as_saved=True) as reader:
        assert list(reader.specs) == ["module.weight", "module.bias"]


def test_a_traced_graph_module(torch: Any, tmp_path: Path) -> None:
    model = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()))
    torch.save(model, tmp_path / "m.pth")
    assert_is(tmp_path / "m.pth", model.state_dict(), "a whole pickled module (torch.fx.graph_module")


def test_modules_in_a_training_state(torch: Any, tmp_path: Path) -> None:
    """As detectors are published: the model and its averages, beside what else training keeps."""
    model, average = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    torch.save({"epoch": 3, "model": model, "ema": average, "names": ["cat"]}, tmp_path / "m.pt")
    for weights, expected in (("raw", model), ("ema", average)):
        with open_reader(tmp_path / "m.pt", weights=weights) as reader:
            assert reader.state_dict == ("model" if weights == "raw" else "ema")
            assert reader.read("weight").tolist() == expected.weight.tolist()
            assert reader.extras["epoch"] == "3"


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript(torch: Any, tmp_path: Path, how: str) -> None:
    nn = torch.nn
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 1))).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.script(model) if how == "script" else torch.jit.trace(model, torch.zeros(1, 3, 2, 2))
        made.save(str(tmp_path / "m.pt"))
        expected = torch.jit.load(str(tmp_path / "m.pt")).state_dict()
    assert list(expected) == list(model.state_dict())
    assert_is(tmp_path / "m.pt", expected, "a TorchScript archive (__torch__.torch.nn.modules.container.")


SCRIPTED = """
import sys, warnings, torch
warnings.simplefilter("ignore")
class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)
        self.register_buffer("mask", torch.ones(2))
        self.register_parameter("none", None)
        self.mere, self.count = torch.zeros(2), 3
    def forward(self, x):
        return self.conv(x) + torch.tensor([1.0])
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = torch.nn.Sequential(Block(), Block()), torch.nn.Linear(4, 2)
        self.tied = self.head.weight
    def forward(self, x):
        return self.layers(x)
traced = torch.jit.trace(Block(), torch.zeros(1, 3, 2, 2))
traced.save(sys.argv[2])
made = torch.jit.script(Net())
made.save(sys.argv[1])
print(*made.state_dict())
"""


def test_attributes_and_constants_of_torchscript(torch: Any, tmp_path: Path) -> None:
    """In a script of its own: TorchScript wants the classes' source."""
    (tmp_path / "make.py").write_text(SCRIPTED)
    command = [sys.executable, "make.py", "m.pt", "traced.pt"]
    names = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split()
    expected = torch.jit.load(str(tmp_path / "m.pt")).state_dict()
    assert list(expected) == names
    extras = assert_is(tmp_path / "m.pt", expected, "a TorchScript archive (__torch__.Net)")
    assert extras == dict.fromkeys(("layers.0.mere", "layers.1.mere"), "tensor of float32 [2]")
    with open_reader(tmp_path / "traced.pt") as reader:
        assert list(reader.specs) == ["mask", "conv.weight", "conv.bias"]
        assert any("of its code" in note and "not read" in note for note in reader.notes)


def test_quantized_layers_are_not_left_out_in_silence(torch: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Conv2d(1, 1, 1))
        torch.save(torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}), tmp_path / "m.pt")
    with open_reader(tmp_path / "m.pt") as reader:
        assert list(reader.specs) == ["1.weight", "1.bias"]
        (left_out,) = reader.left_out.items()
        assert left_out[0] == "0._packed_params._packed_params"
        assert left_out[1].startswith("tensors in torch.ScriptObject(")


def test_a_frozen_archive_says_where_its_weights_are(torch: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(torch.nn.Linear(2, 3).eval(), torch.zeros(1, 2))
        torch.jit.freeze(traced).save(str(tmp_path / "m.pt"))
    with pytest.raises(FormatError, match=r"in a frozen one its code has them; .* before torch\.jit\.freeze"):
        open_reader(tmp_path / "m.pt")


# -- by hand, and hostile ------------------------------------------------------------------------------------


def module(kind: str = "Net", /, *, modules: bytes = b"}", more: bytes = b"", **parameters: bytes) -> bytes:
    """A pickled module of a class that nobody has."""
    state = text("_parameters") + table(**parameters) + text("_modules") + modules + more
    return call("nobody.has", kind) + b"}(" + state + b"ub"


def scripted(**attributes: bytes) -> bytes:
    return call("__torch__", "Net") + table(**attributes) + b"b"


def test_tensors_in_lists_and_tables_of_a_module_are_mentioned(tmp_path: Path) -> None:
    """The state dict has none of them; a list of what it has is no more than that."""
    weight = TENSOR + b"q\xfe"
    more = text("flat") + b"]h\xfea" + text("bank") + b"](" + TENSOR + b"e" + text("table") + table(k=TENSOR)
    more += text("blocks") + b"](" + module("Block", w=TENSOR) + b"e" + text("sizes") + b"](K\x01K\x02e"
    path = write_zip(tmp_path / "m.pth", whole(module(w=weight, more=more)))
    with open_reader(path) as reader:
        assert list(reader.specs) == ["w"]
        assert list(reader.extras) == ["bank", "table", "blocks"]


def test_lists_of_a_scripted_module_are_mentioned(tmp_path: Path) -> None:
    listed = call("torch.jit._pickle", "restore_type_tag", b"](" + TENSOR + b"e" + text("List[Tensor]"))
    plain = call("torch.jit._pickle", "restore_type_tag", b"](K\x01e" + text("List[int]"))
    path = write_zip(tmp_path / "m.pth", whole(scripted(weight=TENSOR, bank=listed, sizes=plain)))
    with open_reader(path) as reader:
        assert (list(reader.specs), list(reader.extras)) == (["weight"], ["bank"])


def test_names_buffers_and_none(tmp_path: Path) -> None:
    buffers = text("_buffers") + table(mean=TENSOR, passing=TENSOR, absent=b"N")
    passing = text("_non_persistent_buffers_set") + b"]" + text("passing") + b"a"
    inner = module("Inner", w=TENSOR, more=buffers + passing)
    path = write_zip(tmp_path / "m.pth", whole(module(modules=table(a=inner, b=b"N"), w=TENSOR, none=b"N")))
    with open_reader(path) as reader:
        assert list(reader.specs) == ["w", "a.w", "a.mean"]
        assert reader.read("a.mean").reshape(-1).tolist() == FIRST
        assert reader.notes == [
            "a whole pickled module (nobody.has.Net): its parameters and buffers are read by name, "
            "and none of its code is run"
        ]


def archive(
    tmp_path: Path, pickled: bytes, code: str | bytes = "", method: int = zipfile.ZIP_DEFLATED
) -> Path:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as file:
        for name, raw in {
            "m/data.pkl": whole(pickled),
            "m/data/0": STORAGE,
            "m/constants.pkl": b"\x80\x02).",
        }.items():
            file.writestr(name, raw)
        file.writestr("m/code/__torch__.py", code, method)
    return path


CODE = 'class Net(Module):\n  __parameters__ = ["w", ]\n  __buffers__ = ["b", "none", ]\n  w : Tensor\n'


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_scripted_module_by_hand(tmp_path: Path, method: int) -> None:
    pickled = scripted(mere=TENSOR, b=TENSOR, w=tensor(shape=(1,)), none=b"N", k=b"K\x03")
    with open_reader(archive(tmp_path, pickled, CODE, method)) as reader:
        assert list(reader.specs) == ["w", "b"]
        assert reader.extras == {"mere": "tensor of float32 [3, 2]"} or list(reader.extras) == ["mere"]
    with open_reader(archive(tmp_path, pickled, "nothing", method)) as reader:
        assert list(reader.specs) == ["mere", "b", "w"], "where no class lists them, all tensors count"


def doubled(levels: int) -> bytes:
    """Modules that hold the one before them twice: two to the power of levels in all."""
    made = module("Leaf", w=TENSOR)
    for level in range(levels):  # the first is built and kept, the second is the same once more
        kept = made + b"q" + bytes([level + 100])
        made = module(
            "Twice", modules=b"}(" + text("a") + kept + text("b") + b"h" + bytes([level + 100]) + b"u"
        )
    return made


def inside_itself() -> bytes:
    """A module that is its own child."""
    state = text("_parameters") + table(w=TENSOR) + text("_modules") + b"}(" + text("me") + b"h\xf0u"
    return call("nobody.has", "Net") + b"q\xf0" + b"}(" + state + b"ub"


def twice() -> bytes:
    return module(modules=table(**{"a": module("In", **{"b.w": TENSOR}), "a.b": module("In", w=TENSOR)}))


BAD: dict[str, tuple[bytes, str]] = {
    "endless": (inside_itself(), "more than 100 modules in each other"),
    "doubled": (doubled(60), "modules in each other"),
    "two names that are one": (twice(), "two tensors are called 'a.b.w'"),
    "without tensors": (module(), "is a whole pickled object (nobody.has.Net"),
    "without tables": (call("nobody.has", "Net") + table(w=TENSOR) + b"b", "is a whole pickled object"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_modules_are_refused(tmp_path: Path, kind: str) -> None:
    pickled, said = BAD[kind]
    path = write_zip(tmp_path / "m.pth", whole(pickled))
    start = time.process_time()
    with pytest.raises(FormatError) as caught:
        open_reader(path)
    assert time.process_time() - start < 1
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_code_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, scripted(w=TENSOR), b"#" * (17 << 20))
    assert path.stat().st_size < 100_000
    with pytest.raises(FormatError, match="bytes of code"):
        open_reader(path)


def test_a_module_that_would_run_code_is_called_that(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return eval, ("1",)

    evil = pickle.dumps(Runs(), 2)[2:-1]
    path = write_zip(tmp_path / "m.pth", whole(module(w=TENSOR, more=text("hook") + evil)))
    with open_reader(path) as reader:
        assert list(reader.specs) == ["w"]
        assert any("would run builtins.eval" in note for note in reader.notes)


def test_one_module_with_many_attributes_in_many_places(tmp_path: Path) -> None:
    """Its attributes are looked at again in every place: the file is small, the work is not."""
    attributes = b"".join(text(f"a{number}") + b"K\x01" for number in range(20_000))
    shared = module(w=TENSOR, more=attributes) + b"r\x10\0\0\0"
    places = b"".join(text(f"m{number}") + b"j\x10\0\0\0" for number in range(1000))
    root = module(modules=b"}(" + text("first") + shared + places + b"u")
    path = write_zip(tmp_path / "m.pth", whole(root))
    start = time.process_time()
    with pytest.raises(FormatError, match="more than 2,000,000 attributes of its modules"):
        open_reader(path)
    assert time.process_time() - start < 5
