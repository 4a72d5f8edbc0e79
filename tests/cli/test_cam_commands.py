"""``ckptkit cam`` as users call it: pictures, words, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckptkit.cli import cam_commands
from tests.support.commands import Run, Runner, pip_install, runner
from tests.support.pictures import drawn, save
from tests.support.running import finish, start

SMALL = ("--synthetic", "--resolution", "64")
WITHOUT = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {!r}:
            raise ModuleNotFoundError("hidden: " + name)
sys.meta_path.insert(0, Hidden())
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Runs in a folder that holds cat.jpg and images/ with two pictures and something else."""
    for package in ("torch", "captum", "PIL"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    save(drawn(seed=1), tmp_path / "cat.jpg")
    save(drawn(seed=2), tmp_path / "images" / "a.png")
    save(drawn(120, 160, seed=3), tmp_path / "images" / "b.jpg")
    (tmp_path / "images" / "notes.txt").write_text("no picture")
    return runner(capsys)


def rows(done: Run) -> list[list[str]]:
    return [line.split() for line in done.out.splitlines()[1:]]


def size_of(path: str) -> tuple[int, int]:
    with pytest.importorskip("PIL.Image").open(path) as picture:
        size: tuple[int, int] = picture.size
        return size


def test_an_overlay_of_the_predicted_class(run: Runner):
    done = run("cam", "moganet-xt-224", "cat.jpg", "-o", "out.png", *SMALL)
    assert (done.code, size_of("out.png")) == (0, (64, 64))
    assert done.out.splitlines()[0].split() == (
        ["image", "class", "probability", "method", "stage", "most", "heat", "at", "written"]
    )
    (row,) = rows(done)
    assert (row[0], row[-1]) == ("cat.jpg", "out.png")
    assert {"predicted", "Grad-CAM", "stage4"} < set(row)
    assert "warning: synthetic weights: neither the classes nor the heat mean anything" in done.err


def test_json_has_every_map(run: Runner):
    done = run(
        "cam", "tiny-moat0", "cat.jpg", "-o", "out.webp", *SMALL, "--json", "--method", "layercam",
        "--stage", "3", "--target", "tabby", "--target", "n01440764", "--target", "5",
    )  # fmt: skip
    values = json.loads(done.out)
    assert [value["class"]["index"] for value in values] == [281, 0, 5]
    assert {(value["method"], value["stage"], tuple(value["grid"])) for value in values} == {
        ("layercam", "stage3", (8, 8))
    }
    assert {(value["image"], value["file"], value["name"]) for value in values} == {
        ("cat.jpg", "out.webp", "tiny-moat0")
    }
    assert all(0 < value["probability"] < 1 and value["synthetic"] for value in values)
    assert size_of("out.webp")[0] == 3 * 192 + 2 * 8 + 20  # three panels, enlarged


def test_a_file_of_ones_own_and_one_without_a_head(run: Runner):
    run("synth", "tiny-moat0", "-o", "tiny.ckpt")
    done = run("cam", "tiny.ckpt", "cat.jpg", "-o", "out.png", "--resolution", "32x64")
    assert (done.code, size_of("out.png")) == (0, (64, 32))
    assert "warning: synthetic weights" in done.err, "the file's numbers say so, whoever made it"
    with pytest.importorskip("PIL.Image").open("out.png") as picture:
        assert (picture.text["entry"], picture.text["weights"]) == ("tiny.ckpt", "synthetic")
    run("convert", "tiny.ckpt", "--no-head", "-o", "bare.safetensors")
    bare = run("cam", "bare.safetensors", "cat.jpg", "-o", "bare.png")
    assert bare.code == 2
    assert "bare.safetensors: weights without a classification head" in bare.err


def test_several_pictures_go_into_a_folder(run: Runner):
    save(drawn(seed=4), Path("other") / "A.jpg")
    done = run("cam", "moganet-xt-224", "images", "other/A.jpg", "-o", "heat.1/", *SMALL, "--layout", "heat")
    assert done.code == 0
    assert [row[-1] for row in rows(done)] == ["heat.1/a.png", "heat.1/b.png", "heat.1/A-2.png"]
    assert sorted(path.name for path in Path("heat.1").iterdir()) == ["A-2.png", "a.png", "b.png"]


def test_all_methods_beside_each_other(run: Runner):
    done = run(
        "cam", "moganet-xt-224", "cat.jpg", "-o", "out.png", *SMALL, "--compare", "methods", "--target", "7"
    )
    titles = ["Grad-CAM", "HiResCAM", "Grad-CAM++", "LayerCAM", "Eigen-CAM", "Ablation-CAM"]
    assert [title for title in titles if f"  {title} " in done.out] == titles
    early = run(
        "cam", "moganet-xt-224", "cat.jpg", "-o", "early.png", *SMALL, "--compare", "methods", "--stage", "1"
    )
    assert len(rows(early)) == 5
    assert "Ablation-CAM" not in early.out  # a pass of the whole model for every channel


def test_all_stages_beside_each_other(run: Runner):
    done = run("cam", "tiny-moat0", "cat.jpg", "-o", "out.png", *SMALL, "--compare", "stages")
    found = [next(word for word in row if word.startswith("stage")) for row in rows(done)]
    assert found == ["stage1", "stage2", "stage3", "stage4", "stage5"]


def test_a_bad_picture_leaves_the_others(run: Runner):
    Path("images/c.jpg").write_bytes(b"\xff\xd8 not a picture")
    done = run("cam", "moganet-xt-224", "images", "missing.png", "-o", "heat", *SMALL)
    assert done.code == 5
    assert [row[0] for row in rows(done)] == ["images/a.png", "images/b.jpg"]
    assert "warning: images/c.jpg was left out: images/c.jpg: " in done.err
    assert "warning: missing.png was left out: missing.png: no such image" in done.err
    assert sorted(path.name for path in Path("heat").iterdir()) == ["a.png", "b.png"]


def test_when_all_of_several_fail_there_is_no_table(run: Runner):
    Path("bad.png").write_bytes(b"nothing")
    Path("worse.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = run("cam", "moganet-xt-224", "bad.png", "worse.png", "-o", "heat.v2/", *SMALL)
    assert (done.code, done.out) == (5, "")
    assert done.err.count("was left out") == 2


def test_the_only_picture_is_the_error(run: Runner):
    assert run("cam", "moganet-xt-224", "missing.png", "-o", "out.png", *SMALL).code == 3
    Path("bad.png").write_bytes(b"nothing")
    done = run("cam", "moganet-xt-224", "bad.png", "-o", "out.png", *SMALL)
    assert (done.code, done.out) == (5, "")
    assert "error: bad.png: not an image of a format that is read" in done.err
    assert not Path("out.png").exists()


def test_dry_run_writes_nothing(run: Runner):
    done = run("cam", "moganet-xt-224", "images", "-o", "heat/", "--synthetic", "--dry-run")
    assert done.code == 0
    assert done.out.splitlines() == [
        "moganet-xt-224: shorter side to 248, bicubic, centre 224x224, normalization imagenet",
        "would write heat/a.png from images/a.png",
        "would write heat/b.png from images/b.jpg",
    ]
    assert not Path("heat").exists()


def test_an_existing_picture_stays(run: Runner):
    Path("out.png").write_bytes(b"mine")
    done = run("cam", "moganet-xt-224", "cat.jpg", "-o", "out.png", *SMALL)
    assert done.code == 2
    assert "out.png exists already; give --force" in done.err
    assert Path("out.png").read_bytes() == b"mine"
    assert run("cam", "moganet-xt-224", "cat.jpg", "-o", "out.png", *SMALL, "--force").code == 0
    assert size_of("out.png") == (64, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cat.jpg", "-o", "out.gif"), "cannot tell the picture format from 'out.gif'"),
        (("images", "-o", "out.png"), "2 images cannot be written to one file, out.png; give -o a folder"),
        (("cat.jpg", "-o", "out.png", "--stage", "9"), "unknown stage '9'; this model has stage1 to stage4"),
        (("cat.jpg", "-o", "out.png", "--target", "cta"), "unknown class 'cta'"),
        (("cat.jpg", "-o", "o.png", "--compare", "methods", "--method", "gradcam"), "leave --method out"),
        (("cat.jpg", "-o", "o.png", "--compare", "stages", "--stage", "1"), "leave --stage out"),
        (
            ("cat.jpg", "-o", "o.png", "--compare", "stages", "--target", "1", "--target", "2"),
            "--target once",
        ),
        (("cat.jpg", "-o", "o.png", "--method", "eigencam", "--target", "1", "--target", "2"), "every class"),
    ],
)
def test_requests_that_make_no_sense(arguments: tuple[str, ...], message: str, run: Runner):
    done = run("cam", "moganet-xt-224", *arguments, *SMALL)
    assert done.code == 2
    assert message in done.err
    assert sorted(path.name for path in Path().iterdir()) == ["cat.jpg", "images"]


def test_nothing_that_speaks_for_a_class_is_said(run: Runner, monkeypatch: pytest.MonkeyPatch):
    from ckptkit.analysis.cam.methods import METHODS, Method

    monkeypatch.setitem(
        METHODS, "gradcam", Method("gradcam", "Grad-CAM", lambda q: -q.activation()[0, 0].abs())
    )
    done = run("cam", "moganet-xt-224", "cat.jpg", "-o", "out.png", *SMALL, "--target", "7")
    assert done.code == 0
    assert "nowhere" in rows(done)[0]
    assert "cat.jpg: gradcam finds no evidence for cock at stage4; the heat is zero" in done.err


@pytest.mark.parametrize("package", ["captum", "torch"])
def test_a_missing_package_is_asked_for_before_any_work(package: str, tmp_path: Path):
    for other in ("torch", "captum", "PIL"):  # one error names all that are missing
        pytest.importorskip(other)
    arguments = ["cam", "moganet-xt-224", tmp_path / "missing.jpg", "-o", tmp_path / "out.png"]
    code, out, err = finish(start(arguments, tmp_path, WITHOUT.format(package)))
    assert (code, out) == (6, "")
    assert err.strip() == f"error: a heat map needs {package}; {pip_install(package)}"


def test_the_choices_are_those_there_are():
    from ckptkit.analysis.cam.methods import METHODS
    from ckptkit.analysis.cam.picture import COLORMAPS, LAYOUTS

    assert [one.value for one in cam_commands.WhichMethod] == list(METHODS)
    assert [one.value for one in cam_commands.WhichLayout] == list(LAYOUTS)
    assert [one.value for one in cam_commands.WhichColormap] == list(COLORMAPS)


def test_from_python(run: Runner):
    import ckptkit

    found = ckptkit.cam(
        "moganet-xt-224", "cat.jpg", synthetic=True, resolution=(64, 96), target="tabby", stage=2
    )
    assert (found.class_name, found.stage, found.heat.shape) == ("tabby", "stage2", (8, 12))
    assert found.picture.size == (96, 64)
    found.save("python.png", layout="side-by-side")
    assert Path("python.png").exists()
