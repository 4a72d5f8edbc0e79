"""Adding an entry writes that entry and leaves every other byte as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ckptkit.base.errors import IntegrityError, RegistryError, StorageError, UsageError
from ckptkit.registry import (
    Pin,
    add_entry,
    built_in_path,
    load_texts,
    pin_many,
    preview_addition,
)
from ckptkit.registry.edit import written
from tests.support.registries import SMALL, write

URL = "https://a.org/three.pth"
MODEL = {"family": "moat", "variant": "moat1", "layout": "torch", "format": "torch"}
SHA = "0123456789abcdef" * 4
WHEN = "2026-01-02T03:04:05+00:00"
PINNED = {
    "sha256": SHA,
    "size": 12,
    "hash_provenance": {"observed_at": WHEN, "url": URL, "note": "seen: here"},
}


def entries_in(path: Path) -> dict[str, dict[str, Any]]:
    """Read what the file itself says, with another reader than ckptkit's."""
    return {entry["id"]: entry for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["entries"]}


def test_a_new_entry_comes_last_in_the_order_of_the_schema_and_nothing_else_changes(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + "# the end\n")
    said = {"note": "theirs", "published_top1": 83.3, "published_params": "224", **PINNED, **MODEL}
    done = add_entry(path, "three", [URL, "https://b.org/x?a=1#b"], said, below=[])
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
      - url: {URL}
      - url: https://b.org/x?a=1#b
    sha256: "{SHA}"
    size: 12
    hash_provenance: {{observed_at: "{WHEN}", url: "{URL}", note: "seen: here"}}
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
def test_any_list_can_be_added_to(tmp_path: Path, text: str, dressed: Callable[[str], str]) -> None:
    path = write(tmp_path, dressed(text))
    said = {**MODEL, **PINNED, "note": "a: b # c, {d}"}
    assert add_entry(path, "three", [URL], said).entry.id == "three"
    after = path.read_bytes().decode()
    told = yaml.safe_load(after.lstrip("\ufeff"))["entries"]
    assert told[-1] == {"id": "three", "display_name": "three", **said, "sources": [{"url": URL}]}
    assert told[:-1] == yaml.safe_load(text)["entries"]
    assert "\r\n" not in dressed(text) or after.count("\n") == after.count("\r\n")
    for comment in (line.partition("#")[2] for line in text.splitlines() if "#" in line):
        assert comment in after
    assert not any(line.endswith(" ") for line in after.splitlines() if line not in text)


def test_dashes_of_sources_stand_as_in_the_entries_before(tmp_path: Path) -> None:
    text = "entries:\n- id: moat4-512\n  sources:\n  - url: https://a.org/x\n"
    path = write(tmp_path, text)
    add_entry(path, "three", [URL], MODEL)
    assert path.read_text().startswith(text)
    assert path.read_text().endswith(f"  sources:\n  - url: {URL}\n")


def test_a_missing_file_is_made_and_a_preview_makes_none(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mine.yaml"
    shown = preview_addition(path, "three", [URL], MODEL)
    assert shown.edit.changes and f"+      - url: {URL}\n" in shown.edit.diff()
    assert not path.parent.exists()
    add_entry(path, "three", [URL], MODEL)
    assert entries_in(path)["three"]["sources"] == [{"url": URL}]
    assert path.read_text().startswith("# A registry on top of ckptkit's own")


def test_an_entry_below_is_overridden_in_what_is_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    built_in = load_texts([(built_in_path(), built_in_path().read_text(encoding="utf-8"))])["moat0-224"]
    first = built_in.sources[0]
    done = add_entry(path, "moat0-224", [URL, first.url], {"note": "ours"})
    assert done.overrides == built_in_path() and not done.updates
    assert (done.entry.published_top1, done.entry.display_name) == (83.3, "MOAT-0")
    # What is known of a source stays with its URL.
    assert entries_in(path)["moat0-224"] == {
        "id": "moat0-224",
        "sources": [{"url": URL}, {"url": first.url, "note": first.note, "bn_statistics": True}],
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


TWO = """\
      - url: https://a.org/two.tar.gz   # best
      - url: https://b.org/two.tar.gz
"""
A, B, C = "https://a.org/two.tar.gz", "https://b.org/two.tar.gz", "https://c.org/two.tar.gz"
FLOW = f"    sources: [{{url: '{A}', manual: true}}, {{url: {B}}}]\n"


@pytest.mark.parametrize(
    ("old", "urls", "new"),
    [
        (TWO, [A, B], TWO),
        (TWO, [A, B, C], TWO + f"      - url: {C}\n"),
        (TWO, [C, A], f"      - url: {C}\n      - url: {A}   # best\n"),
        (TWO, [B], f"      - url: {B}\n"),
        ("    sources:\n" + TWO, [B, A], f"    sources:\n      - url: {B}\n      - url: {A}   # best\n"),
        ("    sources:\n" + TWO + "<", [A, C], f"    sources:\n      - url: {A}   # best\n      - url: {C}"),
        ("    sources:\n" + TWO, [C, A], FLOW),
    ],
)
def test_sources_that_stay_keep_their_text(tmp_path: Path, old: str, urls: list[str], new: str) -> None:
    text = SMALL
    if new == FLOW:
        text, new = (
            SMALL.replace(old, FLOW),
            f"    sources: [{{url: \"{C}\"}}, {{url: '{A}', manual: true}}]\n",
        )
        old = FLOW
    elif old.endswith("<"):  # at the end of a file without a last newline
        text, old = SMALL.rstrip("\n"), old.rstrip("<").rstrip("\n")
    path = write(tmp_path, text)
    done = add_entry(path, "two", urls, below=[], force=True)
    assert path.read_text() == text.replace(old, new)
    assert [source.url for source in done.entry.sources] == urls


def test_fields_of_a_flow_entry_are_changed_between_its_braces(tmp_path: Path) -> None:
    text = f"entries:\n  - {{id: x, note: 'a', {', '.join(f'{k}: {v}' for k, v in MODEL.items())},\n"
    text += f"     display_name: X, sources: [{{url: '{URL}'}}]}}  # end\n"
    path = write(tmp_path, text)
    add_entry(path, "x", [URL], {"note": "b, c", "license": "MIT", "pos_emb": False}, force=True)
    assert entries_in(path)["x"] == {
        **MODEL,
        "id": "x",
        "display_name": "X",
        "note": "b, c",
        "license": "MIT",
        "pos_emb": False,
        "sources": [{"url": URL}],
    }
    assert path.read_text().endswith("}  # end\n") and len(path.read_text().splitlines()) == 3


VARIANT = "    variant: moat0\n"


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
def test_what_cannot_be_edited_safely_is_left_alone(
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


def test_an_empty_list_inside_braces_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "{entries: []}")
    with pytest.raises(UsageError, match="cannot be edited in place: line 2: not YAML"):
        add_entry(path, "three", [URL], MODEL)
    assert path.read_text() == "{entries: []}"


@pytest.mark.parametrize(
    ("id", "urls", "said", "message"),
    [
        (
            "x",
            [URL],
            {},
            "x: cannot be added: family is missing; variant is missing; layout is missing; format is missing"
            "; say it, or give the file itself with --checkpoint FILE",
        ),
        ("X y", [URL], MODEL, "X y: cannot be added: id: string should match pattern"),
        ("x", ["a.pth"], MODEL, "x: cannot be added: sources[0].url: a URL begins with one of https://"),
        ("x", [URL], {**MODEL, "format": "zip"}, "x: cannot be added: format: input should be 'tf', 'torch'"),
        ("x", [URL], {**MODEL, "published_params": "27 M"}, "published_params: string should match pattern"),
        (
            "x",
            [URL],
            {**MODEL, "published_top1": 101.0},
            "published_top1: input should be less than or equal",
        ),
        ("x", [URL], {**MODEL, "sha256": "1" * 64}, "sha256 is given without hash_provenance"),
        ("x", [URL], {**MODEL, "license": ""}, "license: string should have at least 1 character"),
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
        add_entry(path, "three", [URL], MODEL, below=[])


def test_another_checksum_needs_force(tmp_path: Path) -> None:
    below = write(tmp_path, SMALL, "below.yaml")
    pin_many(below, [Pin("one", "f" * 64, 5, WHEN, URL)], below=[])
    path = tmp_path / "mine.yaml"
    with pytest.raises(IntegrityError, match=f"one: the file has sha256 {SHA}, but {'f' * 64} is pinned"):
        add_entry(path, "one", [URL], PINNED, below=[below])
    assert add_entry(path, "one", [URL], {}, below=[below]).entry.sha256 == "f" * 64
    again = add_entry(path, "one", [URL], PINNED, below=[below], force=True)
    assert (again.entry.sha256, again.entry.size) == (SHA, 12)


def test_when_the_disk_refuses_the_file_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, SMALL)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"mine\.yaml: no space left on the disk"):
        add_entry(path, "three", [URL], MODEL, below=[])
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
