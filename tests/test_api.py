"""The Python face has exactly the designed names and parameters, and does what it says."""

from __future__ import annotations

import importlib
import inspect
import io
import os
import subprocess
import sys
import types
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import ckptkit
from ckptkit.analysis.cam.methods import METHODS
from ckptkit.api import environment
from ckptkit.api.environment import in_python
from ckptkit.base import errors
from ckptkit.base.errors import CkptkitError, NotFoundError, UsageError
from ckptkit.base.tensors import FLOAT_DTYPES
from ckptkit.convert.planning import AS_IS
from ckptkit.export.targets import TARGETS
from ckptkit.families.base import families, get_family
from ckptkit.families.moat.published import synthetic_tensor
from ckptkit.formats.builtin import BUILT_IN
from ckptkit.formats.detect import open_reader
from ckptkit.formats.names import EXTENSIONS
from ckptkit.models.synth import Synthetic, write_archive
from ckptkit.store.cache import Home
from tests.support import preloaded
from tests.support.caches import put_entry

NAMES = [name for name in ckptkit.__all__ if name != "__version__"]
ROOMS = [name for name in NAMES if Path(ckptkit.__file__).with_name(name).joinpath("__init__.py").is_file()]


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_a_documented_function_even_after_its_module_was_imported(name):
    assert {"registry", "convert", "parity"} <= {*ROOMS}
    for room in ROOMS:
        importlib.import_module(f"ckptkit.{room}")
    thing = getattr(ckptkit, name)
    assert isinstance(thing, types.FunctionType) or issubclass(thing, ckptkit.CkptkitError)
    assert inspect.getdoc(thing)
    assert name in dir(ckptkit)


def test_every_error_is_public():
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and "Error" in name}
    assert kinds == {name for name in ckptkit.__all__ if name.endswith("Error")}


def test_importing_ckptkit_imports_neither_numpy_nor_a_framework():
    code = "import ckptkit, sys; ckptkit.CkptkitError; dir(ckptkit); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    heavy = {"numpy", "torch", "tensorflow", "keras", "pydantic", "rich", "PIL", "mypy"}
    assert heavy & set(loaded.split()) == set()


@pytest.fixture(scope="module")
def types_of(tmp_path_factory):
    """What mypy says of lines of code: an error or a revealed type, by line."""
    api = pytest.importorskip("mypy.api")
    root = Path(ckptkit.__file__).parent

    def check(*lines):
        file = tmp_path_factory.mktemp("typed") / "snippet.py"
        file.write_text("\n".join(("import ckptkit", *lines)))
        followed = ("__init__", "api/__init__", *(f"api/{name}" for name in ("checkpoints", "environment")))
        followed += ("api/pictures", "api/proving", "models/__init__", "models/create", "models/loading")
        followed += ("models/onnx_model", "base/errors", "convert/loading", "analysis/predict")
        out, _, _ = api.run(
            [
                *("--config-file", os.devnull, "--follow-imports", "skip", "--ignore-missing-imports"),
                *(
                    "--cache-dir",
                    str(tmp_path_factory.getbasetemp() / "mypy"),
                    "--hide-error-context",
                    str(file),
                ),
                *(str(root / f"{name}.py") for name in followed),
            ]
        )
        said = [line.partition("snippet.py:")[2] for line in out.splitlines() if "snippet.py:" in line]
        return {int(line.partition(":")[0]) - 2: line for line in said}

    return check


def test_mypy_knows_the_names_and_types(types_of):
    said = types_of(
        "ckptkit.nosuch",
        "ckptkit.fetch('moat0-224')",
        "reveal_type(ckptkit.create_model('tiny-moat0'))",
        "reveal_type(ckptkit.create_model('tiny-moat0', framework='keras'))",
        "reveal_type(ckptkit.create_model('tiny-moat0', 'onnxruntime'))",
        "ckptkit.predict('tiny-moat0', 'cat.jpg', framework='troch')",
        "ckptkit.convert('a.pth', dtype='int9')",
        "ckptkit.convert('a.pth', 'npz', dtype='bfloat16', layout='as-is')",
        "ckptkit.export('a.pth', 'onxn')",
        "reveal_type(ckptkit.load('a.pth', framework='torch'))",
        "reveal_type(ckptkit.load('a.pth'))",
        "reveal_type(ckptkit.predict('a.pth', 'cat.jpg')[0].best.probability)",
        "reveal_type(ckptkit.create_model('moat0-224', pretrained=True).num_features)",
        "ckptkit.create_model('tiny-moat0').reset_classifier('ten')",
        "ckptkit.load('a.pth', framework='jax')",
        "raise ckptkit.UsageError('no')",
    )
    expected = {
        0: 'Module has no attribute "nosuch"',
        2: "TorchModel",
        3: "KerasModel",
        4: "OnnxModel",
        5: 'Argument "framework"',
        6: 'Argument "dtype"',
        8: "Argument 2",
        9: "LoadedTensors",
        10: "LoadedTensors",
        11: '"float"',
        12: '"int"',
        13: 'Argument 1 to "reset_classifier"',
        14: "def load(",
    }
    assert said.keys() == expected.keys()
    assert {line: said[line] for line, words in expected.items() if words not in said[line]} == {}


def test_the_names_that_types_list_are_those_that_are_taken():
    assert get_args(environment.Dtype) == FLOAT_DTYPES
    assert get_args(environment.ExportTarget) == tuple(TARGETS)
    assert get_args(environment.CamMethod) == tuple(METHODS)
    writable = {name for name, format in BUILT_IN.items() if not format.read_only}
    assert {*get_args(environment.BuiltInFormat)} == writable
    layouts = {name for family in families(False) for name in get_family(family).layouts}
    assert {*get_args(environment.BuiltInLayout)} == {*layouts, AS_IS}


@pytest.mark.parametrize("room", ROOMS)
def test_in_a_new_process_a_function_is_found_before_and_after_its_room_was_imported(room):
    code = f"import ckptkit.{room}, ckptkit.cli.app, sys; assert callable(ckptkit.{room}), ckptkit.{room}"
    code += (
        f"; assert ckptkit.{room} is not sys.modules['ckptkit.{room}']; from ckptkit.{room} import __path__"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"import ckptkit; f = ckptkit.{room}; import ckptkit.{room}; assert f is ckptkit.{room}",
        ],
        check=True,
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("verify", {"deep"}),
        ("convert", {"to", "output", "force"}),
        ("load", {"layout"}),
        (
            "create_model",
            {
                "framework",
                "checkpoint",
                "resolution",
                "num_classes",
                "features_only",
                "pos_emb",
                "pool_size",
                "window_size",
                "attn_force_fp32",
            },
        ),
    ],
)
def test_the_designed_parameters_are_there(name, parameters):
    assert parameters <= inspect.signature(getattr(ckptkit, name)).parameters.keys()


@pytest.mark.parametrize(
    "name",
    [
        "convert",
        "load",
        "verify",
        "create_model",
        "parity",
        "export",
        "predict",
        "cam",
        "evaluate",
        "calibrate",
    ],
)
def test_what_of_a_file_is_meant_has_one_name_everywhere(name):
    parameters = inspect.signature(getattr(ckptkit, name)).parameters
    assert {parameters[key].default for key in ("state_dict", "strip_prefix")} == {None}
    assert parameters["weights"].default == "auto"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'download'"):
        ckptkit.download  # noqa: B018


@pytest.fixture
def archive(tmp_path):
    return write_archive(Synthetic("tiny-moat0"), tmp_path / "tiny.tar.gz")


def test_verify_convert_and_load_a_file(archive, tmp_path):
    assert ckptkit.verify(archive, deep=True).ok
    target = ckptkit.convert(archive, to="safetensors", output=str(tmp_path / "t.safetensors"))
    assert target == tmp_path / "t.safetensors"
    state = ckptkit.load(target)
    kernel = synthetic_tensor("moat/stem/conv_0/kernel", (3, 3, 3, 32))
    np.testing.assert_array_equal(state["stem.conv_0.weight"], kernel.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(ckptkit.load(target, layout="deeplab2")["moat/stem/conv_0/kernel"], kernel)


def test_convert_and_load_tell_what_else_is_in_the_file(tmp_path):
    """A Lightning checkpoint by rules: a tensor that a rule leaves out, and what is no tensor."""
    torch = pytest.importorskip("torch")
    state = {"w": torch.ones(2), "step": torch.tensor(3)}
    beside = {"epoch": 3, "optimizer_states": [{"state": {}}], "hyper_parameters": {"lr": 0.1}}
    torch.save({"state_dict": state, **beside}, tmp_path / "m.ckpt")
    (tmp_path / "rules.yaml").write_text(
        "rules:\n  - {source: w, target: kernel, op: identity}\n"
        "ignore:\n  - {name: step counter, pattern: step, reason: counts training steps}\n"
    )
    also = {"epoch": "3", "optimizer_states": "[{state: {}}]", "hyper_parameters": "{lr: 0.1}"}
    target = tmp_path / "m.safetensors"
    path = ckptkit.convert(tmp_path / "m.ckpt", output=target, rules=tmp_path / "rules.yaml")
    assert isinstance(path, Path) and path == target and path.parent == tmp_path
    assert path.left_out == {"step": "step counter: counts training steps"}
    assert path.also_in_file == also
    loaded = ckptkit.load(tmp_path / "m.ckpt", layout="as-is")
    assert isinstance(loaded, dict) and set(loaded) == {"w", "step"}
    assert (loaded.left_out, loaded.also_in_file) == ({}, also)


def test_load_of_a_known_model_names_what_a_rule_leaves_out(archive):
    loaded = ckptkit.load(archive)
    assert set(loaded.left_out) == {"global_step"}
    assert "step" in loaded.left_out["global_step"]


@pytest.fixture
def arrays(tmp_path):
    np.savez(tmp_path / "net.npz", w=np.arange(4, dtype=np.float32))
    return tmp_path / "net.npz"


@pytest.mark.parametrize(
    ("output", "options", "name"),
    [
        ("a.pth", {}, "a.pth"),
        ("new/", {}, "new/net.safetensors"),
        ("new/", {"to": "tensorflow"}, "new/net.ckpt"),
        (".", {"to": "st"}, "net.safetensors"),
        (None, {}, "net.safetensors"),
        (Path("x.npz"), {"dtype": "half"}, "x.npz"),
        ("~/a.npz", {}, "a.npz"),
    ],
    ids=str,
)
def test_convert_takes_the_format_from_the_name(arrays, monkeypatch, output, options, name):
    monkeypatch.chdir(arrays.parent)
    monkeypatch.setenv("HOME", str(arrays.parent))
    path = ckptkit.convert(arrays, output=output, layout="as-is", **options)
    assert path.resolve() == arrays.parent / name
    with open_reader(path) as reader:
        assert name.endswith(EXTENSIONS[reader.format])
        assert reader.specs["w"].dtype.name == ("float16" if "dtype" in options else "float32")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"output": "a.pth", "to": "npz"}, "a.pth is the name of a torch file, not of npz"),
        ({"output": "a.keras"}, "a.keras is the name of a whole Keras model"),
        ({"output": "a.foo"}, "cannot tell the format"),
        ({"to": "torhc"}, "unknown format 'torhc'; did you mean torch"),
        ({"dtype": "double"}, "unknown dtype 'double'; choose from float32, float16, bfloat16"),
        ({"output": "net.npz", "force": True}, "net.npz is the source itself"),
        ({"output": "net.npz/"}, "net.npz is a file"),
    ],
    ids=str,
)
def test_convert_refuses_what_a_name_contradicts(arrays, tmp_path, monkeypatch, call, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says):
        ckptkit.convert(arrays, layout="as-is", **call)
    assert [path.name for path in tmp_path.iterdir()] == ["net.npz"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: ckptkit.create_model("tiny-moat0", framework="jax"),
            "unknown framework 'jax'; choose from torch, keras",
        ),
        (
            lambda: ckptkit.export("tiny-moat0", "hf", "x.onnx", synthetic=True),
            'give output="x", or to="onnx"',
        ),
        (lambda: ckptkit.export("tiny-moat0", output="x", synthetic=True), "no export target given"),
        (lambda: ckptkit.export("tiny-moat0", "onxn", synthetic=True), "did you mean onnx"),
        (lambda: ckptkit.parity("tiny-moat0", synthetic=True, backend="jax"), "unknown backend 'jax'"),
        (lambda: ckptkit.parity("tiny-moat0", synthetic=True, dtype="int8"), "unknown dtype 'int8'"),
    ],
)
def test_words_that_nothing_is_called(call, says):
    with pytest.raises(UsageError, match=says):
        call()


def test_load_gives_torch_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    kinds = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool)
    held = {str(kind): torch.tensor([1, 0, 2]).to(kind) for kind in kinds}
    torch.save(held, tmp_path / "kinds.pth")
    loaded = ckptkit.load(tmp_path / "kinds.pth", "as-is", framework="torch")
    assert loaded.keys() == held.keys() and loaded.left_out == {}
    for name, tensor in held.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].float().equal(tensor.float())
    with pytest.raises(UsageError, match="unknown framework 'jax'; choose from numpy, torch"):
        ckptkit.load(tmp_path / "kinds.pth", framework="jax")


def test_synth_inspect_and_diff(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = ckptkit.synth("moganet-xt-224")
    assert path == Path("moganet-xt-224.pth") and path.is_file()
    with pytest.raises(UsageError, match="force=True"):
        ckptkit.synth("moganet-xt-224")
    entry = ckptkit.registry()["moganet-xt-224"]
    assert ckptkit.synth(entry, "there/").read_bytes() == path.read_bytes()
    with pytest.raises(UsageError, match="leave pos_emb=False out"):
        ckptkit.synth(entry, "x.pth", pos_emb=False)

    found = ckptkit.inspect(path, "head", sort="name", stats=True)
    assert (found.variant, found.num_classes) == ("moganet-xt", 1000)
    loaded = ckptkit.load(path, "as-is")
    assert [one.name for one in found.tensors] == sorted(name for name in loaded if "head" in name)
    for one in found.tensors:
        assert one.shape == loaded[one.name].shape
        assert one.statistics.maximum == loaded[one.name].max()

    converted = ckptkit.convert(path, "keras")
    assert ckptkit.diff(path, converted).same
    rounded = ckptkit.convert(path, "npz", dtype="float16", layout="torch")
    difference = ckptkit.diff(path, rounded, ignore_dtype=True, relative=1e-9)
    assert not difference.same and len(difference.of_kind("values")) > 100
    assert ckptkit.diff(path, rounded, ignore_dtype=True, relative=2**-10).same


def test_reports_print_as_the_commands_print_them(tmp_path):
    a = ckptkit.synth("moganet-xt-224", tmp_path / "a.pth")
    b = ckptkit.convert(a, "npz", tmp_path / "b.npz", dtype="float16", layout="torch")
    for report, command in (
        (ckptkit.verify(a), ["verify", a]),
        (ckptkit.inspect(a, stats=True), ["inspect", a, "--stats"]),
        (ckptkit.diff(a, b), ["diff", a, b]),
        (ckptkit.registry()["moat0-224"], ["show", "moat0-224"]),
    ):
        line = [sys.executable, "-m", "ckptkit", *map(str, command)]
        printed = preloaded.run(line, tmp_path, modules=preloaded.COMMANDS).stdout
        ours = [line for line in str(report).splitlines() if line and not line.startswith("note")]
        theirs = [line.replace("; --verbose shows all", "") for line in printed.splitlines() if line]
        assert len(ours) > 6 and [line for line in ours if line not in theirs] == []
        assert repr(report).count("\n") == 0 and repr(report).startswith(f"<{type(report).__name__} ")
        assert "<table>" in report._repr_html_() or command[0] in ("show", "verify")


def test_what_a_notebook_shows_of_the_registry_and_a_prediction(photograph):
    registry = ckptkit.registry()
    assert repr(registry) == f"<Registry {len(registry)} entries: moat, moganet>"
    assert registry._repr_html_().count("<tr>") == len(str(registry).splitlines()) == len(registry) + 1
    assert repr(registry["moat0-224"]) == "<Entry moat0-224: MOAT-0>"
    pytest.importorskip("torch")
    predictions = ckptkit.predict("moganet-xt-224", [photograph] * 2, synthetic=True, top=3)
    prediction = predictions[0]
    assert prediction.best.name in repr(prediction) and repr(prediction) in repr(predictions)
    assert [guess.wnid in str(prediction) for guess in prediction.top] == [True] * 3
    assert isinstance(predictions, list) and len(predictions) == 2
    heading, *lines = str(predictions).splitlines()
    assert heading.split() == ["image", "rank", "probability", "class", "wnid", "name"]
    assert [guess.wnid in line for guess, line in zip(prediction.top * 2, lines, strict=True)] == [True] * 6
    shown = predictions._repr_html_()
    assert shown.count("<tr>") == 7 and [one.image in shown for one in predictions] == [True] * 2


def test_a_heat_map_is_a_picture(photograph):
    pytest.importorskip("torch")
    pytest.importorskip("captum")
    from PIL import Image

    heat = ckptkit.cam("moganet-xt-224", photograph, synthetic=True)
    assert repr(heat).startswith("<Heatmap moganet-xt-224: ") and "array" not in repr(heat)
    with Image.open(io.BytesIO(heat._repr_png_())) as picture:
        assert picture.format == "PNG" and picture.size == (224, 224)


def test_profile_takes_an_entry():
    pytest.importorskip("torch")
    entry = ckptkit.registry()["moganet-xt-224"]
    report = ckptkit.profile(entry)
    assert report.ok and report.profile.parameters == entry.exact_parameters
    assert f"{entry.exact_parameters:,}" in repr(report) and "multiply-adds" in str(report)
    assert ckptkit.profile("moganet-xt", head=False).profile.parameters == entry.exact_parameters - 193_000


@pytest.fixture
def photograph():
    image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(5).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return image.fromarray(noise).resize((600, 400), image.Resampling.BICUBIC)


def test_transform_gives_what_predict_gives_the_model(photograph, tmp_path):
    torch = pytest.importorskip("torch")
    path = ckptkit.synth("moganet-xt-224", tmp_path / "m.pth")
    model = ckptkit.create_model("moganet-xt-224", checkpoint=path)
    prepared = ckptkit.transform("moganet-xt-224")(photograph)
    with torch.inference_mode():
        best = model(prepared).softmax(-1)[0].max()
    (predicted,) = ckptkit.predict("moganet-xt-224", photograph, synthetic=True)
    assert predicted.best.probability == pytest.approx(float(best), rel=1e-5)


def test_transform_for_each_framework(photograph, tmp_path):
    torch = pytest.importorskip("torch")
    prepare = ckptkit.transform("moat0-224", framework="keras", resolution=(64, 96))
    batch = prepare([photograph, np.asarray(photograph)])
    assert batch.shape == (2, 64, 96, 3) and batch.dtype == np.float32
    np.testing.assert_array_equal(batch[0], batch[1])
    same = ckptkit.transform("moat0-224", resolution=(64, 96))(photograph)
    assert isinstance(same, torch.Tensor) and same.is_contiguous()
    np.testing.assert_array_equal(same.permute(0, 2, 3, 1).numpy(), batch[:1])
    graph = ckptkit.transform("moat0-224", framework="onnxruntime", resolution=(64, 96))(photograph)
    np.testing.assert_array_equal(graph, same.numpy())


def test_transform_of_a_variant_an_entry_and_a_file(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("PIL")
    entry = ckptkit.registry()["moganet-xt-224"]
    path = ckptkit.convert(
        ckptkit.synth(entry, tmp_path / "m.pth"), "safetensors", tmp_path / "m.safetensors"
    )
    assert str(ckptkit.transform(entry)) == str(ckptkit.transform(entry.id))
    assert "normalization imagenet" in str(ckptkit.transform("moganet-xt", framework="keras"))
    assert ckptkit.transform(path).preprocessing.size == (224, 224)
    with pytest.raises(NotFoundError, match=r"did you mean .*moganet-xt-224"):
        ckptkit.transform("moganet-xt-225")


@pytest.mark.parametrize(
    "given", [np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3)), "cat.jpg", []], ids=str
)
def test_transform_refuses_what_is_not_a_picture(given):
    pytest.importorskip("PIL")
    with pytest.raises(UsageError, match="picture"):
        ckptkit.transform("moganet-xt-224", framework="keras")(given)


def test_fetch_shows_its_progress(archive, monkeypatch):
    entry = ckptkit.registry()["tiny-moat0-256"]
    folder = archive.parent / "server"
    published = folder / entry.sources[0].url.partition("://")[2].partition("/")[2]
    published.parent.mkdir(parents=True)
    archive.rename(published)
    host = "/".join(entry.sources[0].url.split("/")[:3])
    seen = []

    @contextmanager
    def progress(description, total, /, *, unit="bytes"):
        seen.append((description, total, unit))
        yield seen.append

    mirrors = [f"{host}={folder.as_uri()}"]
    path = ckptkit.fetch(entry, mirrors=mirrors, progress=progress)
    (_, total, unit), *steps = seen
    assert unit == "bytes" and total == published.stat().st_size == sum(steps)
    assert ckptkit.fetch(entry, progress=progress) == path and len(seen) == len(steps) + 1
    seen.clear()
    assert ckptkit.fetch(entry, mirrors=mirrors, force=True, progress=progress) == path
    assert sum(seen[1:]) == total


def test_an_unknown_id_is_said_so():
    with pytest.raises(NotFoundError, match="moat2-384"):
        ckptkit.fetch("moat2-383")
    with pytest.raises(NotFoundError, match="which goes by ids; take an id such as"):
        ckptkit.registry()[0]


@pytest.fixture
def two_models(tmp_path):
    """A file of two models, and what each of its state dicts holds."""
    torch = pytest.importorskip("torch")
    held = {"student": {"net.w": torch.ones(2)}, "teacher": {"net.w": torch.zeros(2)}}
    torch.save({"models": held}, tmp_path / "two.pth")
    return tmp_path / "two.pth"


def test_what_of_a_file_is_meant_can_be_said(two_models, tmp_path):
    chosen = {"layout": "as-is", "state_dict": "models.teacher", "strip_prefix": "net."}
    with pytest.raises(CkptkitError, match=r'choose one with state_dict="models.student"$'):
        ckptkit.load(two_models, layout="as-is")
    assert {name: array.tolist() for name, array in ckptkit.load(two_models, **chosen).items()} == {
        "w": [0, 0]
    }
    path = ckptkit.convert(two_models, output=tmp_path / "t.npz", **chosen | {"strip_prefix": ["ne", "t"]})
    with open_reader(path) as reader:
        assert list(reader.specs) == ["w"]
        assert reader.metadata["source_state_dict"] == "models.teacher"
        assert reader.metadata["source_prefix"] == "ne t"
    assert ckptkit.verify(two_models, state_dict="models.student").ok
    with pytest.raises(UsageError, match="give checkpoint= too"):
        ckptkit.create_model("tiny-moat0", state_dict="x")
    with pytest.raises(UsageError, match="synthetic weights have one state dict"):
        ckptkit.export("tiny-moat0-256", "hf", tmp_path / "o", synthetic=True, state_dict="x")


def test_an_entry_is_taken_wherever_an_id_is(archive):
    registry = ckptkit.registry()
    entry = registry["tiny-moat0-256"]
    assert registry[entry] is entry
    put_entry(Home.default(), entry.id, archive.read_bytes(), file=entry.file_name)
    assert ckptkit.fetch(entry) == ckptkit.fetch(entry.id)
    assert ckptkit.verify(entry).to_json() == ckptkit.verify(entry.id).to_json()
    assert ckptkit.load(entry).keys() == ckptkit.load(entry.id).keys()
    converted = ckptkit.convert(entry, "npz")
    assert converted == ckptkit.convert(entry.id, "npz") and entry.id in converted.parts
    with pytest.raises(NotFoundError, match="moat0-224: no training log"):
        ckptkit.logs(registry["moat0-224"])


def test_synthetic_weights_of_an_entry(tmp_path):
    entry = ckptkit.registry()["moganet-xt-224"]
    folders = [
        ckptkit.export(one, "hf", tmp_path / name, synthetic=True)
        for one, name in ((entry, "a"), (entry.id, "b"))
    ]
    assert folders[0].joinpath("README.md").read_text() == folders[1].joinpath("README.md").read_text()


@pytest.mark.parametrize(
    ("said", "in_words_of_python"),
    [
        (
            "give --force to replace it, or another --output",
            "give force=True to replace it, or another output",
        ),
        ("give -o there/m.npz, or --to torch", 'give output="there/m.npz", or to="torch"'),
        ("leave --weights out, or use raw", "leave weights out, or use raw"),
        (
            "--no-head, --variant cannot be used with --layout as-is",
            'head=False, variant cannot be used with layout="as-is"',
        ),
        (
            "choose --to torch or npz; --dtype float32 casts floats",
            'choose to="torch" or npz; dtype="float32" casts floats',
        ),
        (
            "--layout as-is changes it, --rules FILE its names",
            'layout="as-is" changes it, rules="FILE" its names',
        ),
        ("Choose one with --state-dict model.ema", 'Choose one with state_dict="model.ema"'),
        ("take it off with --strip-prefix module.", 'take it off with strip_prefix="module."'),
        (
            "give --set attn_force_fp32=true or =false; x",
            'give settings={"attn_force_fp32": True} or {"attn_force_fp32": False}; x',
        ),
        (
            "leave --resolution and --batch as the file has them",
            "leave resolution and batch as the file has them",
        ),
        ("try again later, or give a --mirror", "try again later, or give a CKPTKIT_MIRROR"),
        ("x is on disk. Run: ckptkit import x --force", "x is on disk. Run: ckptkit import x --force"),
        ("'ckptkit export ID --to hf' writes one", "'ckptkit export ID --to hf' writes one"),
        ("my--force.pth: no such file", "my--force.pth: no such file"),
    ],
)
def test_errors_speak_of_arguments(said, in_words_of_python):
    assert in_python(said) == in_words_of_python
    assert in_python(in_words_of_python) == in_words_of_python


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (
            lambda path: ckptkit.convert(path, output=path.with_suffix(".pth")),
            'layout="as-is" changes the container',
        ),
        (
            lambda path: ckptkit.convert(path, layout="as-is", head=False),
            'head=False cannot be used with layout="as-is"',
        ),
        (lambda path: ckptkit.convert(path, "npz", path.parent / "m.pth"), 'or to="torch"'),
        (lambda path: ckptkit.create_model("moganet-xt"), "give attn_force_fp32=True or False"),
        (
            lambda path: ckptkit.export("moganet-xt", "hf", path.parent / "new", synthetic=True),
            'settings={"attn_force_fp32": True} or {',
        ),
    ],
)
def test_errors_of_the_python_face(arrays, call, hint):
    if hint.startswith("give attn"):
        pytest.importorskip("torch")  # asked for before the setting is
    with pytest.raises(CkptkitError) as refused:
        call(arrays)
    assert hint in str(refused.value) and "--" not in str(refused.value)


def test_parity_of_a_synthetic_variant():
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    report = ckptkit.parity("tiny-moat0", synthetic=True, resolution=64)
    assert report.ok and report.synthetic
    assert [stage.name for stage in report.stages] == [*(f"stage{n}" for n in range(1, 6)), "logits"]
