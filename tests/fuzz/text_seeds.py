"""Text files to damage, and how ckptkit uses each: registries, rules, logs, what is in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from tests.conftest import REPOSITORY
from tests.fuzz.layers import Layer, Seed, raw_layers, whole, written
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
    from ckptkit.families import registry_families
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


def _rules() -> Iterator[Seed]:
    held = {f"net/block_{n}/conv/kernel": np.zeros((3, 3, 2, 4), "float32") for n in range(3)}
    held |= {f"net/block_{n}/conv/bias": np.zeros(4, "float32") for n in range(3)}
    held |= {"head/1_2/w": np.zeros((6, 2), "float32"), "global_step": np.array(7, "int64")}
    held["global_" + "a" * 60] = np.zeros(1, "float32")
    files = {**written("safetensors", held, "w.safetensors"), "rules.yaml": _RULES}
    yield _texts("rules", "own", files, "rules.yaml", {"rules.yaml": "yaml"})


def use_rules(path: Path) -> str:
    """Plan a conversion by them, there and back."""
    from ckptkit.convert.by_rules import plan_by_rules
    from ckptkit.convert.options import Options
    from ckptkit.convert.rules_file import load_rules
    from ckptkit.errors import ConversionError
    from ckptkit.formats.detect import open_reader

    with open_reader(path.parent / "w.safetensors") as reader:
        try:
            plan_by_rules(reader, Options("torch"), load_rules(path))
        except ConversionError as error:
            if len(str(error)) > 5000:
                raise AssertionError(f"a message of {len(str(error))} characters") from error
            return "refused (ConversionError)"
    load_rules(path, reverse=True)
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
    from ckptkit.analysis.training_logs.parsing import parse_log

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
    from ckptkit.store.archive import is_unpacked
    from ckptkit.store.cache import Home
    from ckptkit.store.inventory import holdings, leftovers
    from ckptkit.store.trust import TrustFile

    home = Home(path)
    held = holdings(home)
    leftovers(home)
    str((held, home.fetched_ids(), home.is_cached(_ID), home.record(_ID)))
    trusted = TrustFile(path / "ckptkit.lock").files(_ID)
    str({name: one.to_json() for name, one in trusted.items()})
    is_unpacked(path / "unpacked" / _ID, "0" * 64)
    return "read"


TEXTS: Mapping[str, Callable[[], Iterator[Seed]]] = {
    "registry": _registry,
    "rules": _rules,
    "log": _logs,
    "cache": _cache,
}
USES: Mapping[str, Callable[[Path], str]] = {
    "registry": use_registry,
    "rules": use_rules,
    "log": use_log,
    "cache": use_cache,
}
"""Of each kind of text: what reads a file of it, and says what came of it."""
