"""The project's own promises: what CI runs, what imports what, what the package ships."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
FRAMEWORKS = {"torch", "tensorflow", "keras"}
HEAVY = sorted(FRAMEWORKS | {"h5py", "matplotlib"})


def readme_commands():
    return re.findall(r"```sh\n(pip install .*)\n```", README)[:2]


def test_the_readme_opens_with_the_two_commands():
    demo, tests = readme_commands()
    assert demo.endswith("&& ckptkit demo")
    assert tests.endswith("python -m pytest")


def test_ci_runs_the_readmes_test_command_word_for_word():
    _, tests = readme_commands()
    assert tests in (REPOSITORY / ".ci" / "run").read_text().splitlines()


def modules_imported(code, home):
    program = f"import sys\n{code}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    child = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "CKPTKIT_HOME": str(home), "HOME": str(home)},
    )
    return set(child.stdout.splitlines()[-1].split())


RUN = """
from ckptkit.cli.app import main
try:
    main({arguments!r})
except SystemExit as stop:
    assert not stop.code, stop.code
"""


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import ckptkit", [*HEAVY, "numpy", "requests", "pydantic", "typer"]),
        (RUN.format(arguments=["list"]), [*HEAVY, "requests", "numpy"]),
        (RUN.format(arguments=["show", "moat0-224"]), [*HEAVY, "requests", "numpy"]),
        (RUN.format(arguments=["--help"]), [*HEAVY, "requests", "numpy", "pydantic"]),
    ],
    ids=["import", "list", "show", "help"],
)
def test_what_a_start_imports(tmp_path, code, forbidden):
    assert modules_imported(code, tmp_path) & set(forbidden) == set()


def test_conversions_between_all_formats_import_no_framework(tmp_path):
    code = "\n".join(
        RUN.format(arguments=arguments)
        for arguments in (
            ["synth", "tiny-moat0", "-o", str(tmp_path / "a.ckpt")],
            ["verify", str(tmp_path / "a.ckpt"), "--deep"],
            ["inspect", str(tmp_path / "a.ckpt"), "--stats"],
            [
                "convert",
                str(tmp_path / "a.ckpt"),
                "--to",
                "safetensors",
                "-o",
                str(tmp_path / "b.safetensors"),
            ],
            ["convert", str(tmp_path / "b.safetensors"), "--to", "torch", "-o", str(tmp_path / "c.pth")],
            ["convert", str(tmp_path / "c.pth"), "--to", "keras", "-o", str(tmp_path / "c.weights.h5")],
            ["convert", str(tmp_path / "c.weights.h5"), "--to", "tf", "-o", str(tmp_path / "d.ckpt")],
        )
    )
    assert modules_imported(code, tmp_path) & {*HEAVY, "requests"} == set()
    assert (tmp_path / "d.ckpt.index").exists()


def test_frameworks_are_imported_at_module_level_in_model_files_only():
    offenders = []
    for path in sorted((REPOSITORY / "ckptkit").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            in_families = "families" in (path.parent.name, path.parent.parent.name)
            in_model = in_families and path.name.startswith(("torch_", "keras_"))
            if FRAMEWORKS & {name.partition(".")[0] for name in names} and not in_model:
                offenders.append(str(path))
    assert offenders == []


def test_no_checksum_is_in_the_registry_that_nobody_observed():
    text = (REPOSITORY / "registry.yaml").read_text()
    for block in re.split(r"\n  - id:", text)[1:]:
        if re.search(r"sha256: *['\"]?[0-9a-f]{64}", block):
            assert "observed_at" in block


@pytest.mark.parametrize(
    "path", sorted(p.relative_to(REPOSITORY).as_posix() for p in (REPOSITORY / "ckptkit").rglob("*.py"))
)
def test_files_stay_short(path):
    assert len((REPOSITORY / path).read_text().splitlines()) <= 420


def test_every_picture_of_the_readme_is_there():
    pictures = re.findall(r'<img src="([^"]+)"', README)
    assert len(pictures) >= 4
    for picture in pictures:
        assert (REPOSITORY / picture).stat().st_size > 1000, picture


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is Unix's")
def test_the_readmes_list_is_what_list_prints_today():
    script = runpy.run_path(str(REPOSITORY / ".github" / "pictures" / "make.py"))
    command, width = script["TERMINALS"]["list.svg"]
    kept = (REPOSITORY / ".github" / "pictures" / "list.svg").read_text(encoding="utf-8")
    assert words(script["terminal_picture"](command, width)) == words(kept)


def words(svg):
    """What an SVG shows, without how."""
    lines = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    return "".join(lines).split()
