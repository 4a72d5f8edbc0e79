"""Light rows: the same as the entries, and nothing that lies in the cache has a say in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckptkit.base.errors import RegistryError
from ckptkit.registry import loading, paths, rows
from ckptkit.registry.query import DEVIATION_FIELDS, ENTRY_FIELDS, SOURCE_FIELDS
from tests.support.registries import SMALL, write


def test_rows_have_everything_that_entries_have(tmp_path: Path) -> None:
    entries = loading.load_registry()
    overlay = write(tmp_path, "entries: []")
    for light in (rows.load_rows(), rows.load_rows([overlay])):  # without the schema, and with it
        assert list(light) == list(entries)
        for id, entry in entries.items():
            row = light[id]
            assert row.fields == entry.model_dump(mode="json")
            assert list(row.fields) == list(ENTRY_FIELDS)
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


def test_a_pinned_row_has_its_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = (
        "id: moat0-224, size: 5, sha256: " + "ab" * 32 + ", hash_provenance: "
        "{observed_at: 2026-01-02T03:04:05Z, url: 'https://a.org/x'}"
    )
    overlay = write(tmp_path, f"entries: [{{{pinned}}}]")
    alone = write(tmp_path, f"entries: [{{{pinned}, sources: [{{url: 'https://a.org/x'}}]}}]", "alone.yaml")
    with_overlay = rows.load_rows([overlay])["moat0-224"]
    monkeypatch.setattr(paths, "built_in_path", lambda: alone)
    by_itself = rows.load_rows()["moat0-224"]
    assert by_itself.sources[0].note == ""
    for row in (with_overlay, by_itself):
        assert row.hash_provenance is not None
        assert row.hash_provenance.observed_at == "2026-01-02T03:04:05Z"
        assert row.hash_provenance.note is None


def test_the_rows_follow_every_change_of_a_file(tmp_path: Path) -> None:
    overlay = write(tmp_path, "entries: [{id: moat0-224, note: aaaa}]")
    assert rows.load_rows([overlay])["moat0-224"].note == "aaaa"
    was = overlay.stat()
    write(tmp_path, "entries: [{id: moat0-224, note: bbbb}]")
    os.utime(overlay, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert rows.load_rows([overlay])["moat0-224"].note == "bbbb"
    assert rows.load_rows()["moat0-224"].note is None


def test_a_fault_is_told_although_it_was_sound_before(tmp_path: Path) -> None:
    overlay = write(tmp_path, SMALL)
    assert len(rows.load_rows([overlay])) == 44
    write(tmp_path, SMALL.replace("id: two", "id: one"))
    for _ in range(2):
        with pytest.raises(RegistryError, match="id 'one' is given twice"):
            rows.load_rows([overlay])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "entries: 5", "entries: [5]", "families: 5\nentries: []", "entries: [{id: a}]", "entries: ["],
)
def test_a_built_in_registry_with_a_fault_is_refused_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    broken = write(tmp_path, text)
    monkeypatch.setattr(paths, "built_in_path", lambda: broken)
    with pytest.raises(RegistryError, match="fault"):
        rows.load_rows()


def test_nothing_of_the_registry_is_kept_in_the_cache(tmp_path: Path) -> None:
    """Whoever can write there, in a cache that several share, would decide on checksums and figures."""
    home = Path(os.environ["CKPTKIT_HOME"])
    rows.load_rows()
    rows.load_rows([write(tmp_path, SMALL)])
    assert not home.exists() or not list(home.iterdir())


def test_rows_import_no_heavy_package() -> None:
    code = (
        "import sys; from ckptkit.registry import load_rows; load_rows().find(max_params='30M');"
        "print(sorted({'pydantic', 'numpy', 'rich', 'requests', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
