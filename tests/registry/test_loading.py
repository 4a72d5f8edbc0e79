"""Loading: overlays, family heads, and every fault at once with its line."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

import ckptkit
from ckptkit.base.errors import NotFoundError, RegistryError, StorageError
from ckptkit.cli.options import State
from ckptkit.families.base import registry_families
from ckptkit.registry import loading
from ckptkit.registry.loading import built_in_path, load_registry, load_texts
from ckptkit.registry.schema import FamilyFacts
from ckptkit.workspace import Workspace
from tests.support.registries import SMALL, write

HERE = Path("mine.yaml")


def faults_of(text: str, *below: str) -> list[str]:
    layers = [(Path(f"below{number}.yaml"), earlier) for number, earlier in enumerate(below)]
    with pytest.raises(RegistryError) as caught:
        load_texts([*layers, (HERE, text)], registry_families())
    assert caught.value.path == HERE
    return caught.value.faults


def test_a_head_is_inherited_and_overridden() -> None:
    registry = load_texts([(HERE, SMALL.replace("    pos_emb: false\n", "    license: MIT\n"))])
    assert (registry["one"].license, registry["two"].license) == ("Apache-2.0", "MIT")
    assert registry["two"].format == "tf"
    assert registry.files == (HERE,)


PLANTED = [
    (
        "    license: Apache-2.0",
        "    licence: MIT",
        "line 6: family 'moat': unknown key 'licence' (did you mean 'license'?)",
    ),
    ("    license: Apache-2.0", "    id: x", "line 6: family 'moat': 'id' belongs to a single entry"),
    ("    license: Apache-2.0", "    size: 3", "line 6: family 'moat': 'size' belongs to a single entry"),
    (
        "    layout: deeplab2",
        "    layout: deeplab3",
        "line 4: family 'moat': layout: input should be 'deeplab2', 'openmixup', 'torch', "
        "'keras', 'wd-tagger', 'kecam' or 'birder', found 'deeplab3'",
    ),
    (
        "    variant: moat1",
        "    varient: moat1",
        "line 22: entry 'two': unknown key 'varient' (did you mean 'variant'?)",
    ),
    ("    variant: moat1\n", "", "line 20: entry 'two': variant is missing"),
    (
        "    variant: moat1",
        "    variant: 3",
        "line 22: entry 'two': variant: input should be a valid string, found 3",
    ),
    (
        "        bn_statistics: true",
        "        bn_statistic: true",
        "line 17: entry 'one': unknown key 'bn_statistic' (did you mean 'bn_statistics'?)",
    ),
    (
        "https://b.org/two.tar.gz",
        "two.tar.gz",
        "line 27: entry 'two': sources[1].url: a URL begins with one of https://, "
        "http://, file://, s3://, gs://, az://, hf://, found 'two.tar.gz'",
    ),
    ("id: two", "id: one", "line 20: id 'one' is given twice (first on line 9)"),
    ("  - id: two", "  - jd: two", "line 20: entry 2: id is missing"),
    ("    pos_emb: false", "    variant: x", "line 24: key 'variant' is given twice (first on line 22)"),
    (
        "    pos_emb: false",
        "    pos_emb: nope",
        "line 24: entry 'two': pos_emb: input should be a valid boolean, found 'nope'",
    ),
    (
        "    published_top1: 83.3",
        "    published_top1: 833",
        "line 14: entry 'one': published_top1: input should be less than or equal to 100, found 833",
    ),
    ("entries:", "entrees:", "line 8: unknown key 'entrees' (did you mean 'entries'?)"),
    ("  moat:\n", "  moat: 3\n  other:\n", "line 3: family 'moat' must be a mapping of fields"),
    ("  # the second", "  - just text", "line 19: entry 2 is not a mapping of fields"),
    ("entries:", "notes: [a]\nentries:", "line 8: 'notes' is a mapping from a name to a sentence"),
    ("entries:", "notes: {a: 3}\nentries:", "line 8: note 'a' must be text"),
]


@pytest.mark.parametrize(("old", "new", "fault"), PLANTED)
def test_a_fault_is_told_with_its_line(old: str, new: str, fault: str) -> None:
    assert SMALL.count(old) == 1
    assert fault in faults_of(SMALL.replace(old, new))


FAMILIES = {
    "moat": FamilyFacts(("moat0", "moat1"), {"deeplab2": ("tf", "npz"), "keras": ("keras",)}),
    "moganet": FamilyFacts(("moganet-xt",), {"openmixup": ("torch",)}),
}


def family_faults_of(*replaced: tuple[str, str]) -> list[str]:
    text = SMALL
    for old, new in replaced:
        assert text.count(old) == 1
        text = text.replace(old, new)
    with pytest.raises(RegistryError) as caught:
        load_texts([(HERE, text)], FAMILIES)
    return caught.value.faults


@pytest.mark.parametrize(
    ("old", "new", "faults"),
    [
        (
            "    variant: moat1",
            "    variant: moganet-xt",
            ["line 22: entry 'two': variant: 'moganet-xt' is a variant of family 'moganet', not of 'moat'"],
        ),
        (
            "    variant: moat1",
            "    variant: moat11",
            [
                "line 22: entry 'two': variant: unknown variant 'moat11' of family 'moat' "
                "(did you mean 'moat1'?)"
            ],
        ),
        (
            "    layout: deeplab2",
            "    layout: openmixup",
            ["line 4: family 'moat': layout: 'openmixup' is a layout of family 'moganet', not of 'moat'"],
        ),
        (
            "    layout: deeplab2",
            "    layout: torch",
            [
                "line 4: family 'moat': layout: input should be 'deeplab2', 'openmixup' or 'keras', "
                "found 'torch'"
            ],
        ),
        (
            "    format: tf  ",
            "    format: torch  ",
            ["line 5: family 'moat': format: 'torch' does not support layout 'deeplab2' (one of tf, npz)"],
        ),
        (
            "    variant: moat1\n",
            "    variant: moat1\n    layout: keras\n    format: tf\n",
            ["line 24: entry 'two': format: 'tf' does not support layout 'keras' (one of keras)"],
        ),
    ],
)
def test_what_a_family_does_not_have(old: str, new: str, faults: list[str]) -> None:
    assert family_faults_of((old, new)) == faults


def test_an_unknown_family_is_told_for_each_of_its_entries() -> None:
    text = SMALL.replace("family: moat\n", "family: moart\n").replace("  moat:\n", "  moart:\n")
    with pytest.raises(RegistryError) as caught:
        load_texts([(HERE, text)], FAMILIES)
    assert caught.value.faults == [
        "line 10: entry 'one': family: unknown family 'moart' (did you mean 'moat'?)",
        "line 21: entry 'two': family: unknown family 'moart' (did you mean 'moat'?)",
    ]


def test_what_an_overlay_changes_is_checked_with_what_it_keeps() -> None:
    overlay = "entries:\n  - id: two\n    format: keras\n"
    with pytest.raises(RegistryError) as caught:
        load_texts([(Path("below.yaml"), SMALL), (HERE, overlay)], FAMILIES)
    assert caught.value.path == HERE
    assert caught.value.faults == [
        "line 3: entry 'two': format: 'keras' does not support layout 'deeplab2' (one of tf, npz)"
    ]


def test_every_way_of_loading_asks_the_families(tmp_path: Path) -> None:
    wrong = write(tmp_path, SMALL.replace("variant: moat1", "variant: moganet-xt"))
    for load in (
        ckptkit.registry,
        lambda paths: Workspace(registries=paths).registry,
        lambda paths: State(registries=tuple(paths)).registry(),
    ):
        with pytest.raises(RegistryError, match="line 22: entry 'two': variant: 'moganet-xt' is a variant"):
            load([wrong])
    assert load_registry([wrong])["two"].variant == "moganet-xt"  # a room below knows no family


def test_a_fault_that_quotes_a_file_at_length_is_cut() -> None:
    (fault,) = faults_of(f"entries: []\n? {'a' * 100_000}\n: 1\n")
    assert len(fault) < 600 and fault.startswith("line 2: unknown key 'aaa")


def test_a_fault_in_a_head_is_told_once_though_two_entries_inherit_it() -> None:
    (fault,) = faults_of(SMALL.replace("layout: deeplab2", "layout: deeplab3"))
    assert fault.startswith("line 4: family 'moat': layout")


def test_all_faults_are_told_at_once_in_the_order_of_lines() -> None:
    text = SMALL
    for old, new in [
        ("license:", "licence:"),
        ("    variant: moat0\n", ""),
        ("published_top1: 83.3", "published_top1: high"),
        ("        bn_statistics: true", "        bn_statistics: 3\n        colour: red"),
        ("display_name: Two", "display_name: ''"),
        ("https://b.org/two.tar.gz", "ftp://b.org"),
    ]:
        text = text.replace(old, new)
    faults = faults_of(text)
    assert [fault.partition(":")[0] for fault in faults] == [
        *("line 6", "line 9", "line 13", "line 16", "line 17", "line 23", "line 27"),
    ]


def test_the_message_is_one_line_that_says_where_to_look() -> None:
    with pytest.raises(RegistryError) as caught:
        load_texts([(HERE, "entries: 3")])
    assert str(caught.value) == (
        "mine.yaml: 1 fault: line 1: 'entries' is a list of entries, each a mapping that begins '- id: …'; "
        "see 'ckptkit registry validate mine.yaml' and 'ckptkit registry schema'"
    )


@pytest.mark.parametrize(
    "text", ["", "3", "[]", "just text", "# a comment\n", "a: [", "entries:\n", "families: {}"]
)
def test_what_is_no_registry(text: str) -> None:
    assert len(faults_of(text)) == 1


def test_an_overlay_changes_the_given_fields_and_keeps_the_rest() -> None:
    overlay = """
entries:
  - id: two
    note: mine
    sources: [{url: "file:///srv/two.tar.gz"}]
  - id: three
    family: moat
    variant: moat3
    display_name: Three
    layout: torch
    format: torch
    sources: [{url: "https://a.org/3.pth"}]
"""
    registry = load_texts([(Path("base.yaml"), SMALL), (HERE, overlay)])
    assert list(registry) == ["one", "two", "three"]
    two = registry["two"]
    assert (two.note, two.variant, two.layout, two.pos_emb) == ("mine", "moat1", "deeplab2", False)
    assert [source.url for source in two.sources] == ["file:///srv/two.tar.gz"]
    # A head speaks for its own file only: nothing says which licence the new entry has.
    assert registry["three"].license is None


def test_an_overlay_can_take_a_value_back() -> None:
    registry = load_texts([(Path("base.yaml"), SMALL), (HERE, "entries: [{id: one, published_top1: null}]")])
    assert registry["one"].published_top1 is None
    assert registry["one"].published_params == "27.8M"


def test_the_head_of_an_overlay_counts_as_given() -> None:
    overlay = "families: {moat: {license: MIT}}\nentries: [{id: one}, {id: two, license: BSD-3-Clause}]"
    registry = load_texts([(Path("base.yaml"), SMALL), (HERE, overlay)])
    assert (registry["one"].license, registry["two"].license) == ("MIT", "BSD-3-Clause")


def test_three_layers() -> None:
    layers = [(Path(f"{name}.yaml"), f"entries: [{{id: one, note: {name}}}]") for name in "ab"]
    registry = load_texts([(Path("base.yaml"), SMALL), *layers])
    assert registry["one"].note == "b"


def test_a_fault_of_an_overlay_is_told_in_the_overlay() -> None:
    assert faults_of("entries:\n  - id: one\n    note: 3\n", SMALL) == [
        "line 3: entry 'one': note: input should be a valid string, found 3"
    ]
    assert (
        faults_of("entries:\n  - id: onne\n    note: x\n", SMALL)[0]
        == "line 2: entry 'onne': family is missing"
    )


def test_environment_then_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, flag = (
        write(tmp_path, f"entries: [{{id: moat0-224, note: {name}, {extra}}}]", f"{name}.yaml")
        for name, extra in [("first", "group: a"), ("second", "setting: b"), ("flag", "weights: ema")]
    )
    monkeypatch.setenv("CKPTKIT_REGISTRY", f"{first}{os.pathsep}{os.pathsep}{second}")
    registry = load_registry([flag])
    entry = registry["moat0-224"]
    assert (entry.note, entry.group, entry.setting, entry.weights) == ("flag", "a", "b", "ema")
    assert registry.files == (built_in_path(), first, second, flag)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.yaml: no such registry file; check --registry"):
        load_registry([tmp_path / "nowhere.yaml"])
    with pytest.raises(StorageError, match=str(tmp_path)):
        load_registry([tmp_path])
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("entries: []\n# caf\xe9\n".encode("latin-1"))
    with pytest.raises(RegistryError, match="line 2: not UTF-8 text: byte 0xe9"):
        load_registry([latin])
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(16_000_001)
    with pytest.raises(RegistryError, match="larger than 16,000,000 bytes"):
        load_registry([large])
    with pytest.raises(StorageError, match="/dev/zero: a device where a regular file is needed"):
        load_registry([Path("/dev/zero")])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="pipe: a named pipe where a regular file is needed"):
        load_registry([tmp_path / "pipe"])


def test_a_pipe_of_the_shell_is_read() -> None:
    read, write_end = os.pipe()
    os.write(write_end, SMALL.encode())
    os.close(write_end)
    try:
        assert load_registry([Path(f"/dev/fd/{read}")])["two"].variant == "moat1"
    finally:
        os.close(read)


@pytest.mark.parametrize(
    "text",
    [
        "entries: [{" + ", ".join(f"k{n}: 1" for n in range(20_000)) + "}]",
        "".join(f"unknown_key_{n}: 1\n" for n in range(20_000)) + "entries: []\n",
        "entries: [" + "{}, " * 20_000 + "]",
        "entries: [" + "5, " * 20_000 + "]",
        "families: {moat: {" + ", ".join(f"train_resolutio{n}: 1" for n in range(20_000)) + "}}\nentries: []",
        "u: &u https://e.org/"
        + "x" * 100_000
        + "\nentries: [{id: a, sources: ["
        + "{url: *u}, " * 400
        + "]}]",
        "entries: [{id: a, family: " + "m" * 1_000_000 + "}]",
        "k" * 1_000_000 + ": 1\nentries: []",
        "entries: [{id: a, note: &n " + "9" * 4_000 + ", size: *n, train_resolution: *n}]",
    ],
)
def test_many_or_long_faults_are_one_short_line_in_little_time(tmp_path: Path, text: str) -> None:
    started = time.process_time()
    with pytest.raises(RegistryError) as caught:
        load_registry([write(tmp_path, text)], registry_families)
    assert time.process_time() - started < 4
    assert len(str(caught.value)) < 2000 and "\n" not in str(caught.value)
    assert len(caught.value.faults) <= 500


@pytest.mark.parametrize("newline", ["\r\n", "\n"])
@pytest.mark.parametrize("mark", ["\ufeff", ""])
def test_windows_text_is_read(tmp_path: Path, newline: str, mark: str) -> None:
    path = write(tmp_path, mark + SMALL.replace("\n", newline))
    assert load_registry([path])["two"].variant == "moat1"


def test_a_damaged_registry_is_refused_and_nothing_else() -> None:
    """Whatever happens to the text, it loads or it is a RegistryError."""
    chance = random.Random(7)
    words = [
        "null",
        "3",
        "[",
        "]",
        "{",
        "}",
        "- ",
        ": ",
        "\n",
        "    ",
        "id",
        "<<",
        "&a",
        "*a",
        "!!str",
        "true",
        "''",
    ]
    refused = 0
    for _ in range(300):
        text = SMALL
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(text))
            text = text[:place] + chance.choice(words) + text[place + chance.randint(0, 8) :]
        try:
            load_texts([(HERE, text)])
        except RegistryError as error:
            refused += 1
            assert all(fault.startswith("line ") and "\n" not in fault for fault in error.faults)
    assert refused > 100


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
    assert len(load_registry([overlay])) == len(load_registry()) + 2
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
