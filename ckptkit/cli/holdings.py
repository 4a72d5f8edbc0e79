"""How `cache ls` shows what the cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ckptkit.base.text import human_bytes

if TYPE_CHECKING:
    from ckptkit.store.cache import Home
    from ckptkit.store.inventory import Holding


def holding_cells(holding: Holding) -> list[str]:
    """What `cache ls` shows of an entry, a cell a column."""
    conversions = holding.of("converted")
    converted = f"{len(conversions)}: {human_bytes(holding.size_of('converted'))}" if conversions else "-"
    return [
        holding.id,
        human_bytes(holding.size_of("artefact")) if holding.of("artefact") else "-",
        human_bytes(holding.size_of("unpacked")) if holding.of("unpacked") else "-",
        converted,
        human_bytes(holding.size),
        _day(holding.used),
        _state_in_words(holding),
    ]


def total_cells(held: Sequence[Holding]) -> list[str]:
    """The last row: how many entries, and how much of each kind."""
    kinds = [
        human_bytes(sum(h.size_of(kind) for h in held)) for kind in ("artefact", "unpacked", "converted")
    ]
    size = human_bytes(sum(h.size for h in held))
    return [f"total of {len({h.id for h in held})}", *kinds, size, "", ""]


def _state_in_words(holding: Holding) -> str:
    said = []
    names = {"artefact": "file", "unpacked": "unpacked", "converted": "conversion", "unfinished": "download"}
    for item in holding.items:
        if item.kind == "unfinished":
            if item.path.suffix != ".json":
                said.append(f"{item.state}: {human_bytes(item.size)}")
        elif item.state != "intact":
            what = item.path.name if item.kind == "converted" else names[item.kind]
            said.append(f"{what} {item.state}")
    return ", ".join(said) or "intact"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M")


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def holdings_json(home: Home, held: Sequence[Holding]) -> dict[str, Any]:
    """The same for ``--json``, every file with its path."""
    return {
        "folders": [str(single.path) for single in home.homes],
        "entries": [
            {
                "id": holding.id,
                "folder": str(holding.home),
                "size": holding.size,
                "last_used": _iso(holding.used),
                "imported_by_hand": holding.by_hand,
                "intact": holding.is_intact,
                "items": [
                    {"kind": item.kind, "path": str(item.path), "size": item.size, "state": item.state}
                    for item in holding.items
                ],
            }
            for holding in held
        ],
        "total": {
            kind: sum(holding.size_of(kind) for holding in held)
            for kind in ("artefact", "unpacked", "converted", "unfinished")
        }
        | {"all": sum(holding.size for holding in held)},
    }
