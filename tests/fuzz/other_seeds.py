"""Files to damage that are no checkpoints, and how ckptkit uses each: texts, records, archives, pictures."""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import REPOSITORY
from tests.fuzz.layers import (
    Layer,
    Seed,
    member_layers,
    raw_layers,
    tar,
    tar_layers,
    whole,
    written,
    zip_layers,
    zipped,
)
from tests.support.training_logs import PLAIN, THREE_EPOCHS, summary


def _texts(
    format: str, name: str, files: Mapping[str, bytes], opened: str, grammars: Mapping[str, str]
) -> Seed:
    layers = [*raw_layers({file: files[file] for file in grammars})]
    layers += [Layer(file, files[file], whole, grammar) for file, grammar in grammars.items()] * 3
    return Seed(format, name, files, opened, layers)


# -- registries and rules ------------------------------------------------------------------------------------


def _registry() -> Iterator[Seed]:
    text = (REPOSITORY / "registry.yaml").read_text(encoding="utf-8")
    head, mark, entries = text.partition("\nentries:\n")
    rows = entries.split("\n  - id: ")
    small = head + mark + "\n  - id: ".join(rows[:3]) + "\n"
    plain = "\n".join(line for line in small.splitlines() if not line.lstrip().startswith("#"))
    yield _texts("registry", "own", {"r.yaml": plain.encode()}, "r.yaml", {"r.yaml": "yaml"})


def use_registry(path: Path) -> str:
    """Load, as ``--registry`` does."""
    from ckptkit.families.base import registry_families
    from ckptkit.registry.loading import load_texts, read_text

    registry = load_texts([(path, read_text(path))], registry_families())
    for entry in registry.values():
        str(entry.model_dump_json())
    return "read"


_RULES = b"""rules:
  - {source: "net/block_{i}/conv/kernel", target: "blocks.{i}.conv.weight", axes: "h w i o -> o i h w"}
  - source: "net/block_{i}/conv/bias"
    target: "blocks.{i}.conv.bias"
    axes: "c -> c"
  - {source: "head/{a}_{b}/w", target: "head.{b}.{a}", axes: "(h d) o -> o h d", sizes: {h: 2}}
ignore:
  - {name: step, pattern: "global_.*|(step)+", reason: "counts training steps"}
direction: forward
"""


_RULES_2 = b"""version: 2
strip: ["module.", "_orig_mod."]
rules:
  - {source: "net/block_{i}/conv/kernel", target: "b.{i+1}.w", axes: "h w i o -> o i h w", sure: guessed}
  - {source: "net/block_{i}/conv/bias", target: "b.bias", op: stack, over: i}
  - source: "head/{a}_{b:01}/w"
    target: ["q{a}.{b}", "k{a}.{b}"]
    op: split
    over: two
    axes: "(h two d) o -> o h d"
    sizes: {h: 1}
  - {source: ["p/{x...}/q", "p/{x...}/k"], target: "{x...}.qk", op: concat, axis: -1, parts: [1, 2]}
  - {source: "u", target: "u{n}", op: unstack, over: n}
  - {source: "{rest...}", target: "rest.{rest...}", optional: true}
  - {target: "b.{i}.count", fill: zeros, shape: [], dtype: int64, with: "b.{i+1}.w"}
ignore:
  - {name: step, pattern: "global_.*", reason: "counts training steps"}
direction: forward
"""


def _rules() -> Iterator[Seed]:
    held = {f"net/block_{n}/conv/kernel": np.zeros((3, 3, 2, 4), "float32") for n in range(3)}
    held |= {f"net/block_{n}/conv/bias": np.zeros(4, "float32") for n in range(3)}
    held |= {"head/1_2/w": np.zeros((6, 2), "float32"), "global_step": np.array(7, "int64")}
    held["global_" + "a" * 60] = np.zeros(1, "float32")
    files = {**written("safetensors", held, "w.safetensors"), "rules.yaml": _RULES}
    yield _texts("rules", "own", files, "rules.yaml", {"rules.yaml": "yaml"})
    held = {name: array for name, array in held.items() if not name.startswith("head")}
    held |= {"p/a.b/q": np.zeros((2, 1), "float32"), "p/a.b/k": np.zeros((2, 2), "float32")}
    held |= {"u": np.zeros((3, 2), "float32"), "module.other/w": np.zeros(1, "float32")}
    held["head/1_2/w"] = np.zeros((4, 2), "float32")
    files = {**written("safetensors", held, "w.safetensors"), "rules.yaml": _RULES_2}
    yield _texts("rules", "version 2", files, "rules.yaml", {"rules.yaml": "yaml"})


def use_rules(path: Path) -> str:
    """Plan a conversion by them, there and back."""
    from ckptkit.base.errors import ConversionError
    from ckptkit.convert.pipeline import Options, plan
    from ckptkit.formats.detect import open_reader
    from ckptkit.rules.file import load_rules

    with open_reader(path.parent / "w.safetensors") as reader:
        try:
            plan(reader, Options("torch", rules=load_rules(path)))
        except ConversionError as error:
            if len(str(error)) > 5000:
                raise AssertionError(f"a message of {len(str(error))} characters") from error
            return "refused (ConversionError)"
        try:
            plan(reader, Options("torch", rules=load_rules(path, reverse=True)))
        except ConversionError as error:
            if len(str(error)) > 5000:
                raise AssertionError(f"a message of {len(str(error))} characters") from error
    return "read"


# -- training logs -------------------------------------------------------------------------------------------


def _logs() -> Iterator[Seed]:
    mmcv = THREE_EPOCHS.encode()
    yield _texts("log", "mmcv", {"x.log.json": mmcv}, "x.log.json", {"x.log.json": "lines"})
    first = mmcv.splitlines(keepends=True)
    for number in (0, 1, 3):

        def wrap(damaged: bytes, number: int = number) -> bytes:
            return b"".join([*first[:number], damaged.replace(b"\n", b" ") + b"\n", *first[number + 1 :]])

        layers = [Layer("x.log.json", first[number], wrap, "json")]
        yield Seed("log", f"mmcv, line {number}", {"x.log.json": mmcv}, "x.log.json", layers)
    rows = [(0, 6.9, 6.5, 1.5, 4.25), (1, 6.1, 5.5, 10.5, 30.0), (2, 5.0, 4.5, 70.25, 90.5)]
    timm = summary(PLAIN, rows).encode()
    yield _texts("log", "timm", {"summary.csv": timm}, "summary.csv", {"summary.csv": "lines"})


def use_log(path: Path) -> str:
    """Read a log, and say all it has."""
    from ckptkit.analysis.logs.readers import parse_log

    log = parse_log(path)
    json.dumps([epoch.to_json() for epoch in log.epochs], allow_nan=False)
    str((log.figures(), log.metric, log.last, log.remarks))
    return "read"


# -- the cache -----------------------------------------------------------------------------------------------

_ID, _FILE = "tiny-moat0-256", "m.safetensors"


def _cache() -> Iterator[Seed]:
    weights = written("safetensors", {"w": np.zeros(3, "float32")}, _FILE)[_FILE]
    known = {"sha256": hashlib.sha256(weights).hexdigest(), "size": len(weights)}
    url, when = f"https://example.org/{_FILE}", "2026-01-02T03:04:05+00:00"
    record = {"id": _ID, "url": url, "file": _FILE, **known, "fetched_at": when, "used_url": url,
    "mtime_ns": 5,
              "etag": '"x"', "generation": None, "server_hashes": {"md5": "00" * 16},
              "ckptkit_version": "0.3",
              "note": "", "bn_statistics": True, "overruled": False,
              "previous": [{**known, "fetched_at": when, "used_url": url}]}  # fmt: skip
    lock = {"ckptkit_lock": 1, "entries": {_ID: {_FILE: {**known, "url": url, "first_seen": when,
    "how": "download",
            "history": [{**known, "url": url, "first_seen": when, "how": "import",
            "replaced_at": when}]}}}}  # fmt: skip
    marker = {"archive": "m.tar.gz", "sha256": known["sha256"], "files": {"a/b": 3}}
    files = {
        f"artefacts/{_ID}/{_FILE}": weights,
        f"artefacts/{_ID}/{_FILE}.json": json.dumps(record).encode(),
        f"unpacked/{_ID}/.ckptkit-unpacked.json": json.dumps(marker).encode(),
        f"unpacked/{_ID}/a/b": b"abc",
        "ckptkit.lock": json.dumps(lock).encode(),
    }
    yield _texts(
        "cache", "own", files, ".", {name: "json" for name in files if name.endswith(("json", "lock"))}
    )


def use_cache(path: Path) -> str:
    """Look at everything, as ``cache ls`` and ``fetch`` do."""
    from ckptkit.store.cache import Home
    from ckptkit.store.lockfile import LockFile
    from ckptkit.store.unpack import is_unpacked
    from ckptkit.store.upkeep import holdings, leftovers

    home = Home(path)
    held = holdings(home)
    leftovers(home)
    str((held, home.fetched_ids(), home.is_cached(_ID), home.record(_ID)))
    trusted = LockFile(path / "ckptkit.lock").files(_ID)
    str({name: one.to_json() for name, one in trusted.items()})
    is_unpacked(path / "unpacked" / _ID, "0" * 64)
    return "read"


# -- archives to unpack --------------------------------------------------------------------------------------


def _archives() -> Iterator[Seed]:
    members = {"m/a.index": b"index" * 9, "m/b.data-00000-of-00001": bytes(range(200)), "c.txt": b"x"}
    raw = tar(members)
    for name, pack in (("a.tar", whole), ("a.tar.gz", functools.partial(gzip.compress, mtime=0))):
        layers = [*raw_layers({name: pack(raw)}), Layer(name, raw, pack), *tar_layers(name, raw, pack)]
        yield Seed("archive", name, {name: pack(raw)}, name, layers)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raw = zipped(members, method)
        layers = [*raw_layers({"a.zip": raw}), *zip_layers("a.zip", raw)]
        layers += member_layers("a.zip", members, functools.partial(zipped, method=method))
        yield Seed("archive", f"zip, method {method}", {"a.zip": raw}, "a.zip", layers)


def _others(folder: Path) -> set[Path]:
    """What is in the campaign's folder but the folders of its jobs, which come while a case runs."""
    return {one for one in folder.iterdir() if not one.name.startswith("job-")}


def use_archive(path: Path) -> str:
    """Unpack, as ``fetch`` does: into its folder, or not at all."""
    from ckptkit.base.errors import CkptkitError
    from ckptkit.store.unpack import unpack

    folder = path.parent / "here" / "out"
    around = _others(path.parent.parent)
    try:
        unpack(path, folder)
    except CkptkitError:
        if folder.exists() or (folder.parent.exists() and [*folder.parent.iterdir()]):
            raise AssertionError("something is left of an archive that was refused") from None
        raise
    finally:
        assert {*path.parent.iterdir()} <= {path, folder.parent}
        assert _others(path.parent.parent) == around
    for one in folder.rglob("*"):
        assert (one.is_file() or one.is_dir()) and not one.is_symlink()
    return "read"


# -- pictures ------------------------------------------------------------------------------------------------


def _pictures() -> Iterator[Seed]:
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (24, 16, 3), "uint8"))
    ways: Mapping[str, Mapping[str, Any]] = {
        "png": {}, "jpeg": {}, "webp": {"lossless": True}, "bmp": {}, "gif": {},
        "tiff": {"compression": "tiff_deflate"},
    }  # fmt: skip
    for kind, options in ways.items():
        file = io.BytesIO()
        picture.save(file, kind, **options)
        raw, name = file.getvalue(), f"a.{kind}"
        layers = raw_layers({name: raw})
        if kind == "png":
            layers += _png_layers(name, raw)
        yield Seed("picture", kind, {name: raw}, name, layers)


def _png_layers(name: str, raw: bytes) -> Iterator[Layer]:
    """Every chunk of a PNG with its length and checksum right, and the pixels before they are packed."""
    place = 8
    while place < len(raw):
        size = int.from_bytes(raw[place : place + 4], "big")
        kind = raw[place + 4 : place + 8]
        stop = place + 12 + size

        def wrap(damaged: bytes, kind: bytes = kind, place: int = place, stop: int = stop) -> bytes:
            crc = zlib.crc32(kind + damaged).to_bytes(4, "big")
            return raw[:place] + len(damaged).to_bytes(4, "big") + kind + damaged + crc + raw[stop:]

        yield Layer(name, raw[place + 8 : stop - 4], wrap)
        if kind == b"IDAT":
            pixels = zlib.decompress(raw[place + 8 : stop - 4])
            yield Layer(name, pixels, lambda damaged, wrap=wrap: wrap(zlib.compress(damaged)))
        place = stop


def use_picture(path: Path) -> str:
    """Decode, as ``predict`` does."""
    from ckptkit.models.images.decoding import open_image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = open_image(path)
    assert picture.mode == "RGB"
    picture.resize((8, 8))
    return "read"


OTHERS: Mapping[str, Callable[[], Iterator[Seed]]] = {
    "registry": _registry,
    "rules": _rules,
    "log": _logs,
    "cache": _cache,
    "archive": _archives,
    **({"picture": _pictures} if importlib.util.find_spec("PIL") else {}),
}
USES: Mapping[str, Callable[[Path], str]] = {
    "registry": use_registry,
    "rules": use_rules,
    "log": use_log,
    "cache": use_cache,
    "archive": use_archive,
    "picture": use_picture,
}
"""Of each kind: what uses a file of it, and says what came of it."""
