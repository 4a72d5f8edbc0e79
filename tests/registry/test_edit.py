"""Pinning and adding write what they should, and leave every other byte as it was."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ckptkit.base.errors import IntegrityError, NotFoundError, RegistryError, StorageError, UsageError
from ckptkit.base.urls import full_url
from ckptkit.registry.edit import Pin, preview_addition, preview_pins, written
from ckptkit.registry.loading import built_in_path, load_registry, load_texts
from tests.support.registries import SMALL, add_entry, pin_many, write

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
    assert pin_many(path, [ONE], below=[])
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
    ids = [entry.id for entry in load_registry().values() if entry.sha256 is None]
    pins = [Pin(id, f"{index:064x}", index + 1, WHEN, f"https://a.org/{id}") for index, id in enumerate(ids)]
    pin_many(path, pins, below=[])
    check(path, *pins)
    new = ('    sha256: "', "    size: ", "    hash_provenance: ")
    lines = path.read_text().splitlines()
    before = set(original.splitlines())  # what is null there, or stated by a publisher
    added = [line for line in lines if line.startswith(new) and line not in before]
    assert len(added) == 3 * len(ids)
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


NEW = "https://a.org/three.pth"
MODEL = {"family": "moat", "variant": "moat1", "layout": "torch", "format": "torch"}
SEEN = "2026-01-02T03:04:05+00:00"
PINNED = {
    "sha256": SHA,
    "size": 12,
    "hash_provenance": {"observed_at": SEEN, "url": NEW, "note": "seen: here"},
}


def entries_in(path: Path) -> dict[str, dict[str, Any]]:
    """Read what the file itself says, with another reader than ckptkit's."""
    return {entry["id"]: entry for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["entries"]}


def test_a_new_entry_comes_last_in_the_order_of_the_schema_and_nothing_else_changes(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + "# the end\n")
    said = {"note": "theirs", "published_top1": 83.3, "published_params": "224", **PINNED, **MODEL}
    done = add_entry(path, "three", [NEW, "https://b.org/x?a=1#b"], said, below=[])
    assert path.read_text() == (
        SMALL
        + f"""
  - id: three
    family: moat
    variant: moat1
    display_name: three
    published_params: "224"
    published_top1: 83.3
    layout: torch
    format: torch
    sources:
      - url: {NEW}
      - url: https://b.org/x?a=1#b
    sha256: "{SHA}"
    size: 12
    hash_provenance: {{observed_at: "{SEEN}", url: "{NEW}", note: "seen: here"}}
    note: theirs
# the end
"""
    )
    assert (done.updates, done.overrides) == (False, None)
    assert (done.entry.license, done.entry.published_params) == ("Apache-2.0", "224")  # one from the head


@pytest.mark.parametrize(
    "text",
    [
        "entries: []\n",
        "entries: []",
        "# mine\nentries: [ ]  # none yet\nnotes: {}\n",
        "entries:\n- id: moat4-512\n  note: x",
        "entries: [{id: moat4-512}]\n",
        SMALL.rstrip("\n"),
        SMALL.replace("      - url", "    - url").replace("        bn_", "      bn_"),
    ],
)
@pytest.mark.parametrize(
    "dressed", [str, lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text]
)
def test_an_entry_can_be_added_to_any_list(tmp_path: Path, text: str, dressed: Callable[[str], str]) -> None:
    path = write(tmp_path, dressed(text))
    said = {**MODEL, **PINNED, "note": "a: b # c, {d}"}
    assert add_entry(path, "three", [NEW], said).entry.id == "three"
    after = path.read_bytes().decode()
    told = yaml.safe_load(after.lstrip("\ufeff"))["entries"]
    assert told[-1] == {"id": "three", "display_name": "three", **said, "sources": [{"url": NEW}]}
    assert told[:-1] == yaml.safe_load(text)["entries"]
    assert "\r\n" not in dressed(text) or after.count("\n") == after.count("\r\n")
    for comment in (line.partition("#")[2] for line in text.splitlines() if "#" in line):
        assert comment in after
    assert not any(line.endswith(" ") for line in after.splitlines() if line not in text)


def test_dashes_of_sources_stand_as_in_the_entries_before(tmp_path: Path) -> None:
    text = "entries:\n- id: moat4-512\n  sources:\n  - url: https://a.org/x\n"
    path = write(tmp_path, text)
    add_entry(path, "three", [NEW], MODEL)
    assert path.read_text().startswith(text)
    assert path.read_text().endswith(f"  sources:\n  - url: {NEW}\n")


def test_a_missing_file_is_made_and_a_preview_makes_none(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mine.yaml"
    shown = preview_addition(path, "three", [NEW], MODEL)
    assert shown.edit.changes and f"+      - url: {NEW}\n" in shown.edit.diff()
    assert not path.parent.exists()
    add_entry(path, "three", [NEW], MODEL)
    assert entries_in(path)["three"]["sources"] == [{"url": NEW}]
    assert path.read_text().startswith("# A registry on top of ckptkit's own")


def test_an_entry_below_is_overridden_in_what_is_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    built_in = load_texts([(built_in_path(), built_in_path().read_text(encoding="utf-8"))])["moat0-224"]
    first = built_in.sources[0]
    done = add_entry(path, "moat0-224", [NEW, first.url], {"note": "ours"})
    assert done.overrides == built_in_path() and not done.updates
    assert (done.entry.published_top1, done.entry.display_name) == (83.3, "MOAT-0")
    # What is known of a source stays with its NEW.
    assert entries_in(path)["moat0-224"] == {
        "id": "moat0-224",
        "sources": [{"url": NEW}, {"url": first.url, "note": first.note, "bn_statistics": True}],
        "note": "ours",
    }


def test_an_entry_of_the_file_is_updated_only_by_force(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    said = {"published_top1": 84.1, "published_top5": 97.0, "license": "MIT", "note": "new"}
    with pytest.raises(UsageError, match=r"mine\.yaml has an entry 'one' already; give --force"):
        add_entry(path, "one", ["https://a.org/one.tar.gz"], said, below=[])
    assert path.read_text() == SMALL
    done = add_entry(path, "one", ["https://a.org/one.tar.gz"], said, below=[], force=True)
    assert done.updates and done.entry.sources[0].bn_statistics is True
    expected = SMALL.replace(
        "    published_top1: 83.3\n",
        "    published_top1: 84.1\n    published_top5: 97.0\n    license: MIT\n",
        1,
    ).replace("        bn_statistics: true\n", "        bn_statistics: true\n    note: new\n", 1)
    assert path.read_text() == expected
    before = path.stat()
    again = add_entry(path, "one", ["https://a.org/one.tar.gz"], said, below=[], force=True)
    assert not again.edit.changes and again.entry == done.entry
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


OF_TWO = """\
      - url: https://a.org/two.tar.gz   # best
      - url: https://b.org/two.tar.gz
"""
A, B, C = "https://a.org/two.tar.gz", "https://b.org/two.tar.gz", "https://c.org/two.tar.gz"
FLOWING = f"    sources: [{{url: '{A}', manual: true}}, {{url: {B}}}]\n"


@pytest.mark.parametrize(
    ("old", "urls", "new"),
    [
        (OF_TWO, [A, B], OF_TWO),
        (OF_TWO, [A, B, C], OF_TWO + f"      - url: {C}\n"),
        (OF_TWO, [C, A], f"      - url: {C}\n      - url: {A}   # best\n"),
        (OF_TWO, [B], f"      - url: {B}\n"),
        (
            "    sources:\n" + OF_TWO,
            [B, A],
            f"    sources:\n      - url: {B}\n      - url: {A}   # best\n",
        ),
        (
            "    sources:\n" + OF_TWO + "<",
            [A, C],
            f"    sources:\n      - url: {A}   # best\n      - url: {C}",
        ),
        ("    sources:\n" + OF_TWO, [C, A], FLOWING),
    ],
)
def test_sources_that_stay_keep_their_text(tmp_path: Path, old: str, urls: list[str], new: str) -> None:
    text = SMALL
    if new == FLOWING:
        text, new = (
            SMALL.replace(old, FLOWING),
            f"    sources: [{{url: \"{C}\"}}, {{url: '{A}', manual: true}}]\n",
        )
        old = FLOWING
    elif old.endswith("<"):  # at the end of a file without a last newline
        text, old = SMALL.rstrip("\n"), old.rstrip("<").rstrip("\n")
    path = write(tmp_path, text)
    done = add_entry(path, "two", urls, below=[], force=True)
    assert path.read_text() == text.replace(old, new)
    assert [source.url for source in done.entry.sources] == urls


def test_fields_of_a_flow_entry_are_changed_between_its_braces(tmp_path: Path) -> None:
    text = f"entries:\n  - {{id: x, note: 'a', {', '.join(f'{k}: {v}' for k, v in MODEL.items())},\n"
    text += f"     display_name: X, sources: [{{url: '{NEW}'}}]}}  # end\n"
    path = write(tmp_path, text)
    add_entry(path, "x", [NEW], {"note": "b, c", "license": "MIT", "pos_emb": False}, force=True)
    assert entries_in(path)["x"] == {
        **MODEL,
        "id": "x",
        "display_name": "X",
        "note": "b, c",
        "license": "MIT",
        "pos_emb": False,
        "sources": [{"url": NEW}],
    }
    assert path.read_text().endswith("}  # end\n") and len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("old", "new", "said", "message"),
    [
        (
            VARIANT,
            VARIANT + "    note: |\n      x\n",
            {"note": "y"},
            "note of 'one' is written as an alias",
        ),
        (
            VARIANT,
            VARIANT + "    note: &n x\n    group: *n\n",
            {"note": "y"},
            "cannot be edited in place",
        ),
        (VARIANT, VARIANT + "    note: &n x\n    group: *n\n", {"group": "y"}, "written as an alias"),
        ("        bn_", "        # why\n        bn_", {}, "comments between the sources would be lost"),
        ("  - id: one\n", "  - &whole\n    id: one\n", {"note": "y"}, "without changing more"),
    ],
)
def test_an_addition_that_is_not_safe_is_left_alone(
    tmp_path: Path, old: str, new: str, said: dict[str, Any], message: str
) -> None:
    text = SMALL.replace(old, new, 1)
    if "whole" in new:
        text += "  - {<<: *whole, id: three}\n"
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=message):
        add_entry(path, "one", [A], said, below=[], force=True)
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_added_inside_braces(tmp_path: Path) -> None:
    path = write(tmp_path, "{entries: []}")
    with pytest.raises(UsageError, match="cannot be edited in place: line 2: not YAML"):
        add_entry(path, "three", [NEW], MODEL)
    assert path.read_text() == "{entries: []}"


@pytest.mark.parametrize(
    ("id", "urls", "said", "message"),
    [
        (
            "x",
            [NEW],
            {},
            "x: cannot be added: family is missing; variant is missing; layout is missing; format is missing"
            "; say it, or give the file itself with --checkpoint FILE",
        ),
        ("X y", [NEW], MODEL, "X y: cannot be added: id: string should match pattern"),
        ("x", ["a.pth"], MODEL, "x: cannot be added: sources[0].url: a URL begins with one of https://"),
        (
            "x",
            [NEW],
            {**MODEL, "format": "zip"},
            "x: cannot be added: format: input should be 'tf', 'torch'",
        ),
        ("x", [NEW], {**MODEL, "published_params": "27 M"}, "published_params: string should match pattern"),
        (
            "x",
            [NEW],
            {**MODEL, "published_top1": 101.0},
            "published_top1: input should be less than or equal",
        ),
        ("x", [NEW], {**MODEL, "sha256": "1" * 64}, "sha256 is given without hash_provenance"),
        ("x", [NEW], {**MODEL, "license": ""}, "license: string should have at least 1 character"),
        ("x", [], MODEL, "sources: tuple should have at least 1 item"),
    ],
)
def test_faults_of_the_entry_are_told_in_one_line_and_nothing_is_written(
    tmp_path: Path, id: str, urls: list[str], said: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, "entries: []\n")
    with pytest.raises(UsageError) as caught:
        add_entry(path, id, urls, said, below=[])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_text() == "entries: []\n"


def test_faults_of_the_file_are_told_before_anything_is_done(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL.replace("id: two", "id: one"))
    with pytest.raises(RegistryError, match="given twice"):
        add_entry(path, "three", [NEW], MODEL, below=[])


def test_another_checksum_needs_force(tmp_path: Path) -> None:
    below = write(tmp_path, SMALL, "below.yaml")
    pin_many(below, [Pin("one", "f" * 64, 5, SEEN, NEW)], below=[])
    path = tmp_path / "mine.yaml"
    with pytest.raises(IntegrityError, match=f"one: the file has sha256 {SHA}, but {'f' * 64} is pinned"):
        add_entry(path, "one", [NEW], PINNED, below=[below])
    assert add_entry(path, "one", [NEW], {}, below=[below]).entry.sha256 == "f" * 64
    again = add_entry(path, "one", [NEW], PINNED, below=[below], force=True)
    assert (again.entry.sha256, again.entry.size) == (SHA, 12)


def test_when_the_disk_refuses_nothing_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, SMALL)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"mine\.yaml: no space left on the disk"):
        add_entry(path, "three", [NEW], MODEL, below=[])
    assert path.read_text() == SMALL
    assert list(tmp_path.iterdir()) == [path]


TEXTS = [
    *(
        "a",
        "Apache-2.0",
        "no",
        "null",
        "~",
        "1",
        "1.5",
        "1e3",
        "0x1f",
        "2026-01-02",
        "",
        " x ",
        "a: b",
        "a #b",
    ),
    *(
        "- a",
        "? a",
        "*a",
        "&a",
        "!a",
        "%a",
        "@a",
        "`a",
        "{a",
        "[a",
        "a, b",
        "'",
        '"',
        "\\",
        "a\nb",
        "\t",
        "\x85",
    ),
    *(
        "\u2028",
        "\x07",
        "ü",
        "\U0001f40d",
        "x" * 500,
        "a b " * 100,
        "https://a.org/?x=[1]&y={2}#z",
        "=",
        "<<",
    ),
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_written_so_that_it_reads_as_it_was(text: str) -> None:
    block = "k: " + written(text, inline=False)
    assert yaml.safe_load(block) == {"k": text} and "\n" not in block
    flow = f"k: [{written(text)}, {written({text: [text, None, True, 0.1]})}]"
    assert yaml.safe_load(flow) == {"k": [text, {text: [text, None, True, 0.1]}]} and "\n" not in flow
