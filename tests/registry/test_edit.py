"""Pinning writes three fields and leaves every other byte as it was."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ckptkit.base.errors import NotFoundError, RegistryError, StorageError, UsageError
from ckptkit.base.urls import full_url
from ckptkit.registry import (
    Pin,
    built_in_path,
    load_registry,
    load_texts,
    pin,
    pin_many,
    preview_pins,
)
from tests.support.registries import SMALL, write

SHA = "0123456789abcdef" * 4
DIGITS = "1" * 64  # a number, if it were not quoted
WHEN = "2026-01-02T03:04:05Z"
URL = "https://a.org/one.tar.gz?x=1#y"
ONE = Pin("one", SHA, 1234, WHEN, URL)
TWO = Pin("two", DIGITS, 99, WHEN, "https://b.org/ü:{x},[y]#z")

WRITTEN = f"""\
    sha256: "{SHA}"
    size: 1234
    hash_provenance: {{observed_at: "{WHEN}", url: "{URL}"}}
"""


def check(path: Path, *pins: Pin, below: list[Path] | None = None) -> None:
    registry = load_texts([(file, file.read_text(encoding="utf-8")) for file in [*(below or []), path]])
    for wanted in pins:
        entry = registry[wanted.id]
        assert entry.hash_provenance is not None
        assert (entry.sha256, entry.size) == (wanted.sha256, wanted.size)
        assert (entry.hash_provenance.observed_at, full_url(entry.hash_provenance.url)) == (
            wanted.observed_at,
            wanted.url,
        )


def test_the_fields_come_behind_the_sources_and_nothing_else_changes(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    assert pin(path, "one", sha256=SHA, size=1234, observed_at=WHEN, url=URL, below=[])
    at = SMALL.index("\n  # the second")
    assert path.read_text() == SMALL[:at] + WRITTEN + SMALL[at:]
    check(path, ONE)


def test_pinning_again_changes_nothing_and_pinning_anew_changes_only_values(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    pin_many(path, [ONE, TWO], below=[])
    once = path.read_bytes()
    before = path.stat()
    assert pin_many(path, [TWO, ONE], below=[]) is False
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == (
        once,
        before.st_mtime_ns,
        before.st_ino,
    )
    newer = replace(
        ONE, sha256="f" * 64, size=5, observed_at="2027-01-01T00:00:00+00:00", url="https://c.org/x"
    )
    assert pin_many(path, [newer], below=[]) is True
    check(path, newer, TWO)
    changed = [
        pair
        for pair in zip(once.splitlines(), path.read_bytes().splitlines(), strict=True)
        if pair[0] != pair[1]
    ]
    assert [old.strip().partition(b":")[0] for old, _ in changed] == [b"sha256", b"size", b"hash_provenance"]


#: Pieces of SMALL, and ways to write the same or more, that must survive.
FIRST = SMALL[SMALL.index("  - id: one") : SMALL.index("  # the second")]
VARIANT = "    variant: moat0\n"
STATISTICS = "        bn_statistics: true\n"
SOURCES = "    sources:\n      - url: https://a.org/one.tar.gz\n" + STATISTICS
FLOW = "family: moat, variant: v, display_name: Z"
FLOW_SOURCES = "sources: [{url: 'https://a.org/z'}]"
PINNED_AS_BLOCK = (
    "    sha256: >-\n      " + "a" * 64 + "\n"
    "    hash_provenance: {observed_at: 2026-01-02T03:04:05Z, url: 'https://a.org'}\n"
)


def untouched(text: str) -> list[str]:
    """Lines that a pin of the first entry has nothing to do with."""
    touched = ("sha256", "size", "hash_provenance", "- {id: one", FLOW_SOURCES)
    return [line for line in text.splitlines() if not line.strip().startswith(touched)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        (STATISTICS, "        bn_statistics: true  # a comment\n    # another\n\n\n"),
        (VARIANT, "    sha256:\n    size: null # none\n" + VARIANT),
        (VARIANT, "    sha256: ~\n" + VARIANT),
        (VARIANT, "    note: >-\n      folded\n      text\n" + VARIANT),
        (STATISTICS, "        note: |\n          a\n\n          b\n\n"),
        (STATISTICS, STATISTICS + "    note: last\n"),
        (STATISTICS, "        note: &said a note\n"),
        ("  # the second\n", "  # the second\n  # sha256: null\n"),
        ("  - id: one\n", "  -\n    id: one\n"),
        ("  - id: one\n", "  - # said of it\n    id: 'one'\n"),
        ("  - id: one\n", f"  - {{id: zero, {FLOW}, {FLOW_SOURCES}}}\n  - id: one\n"),
        (FIRST, f"  - {{id: one, {FLOW}, {FLOW_SOURCES},}}\n"),
        (FIRST, f"  - {{id: one, sha256: null, size: 3, {FLOW},\n     {FLOW_SOURCES}}}  # end\n"),
        (SOURCES, "    sources: [{url: https://a.org/one.tar.gz}]\n"),
        (SOURCES, "    sources:\n    - url: https://a.org/one.tar.gz\n"),
        (SMALL[SMALL.index("\n  # the second") :], ""),
        (SMALL[SMALL.index("\n\n  # the second") :], ""),
    ],
)
@pytest.mark.parametrize(
    "dressed", [str, lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text]
)
def test_whatever_the_style_the_rest_stays(
    tmp_path: Path, old: str, new: str, dressed: Callable[[str], str]
) -> None:
    assert old in SMALL
    text = dressed(SMALL.replace(old, new, 1) if old else SMALL)
    path = write(tmp_path, text)
    others = {id: entry for id, entry in load_texts([(path, text)]).items() if id != "one"}
    pin_many(path, [ONE], below=[])
    check(path, ONE)
    after = path.read_bytes().decode()
    assert {id: entry for id, entry in load_texts([(path, after)]).items() if id != "one"} == others
    # Every line that does not speak of the three fields is still there, in order, with its comment.
    assert "\r\n" not in text or after.count("\n") == after.count("\r\n")
    assert untouched(after) == untouched(text)
    for comment in (line.partition("#")[2] for line in text.splitlines() if "#" in line):
        assert comment in after
    assert pin_many(path, [ONE], below=[]) is False


def test_the_real_registry_takes_a_pin_of_every_entry(tmp_path: Path) -> None:
    original = built_in_path().read_text(encoding="utf-8")
    path = write(tmp_path, original)
    ids = list(load_registry())
    pins = [Pin(id, f"{index:064x}", index + 1, WHEN, f"https://a.org/{id}") for index, id in enumerate(ids)]
    pin_many(path, pins, below=[])
    check(path, *pins)
    new = ('    sha256: "', "    size: ", "    hash_provenance: ")
    lines = path.read_text().splitlines()
    added = [line for line in lines if line.startswith(new) and line != "    size: null"]
    assert len(added) == 3 * 42
    assert [line for line in lines if line not in set(added)] == original.splitlines()


def test_an_overlay_gets_the_entry_it_lacks(tmp_path: Path) -> None:
    path = write(tmp_path, "# mine\nentries:\n  - id: moat1-224\n    note: x   # why\n# the end\n")
    wanted = replace(ONE, id="moat0-224")
    pin_many(path, [wanted])
    check(path, wanted, below=[built_in_path()])
    text = path.read_text()
    assert text.startswith("# mine\nentries:\n  - id: moat1-224\n    note: x   # why\n\n  - id: moat0-224\n")
    assert text.endswith("# the end\n")


@pytest.mark.parametrize(
    "text",
    [
        "entries: []\n",
        "entries: []",
        "entries: [ ]  # none yet\nnotes: {}\n",
        "entries:\n- id: moat4-512\n  note: x",
        "entries: [{id: moat4-512}]\n",
    ],
)
def test_any_list_can_be_added_to(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    pins = [replace(ONE, id="moat0-224"), replace(TWO, id="moat1-224")]
    pin_many(path, pins)
    check(path, *pins, below=[built_in_path()])
    assert all(line in path.read_text() for line in text.splitlines()[1:])


def test_the_last_entry_and_a_further_one_can_be_pinned_at_once(tmp_path: Path) -> None:
    text = SMALL[: SMALL.index("\n  # the second")]
    path = write(tmp_path, text)
    further = replace(TWO, id="moat0-224")
    pin_many(path, [further, ONE], below=[built_in_path()])
    check(path, ONE, further, below=[built_in_path()])
    assert path.read_text().startswith(text + WRITTEN + "\n  - id: moat0-224\n")


def test_an_empty_list_inside_braces_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "{entries: []}")
    with pytest.raises(UsageError, match="cannot be edited in place"):
        pin_many(path, [replace(ONE, id="moat0-224")])
    assert path.read_text() == "{entries: []}"


def test_a_missing_overlay_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mine.yaml"
    wanted = replace(ONE, id="moat0-224")
    assert preview_pins(path, [wanted]).changes
    assert not path.parent.exists()
    pin_many(path, [wanted])
    check(path, wanted, below=[built_in_path()])


def test_a_preview_shows_the_change_and_writes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    edit = preview_pins(path, [ONE], below=[])
    assert path.read_text() == SMALL
    lines = edit.diff().splitlines()
    assert [
        line[1:] for line in lines if line.startswith("+") and not line.startswith("+++")
    ] == WRITTEN.splitlines()
    assert not [line for line in lines if line.startswith("-") and not line.startswith("---")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (VARIANT, VARIANT + "    sha256: &h null\n    note: *h\n", "cannot be edited in place"),
        (VARIANT, VARIANT + PINNED_AS_BLOCK, "sha256 of 'one' is written as an alias or a text block"),
        (VARIANT, VARIANT + "    note: &h null\n    sha256: *h\n", "sha256 of 'one' is written as an alias"),
    ],
)
def test_what_cannot_be_edited_safely_is_left_alone(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = SMALL.replace(old, new)
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=message):
        pin_many(path, [ONE], below=[])
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_merge_key_that_would_spread_the_pin_is_left_alone(tmp_path: Path) -> None:
    text = SMALL.replace("  - id: one\n", "  - &whole\n    id: one\n")
    path = write(tmp_path, text + "  - {<<: *whole, id: three}\n")
    # `three` inherits all of `one` by a merge key, so a pin of `one` would pin `three` as well.
    with pytest.raises(UsageError, match="cannot be edited in place without changing more"):
        pin_many(path, [ONE], below=[])
    wanted = replace(ONE, id="three")
    pin_many(path, [wanted], below=[])
    check(path, wanted)


def test_faults_are_told_before_anything_is_done(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL.replace("id: two", "id: one"))
    with pytest.raises(RegistryError, match="given twice"):
        pin_many(path, [ONE], below=[])
    with pytest.raises(NotFoundError, match="no entry 'nobody' to pin"):
        pin_many(write(tmp_path, SMALL), [replace(ONE, id="nobody")], below=[])
    with pytest.raises(UsageError, match="sha256: string should match pattern"):
        pin_many(write(tmp_path, SMALL), [replace(ONE, sha256="abc")], below=[])
    assert path.read_text() == SMALL


def test_mode_and_link_stay(tmp_path: Path) -> None:
    real = write(tmp_path, SMALL, "real.yaml")
    real.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(real)
    pin_many(link, [ONE], below=[])
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    check(real, ONE)


def test_when_the_disk_refuses_the_file_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, SMALL)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"mine\.yaml: no space left on the disk"):
        pin_many(path, [ONE], below=[])
    assert path.read_text() == SMALL
    assert list(tmp_path.iterdir()) == [path]


def test_a_change_by_someone_else_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, SMALL)
    real = os.fsync

    def meanwhile(fd: int) -> None:
        real(fd)
        write(tmp_path, SMALL + "# theirs\n")

    monkeypatch.setattr(os, "fsync", meanwhile)
    with pytest.raises(UsageError, match="changed by another program in the meantime"):
        pin_many(path, [ONE], below=[])
    assert path.read_text() == SMALL + "# theirs\n"
    assert list(tmp_path.iterdir()) == [path]
