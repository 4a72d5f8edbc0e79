"""Light rows: the same as the entries, from a compiled copy that is never trusted too far."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptkit.errors import RegistryError
from ckptkit.registry import loading, rows
from ckptkit.registry.query import DEVIATION_FIELDS, ENTRY_FIELDS, SOURCE_FIELDS
from tests.support.registries import SMALL, write


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every full load."""
    counted: list[int] = []
    real = loading.load_registry

    def counting(*arguments: object) -> object:
        counted.append(1)
        return real(*arguments)

    monkeypatch.setattr(loading, "load_registry", counting)
    return counted


def compiled_copy() -> Path:
    (path,) = Path(os.environ["CKPTKIT_HOME"]).iterdir()
    assert path.name.startswith("registry-") and path.suffix == ".json"
    return path


def test_rows_have_everything_that_entries_have(loads: list[int]) -> None:
    entries = loading.load_registry()
    for attempt in ("loaded", "from the compiled copy"):
        light = rows.load_rows()
        assert list(light) == list(entries), attempt
        for id, entry in entries.items():
            row = light[id]
            for name in {*ENTRY_FIELDS, "params", "flops", "file_name", "is_archive"} - {
                "sources",
                "known_deviations",
            }:
                assert getattr(row, name) == getattr(entry, name), (id, name)
            for source, other in zip(row.sources, entry.sources, strict=True):
                assert [getattr(source, name) for name in SOURCE_FIELDS] == [
                    getattr(other, name) for name in SOURCE_FIELDS
                ]
            assert [
                [getattr(known, name) for name in DEVIATION_FIELDS] for known in row.known_deviations
            ] == [[getattr(known, name) for name in DEVIATION_FIELDS] for known in entry.known_deviations]
        assert light["moganet-xl-224"].known_deviation("flops").published == "34.5G"
        assert light["moganet-xt-224"].known_deviation("flops") is None
    assert len(loads) == 2  # one here, one for the first rows


def test_a_pinned_row_has_its_provenance(tmp_path: Path) -> None:
    overlay = write(
        tmp_path,
        "entries: [{id: moat0-224, size: 5, sha256: " + "ab" * 32 + ", hash_provenance: "
        "{observed_at: 2026-01-02T03:04:05Z, url: 'https://a.org/x'}}]",
    )
    for _ in range(2):
        row = rows.load_rows([overlay])["moat0-224"]
        assert row.hash_provenance is not None
        assert row.hash_provenance.observed_at == "2026-01-02T03:04:05Z"
        assert row.hash_provenance.note is None


def test_the_copy_follows_every_change_of_a_file(tmp_path: Path, loads: list[int]) -> None:
    overlay = write(tmp_path, "entries: [{id: moat0-224, note: aaaa}]")
    assert rows.load_rows([overlay])["moat0-224"].note == "aaaa"
    kept = overlay.stat()
    time.sleep(0.05)  # the change time is as coarse as the kernel's clock tick
    overlay.write_text("entries: [{id: moat0-224, note: bbbb}]")
    os.utime(overlay, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # same size, same modification time
    assert rows.load_rows([overlay])["moat0-224"].note == "bbbb"
    assert rows.load_rows([overlay])["moat0-224"].note == "bbbb"
    assert rows.load_rows()["moat0-224"].note is None
    assert len(loads) == 3
    # One copy for each list of files, however often these change.
    assert len(list(Path(os.environ["CKPTKIT_HOME"]).iterdir())) == 2


def test_a_fault_is_told_although_a_copy_of_better_days_is_there(tmp_path: Path) -> None:
    overlay = write(tmp_path, SMALL)
    assert len(rows.load_rows([overlay])) == 44
    write(tmp_path, SMALL.replace("id: two", "id: one"))
    for _ in range(2):
        with pytest.raises(RegistryError, match="id 'one' is given twice"):
            rows.load_rows([overlay])


def flip(text: str) -> str:
    return text.replace("27.8M", "27.9M", 1)


def other_rows(text: str) -> str:
    head, _, _ = text.partition("\n")
    return f"{head}\n[]"


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        other_rows,
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[" * 100_000,
        lambda text: "null\nnull",
        lambda text: text.replace('"identity": "', '"identity": "x', 1),
    ],
)
def test_a_damaged_copy_is_made_again(damage: Callable[[str], str], loads: list[int]) -> None:
    rows.load_rows()
    whole = compiled_copy().read_text(encoding="utf-8")
    damaged = damage(whole)
    assert damaged != whole
    compiled_copy().write_text(damaged, encoding="utf-8")
    assert rows.load_rows()["moat0-224"].published_params == "27.8M"
    assert len(loads) == 2
    assert compiled_copy().read_text(encoding="utf-8") == whole


def test_bytes_that_are_no_text_are_no_copy(loads: list[int]) -> None:
    rows.load_rows()
    compiled_copy().write_bytes(b"\xff\xfe\x00")
    assert len(rows.load_rows()) == 42
    assert len(loads) == 2


def test_another_version_has_another_copy(monkeypatch: pytest.MonkeyPatch, loads: list[int]) -> None:
    rows.load_rows()
    monkeypatch.setattr(rows, "__version__", "0.0.0")
    rows.load_rows()
    assert len(loads) == 2


@pytest.mark.parametrize("blocked", ["a file in the way", "a folder in the way"])
def test_where_nothing_can_be_kept_it_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[int], blocked: str
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("CKPTKIT_HOME", str(home))
    if blocked == "a file in the way":
        home.write_text("not a folder")
    else:
        rows.load_rows()
        (copy,) = home.iterdir()
        copy.unlink()
        copy.mkdir()
    loads.clear()
    assert len(rows.load_rows()) == len(rows.load_rows()) == 42
    assert len(loads) == 2
    assert not list(tmp_path.rglob("*.part"))


def test_rows_from_the_copy_import_no_heavy_package() -> None:
    rows.load_rows()
    code = (
        "import sys; from ckptkit.registry import load_rows; load_rows().find(max_params='30M');"
        "print(sorted({'pydantic', 'yaml', 'numpy', 'rich', 'requests', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_copy_is_one_head_line_and_the_rows() -> None:
    rows.load_rows()
    head, body = compiled_copy().read_text(encoding="utf-8").split("\n")
    assert set(json.loads(head)) == {"identity", "crc32"}
    assert len(json.loads(body)) == 42
