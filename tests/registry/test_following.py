"""The entries follow the files, and nothing in the cache has a say in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptkit.base.errors import RegistryError
from ckptkit.registry import load_registry, loading
from tests.support.registries import SMALL, write

WHOLE = "family: moat, variant: moat0, display_name: MOAT-0, layout: deeplab2, format: tf"


def test_a_pinned_row_has_its_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = (
        "id: moat0-224, size: 5, sha256: " + "ab" * 32 + ", hash_provenance: "
        "{observed_at: 2026-01-02T03:04:05Z, url: 'https://a.org/x'}"
    )
    overlay = write(tmp_path, f"entries: [{{{pinned}}}]")
    alone = write(
        tmp_path, f"entries: [{{{pinned}, sources: [{{url: 'https://a.org/x'}}], {WHOLE}}}]", "alone.yaml"
    )
    with_overlay = load_registry([overlay])["moat0-224"]
    monkeypatch.setattr(loading, "built_in_path", lambda: alone)
    by_itself = load_registry()["moat0-224"]
    assert by_itself.sources[0].note == ""
    for row in (with_overlay, by_itself):
        assert row.hash_provenance is not None
        assert row.hash_provenance.observed_at == "2026-01-02T03:04:05Z"
        assert row.hash_provenance.note is None


def test_the_rows_follow_every_change_of_a_file(tmp_path: Path) -> None:
    overlay = write(tmp_path, "entries: [{id: moat0-224, note: aaaa}]")
    assert load_registry([overlay])["moat0-224"].note == "aaaa"
    was = overlay.stat()
    write(tmp_path, "entries: [{id: moat0-224, note: bbbb}]")
    os.utime(overlay, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert load_registry([overlay])["moat0-224"].note == "bbbb"
    assert load_registry()["moat0-224"].note is None


def test_a_fault_is_told_although_it_was_sound_before(tmp_path: Path) -> None:
    overlay = write(tmp_path, SMALL)
    assert len(load_registry([overlay])) == 44
    write(tmp_path, SMALL.replace("id: two", "id: one"))
    for _ in range(2):
        with pytest.raises(RegistryError, match="id 'one' is given twice"):
            load_registry([overlay])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "entries: 5", "entries: [5]", "families: 5\nentries: []", "entries: [{id: a}]", "entries: ["],
)
def test_a_built_in_registry_with_a_fault_is_refused_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    broken = write(tmp_path, text)
    monkeypatch.setattr(loading, "built_in_path", lambda: broken)
    with pytest.raises(RegistryError, match="fault"):
        load_registry()


def test_nothing_of_the_registry_is_kept_in_the_cache(tmp_path: Path) -> None:
    """Whoever can write there, in a cache that several share, would decide on checksums and figures."""
    home = Path(os.environ["CKPTKIT_HOME"])
    load_registry()
    load_registry([write(tmp_path, SMALL)])
    assert not home.exists() or not list(home.iterdir())
