"""The WD tagger's edition of MOAT against what its published code computed.

``wd_tiny`` holds the variables of a small model of that code as TensorFlow 2.10.1 wrote them, and the
recorded logits are its; ``golden_wd_moat2.npz`` has those of the published size, of weights by the recipe and
the published variable names, whose pairs with deeplab2's are in ``wd_rules.json``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptkit
from ckptkit.base.errors import ConversionError, FormatError, UsageError
from ckptkit.families.base import Structure, get_family
from ckptkit.families.moat.config import MOAT_CONFIGS, MoatConfig
from ckptkit.models.images.classes import read_tags
from ckptkit.models.synth import Synthetic, write_checkpoint
from tests.support.commands import runner
from tests.support.http_server import FaultServer
from tests.support.moat_reference import GOLDEN_FOLDER, golden_input, moat_variables

TOLERANCE = 5e-6
"""Of the largest recorded logit, as for deeplab2's models: 6.2e-7 (moat2 at 224) to 8.9e-7 are measured."""

TINY = MoatConfig("wd-tiny", 8, (2, 1, 2, 1), (8, 16, 32, 64), 64, "half")
VARIABLES = GOLDEN_FOLDER / "wd_tiny" / "variables" / "variables"
MOAT = get_family("moat")
EDITION = MOAT.layouts["wd-tagger"].settings


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the small model a variant."""
    monkeypatch.setitem(MOAT_CONFIGS, TINY.name, TINY)
    return TINY.name


def pixels(side: int) -> Any:
    """What the tagger was fed: BGR from 0 to 255, channels last."""
    return np.clip(np.rint(np.float32(127.5) + np.float32(64) * golden_input(side, side)), 0, 255)


def images(side: int) -> Any:
    """The same pictures as ckptkit's models take them: RGB, normalized."""
    return np.ascontiguousarray((pixels(side)[..., ::-1] - np.float32(127.5)) * np.float32(1 / 127.5))


def logits(variant: str, checkpoint: Path, side: int, framework: str = "torch", **settings: Any) -> Any:
    model = ckptkit.create_model(variant, framework, checkpoint=checkpoint, resolution=side, **settings)
    if framework == "keras":
        return model(images(side)).numpy()
    import torch

    with torch.inference_mode():
        return model(torch.from_numpy(images(side)).permute(0, 3, 1, 2)).numpy()


def departure(found: Any, recorded: Any) -> float:
    return float(np.abs(found - recorded).max() / np.abs(recorded).max())


def recorded_tiny() -> Any:
    with np.load(GOLDEN_FOLDER / "wd_tiny_64.npz") as golden:
        probabilities = 1 / (1 + np.exp(-golden["logits"].astype(np.float64)))
        np.testing.assert_allclose(golden["probabilities"], probabilities, rtol=1e-6)
        return golden["logits"]


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_variables_that_tensorflow_saved(tiny, framework):
    """Both models, written independently; nobody is asked for settings but the window of this size."""
    pytest.importorskip({"torch": "torch", "keras": "tensorflow"}[framework])
    found = logits(tiny, VARIABLES, 64, framework, window_size=[2, None])
    assert departure(found, recorded_tiny()) <= TOLERANCE


MISTAKES = {
    "swish in squeeze-and-excite": {"se_activation": "swish"},
    "LayerNorm epsilon 1e-5": {"layer_norm_epsilon": 1e-5},
    "channels swapped": {"input_order": "rgb"},
    "a pool of 2": {"pool_size": 2},
    "no window": {"window_size": None},
    "windows in the last stage too": {"window_size": {2: 2, 3: 1}},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_setting_that_is_wrong_shows(tiny, mistake):
    pytest.importorskip("torch")
    found = logits(tiny, VARIABLES, 64, **{"window_size": [2, None], **MISTAKES[mistake]})
    assert departure(found, recorded_tiny()) > 10 * TOLERANCE  # the least moves it by 8.4e-5


@pytest.mark.parametrize("attribute", ["gelu", "_batch_norm", "same_padding"])
def test_a_planted_mistake_shows(tiny, monkeypatch, attribute):
    torch = pytest.importorskip("torch")
    from ckptkit.families.moat import torch_model

    wrong = {
        "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "_batch_norm": lambda width: torch.nn.BatchNorm2d(width, eps=1e-5),
        "same_padding": lambda x, kernel, _: torch.nn.functional.pad(x, (kernel // 2,) * 4),
    }
    monkeypatch.setattr(torch_model, attribute, wrong[attribute])
    found = logits(tiny, VARIABLES, 64, window_size=[2, None])
    assert departure(found, recorded_tiny()) > 10 * TOLERANCE


def test_inspect_and_convert_say_what_it_is(tiny, tmp_path):
    seen = ckptkit.inspect(VARIABLES)
    assert (seen.format, seen.layout, seen.variant) == ("tf", "wd-tagger", tiny)
    converted = ckptkit.convert(VARIABLES, output=tmp_path / "a.safetensors")
    metadata = ckptkit.inspect(converted).metadata
    assert {key: json.loads(metadata[key]) for key in EDITION} == dict(EDITION)
    pytest.importorskip("torch")
    found = logits(tiny, converted, 64, window_size=[2, None])
    assert departure(found, recorded_tiny()) <= TOLERANCE
    back = ckptkit.convert(converted, output=tmp_path / "b.ckpt", layout="wd-tagger")
    ours, theirs = (ckptkit.load(path, layout="as-is") for path in (back, VARIABLES))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("converted", [False, True], ids=["as published", "converted"])
def test_predict_gives_each_tag_its_own_probability(tiny, tmp_path, converted):
    pytest.importorskip("torch")
    image = pytest.importorskip("PIL.Image")
    path = ckptkit.convert(VARIABLES, output=tmp_path / "a.safetensors") if converted else VARIABLES
    picture = image.fromarray(pixels(64)[0][..., ::-1].astype(np.uint8))
    (found,) = ckptkit.predict(path, picture, top=20, resolution=64, settings={"window_size": [2, None]})
    with np.load(GOLDEN_FOLDER / "wd_tiny_64.npz") as golden:
        wanted = golden["probabilities"][0]
    by_tag = np.array([guess.probability for guess in sorted(found.top, key=lambda one: one.index)])
    np.testing.assert_allclose(by_tag, wanted, rtol=0, atol=1e-6)
    assert found.best.name is None and by_tag.sum() > 2


TAGS = "tag_id,name,category,count\n" + "".join(f'{n},"tag_{n}, one",0,9\n' for n in range(20))


def test_predict_with_the_publishers_names_of_the_tags(tiny, tmp_path):
    pytest.importorskip("torch")
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "model"
    shutil.copytree(VARIABLES.parent, folder / "variables")
    (folder / "selected_tags.csv").write_text(TAGS)
    picture = image.fromarray(pixels(64)[0][..., ::-1].astype(np.uint8))

    def predicted():
        path = folder / "variables" / "variables.index"
        return ckptkit.predict(path, picture, top=3, resolution=64, settings={"window_size": [2, None]})[0]

    found = predicted()
    with np.load(GOLDEN_FOLDER / "wd_tiny_64.npz") as golden:
        best = int(golden["probabilities"][0].argmax())
    assert (found.best.index, found.best.name, found.best.wnid) == (best, f"tag_{best}, one", None)
    assert [column.heading for column in found.table().columns] == ["rank", "probability", "class", "name"]
    (folder / "selected_tags.csv").write_text(TAGS.rpartition("\n19,")[0])
    with pytest.raises(FormatError, match="a list of 19 tags, of a model with 20"):
        predicted()


@pytest.mark.parametrize("text", ["tag_id,category\n1,0\n", "\0", "name\na\n,b"], ids=repr)
def test_what_is_no_list_of_tags(tmp_path, text):
    (tmp_path / "tags.csv").write_text(text)
    with pytest.raises(FormatError, match=r"tags.csv: (not a list of tags|a list of)"):
        read_tags(tmp_path / "tags.csv", 20)


def test_a_tagger_published_as_files_goes_all_the_way(tiny, tmp_path, capsys):
    """Fetch, verify, inspect, convert: the checkpoint is two files, and the list of tags comes with it."""
    files = {f"/w/variables/{path.name}": path.read_bytes() for path in VARIABLES.parent.iterdir()}
    files["/w/selected_tags.csv"] = TAGS.encode()
    stated = {
        path: {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)} for path, body in files.items()
    }
    with FaultServer() as server:
        for path, body in files.items():
            server.serve(path, body)
        index, data, tags = sorted(files, key=lambda path: (".csv" in path, ".data" in path))
        row = {
            **{"id": "tiny-tagger", "family": "moat", "variant": tiny, "layout": "wd-tagger", "format": "tf"},
            **{"display_name": "tagger", "task": "multi-label-tagging", "num_classes": 20, "pos_emb": False},
            **{"window_size": [2, None], "test_resolution": 64, "train_resolution": 64},
            "sources": [{"url": server.url(index)}],
            "companions": [
                {"path": Path(data).name, **stated[data]},
                {"path": "../selected_tags.csv", **stated[tags]},
            ],
            **stated[index],
            "checksum_page": server.url("/commit"),
        }
        overlay = tmp_path / "mine.yaml"
        overlay.write_text(json.dumps({"entries": [row]}))
        registry = ["--registry", overlay]

        def run(*arguments):
            done = runner(capsys)(*arguments, *registry)
            assert done.code == 0, done.err
            return done

        far = run("inspect", "tiny-tagger")
        assert "wd-tagger" in far.out and "reading the header" in far.err
        size = sum(map(len, files.values()))
        plan = json.loads(run("fetch", "tiny-tagger", "--dry-run", "--json").out)[0]
        assert (plan["size"], plan["files"], plan["action"]) == (size, 3, "fetch")
        fetched = run("fetch", "tiny-tagger")
        assert "sha256 as the publisher says" in fetched.err and "and 2 files beside it" in fetched.err
        path = Path(fetched.out.strip())
        assert path.name == "variables.index"
        verified = run("verify", "tiny-tagger", "--deep", "--verbose")
        assert "as the publisher states" in verified.out
        assert all(one["sha256"] in verified.out for one in stated.values())
        converted = Path(run("convert", "tiny-tagger", "--to", "safetensors").out.split()[-1])
        assert "already up to date" in run("convert", "tiny-tagger", "--to", "safetensors").err
        shown = run("show", "tiny-tagger").out
        assert shown.index("../selected_tags.csv") < shown.index("each stated by the publisher at http")
        sums = run("cache", "checksums", "tiny-tagger").out
        assert {line.split()[0] for line in sums.splitlines()} == {one["sha256"] for one in stated.values()}
        assert "intact" in run("cache", "ls").out
    pytest.importorskip("torch")
    found = logits(tiny, converted, 64)
    assert departure(found, recorded_tiny()) <= TOLERANCE
    (path.parent / Path(data).name).write_bytes(b"?" + files[data][1:])
    (path.parent / "selected_tags.csv").unlink()
    verified = runner(capsys)("verify", "tiny-tagger", *registry)
    assert verified.code == 1 and f"{Path(data).name}: sha256 is" in verified.out
    assert "selected_tags.csv is not there" in verified.out


def test_a_classifier_is_no_tagger(tmp_path):
    """Its function is another one, whatever its tensors are called."""
    made = write_checkpoint(Synthetic("tiny-moat0", pos_emb=False), tmp_path / "a.ckpt")
    with pytest.raises(ConversionError, match="pool_size is 2; code that reads layout wd-tagger has 3"):
        ckptkit.convert(made, output=tmp_path / "b.ckpt", layout="wd-tagger")


def test_position_tables_have_no_place_in_a_taggers_file(tmp_path):
    made = write_checkpoint(Synthetic("tiny-moat0", pos_emb=True), tmp_path / "a.ckpt")
    with pytest.raises(ConversionError, match="no place for 9 tensors with other values than 0"):
        ckptkit.convert(made, output=tmp_path / "b.ckpt", layout="wd-tagger", settings=EDITION)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("b")] == []


@pytest.mark.parametrize(
    ("key", "value"), [("se_activation", "relu"), ("layer_norm_epsilon", 0.0), ("input_order", "gbr")]
)
def test_values_that_a_setting_cannot_have(key, value):
    with pytest.raises(UsageError, match=f"{key} is "):
        MOAT.check_setting(key, value)


def test_settings_by_word(capsys, tmp_path):
    made = write_checkpoint(Synthetic("tiny-moat0"), tmp_path / "a.ckpt")
    target = tmp_path / "a.safetensors"
    options = ["--set", "se_activation=gelu", "--set", "layer_norm_epsilon=1e-3"]
    assert runner(capsys)("convert", made, "-o", target, *options).code == 0
    metadata = ckptkit.inspect(target).metadata
    assert (metadata["se_activation"], metadata["layer_norm_epsilon"]) == ('"gelu"', "0.001")
    assert runner(capsys)("convert", made, "-o", target, "--set", "se_activation=relu").code == 2


# -- the published size --------------------------------------------------------------------------------------


def published_variables() -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tagger's variables: deeplab2's name and shape of each, and what their axes become."""
    rules = json.loads((GOLDEN_FOLDER / "wd_rules.json").read_text())
    deeplab2 = {
        name: tuple(shape)
        for name, shape, _ in moat_variables()["moat2"]["variables"]
        if not name.endswith("relative_position_embedding")
    }
    depths = {0: 2, 1: 6, 2: 14, 3: 2}
    found = {}
    for name, (other, turned) in rules.items():
        places = [(s, b) for s, depth in depths.items() for b in range(depth)] if "{s}" in name else [(0, 0)]
        for s, b in places:
            theirs = other.format(s=s, b=b)
            if theirs in deeplab2:
                shape = deeplab2.pop(theirs)
                found[name.format(s=s, b=b)] = theirs, shape[2:] if turned == "IO->11IO" else shape
    assert not deeplab2
    return found


def test_every_published_variable():
    table = MOAT.table("wd-tagger", "moat2", Structure(pos_emb=False))
    deeplab2 = MOAT.table("deeplab2", "moat2", Structure(pos_emb=False)).by_canonical
    found = {row.external: (deeplab2[row.canonical].external, row.external_shape) for row in table.bindings}
    assert found == published_variables()
    assert len(found) == 594
    tagger = MOAT.table("wd-tagger", "moat2", Structure(pos_emb=False, num_classes=9083))
    assert tagger.parameters == 81_533_371


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "keras"])
@pytest.mark.parametrize(
    ("case", "side", "window"),
    [("224_ws7", 224, [7, None]), ("224_wsNone", 224, None), ("448_wsNone", 448, None)],
)
def test_the_published_size(tmp_path, case, side, window, framework):
    pytest.importorskip({"torch": "torch", "keras": "tensorflow"}[framework])
    tagger = Synthetic("moat2", pos_emb=False, layout="wd-tagger", num_classes=9083)
    path = write_checkpoint(tagger, tmp_path / "variables")
    found = logits("moat2", path, side, framework, window_size=window)
    with np.load(GOLDEN_FOLDER / "golden_wd_moat2.npz") as golden:
        assert departure(found, golden[case]) <= TOLERANCE
