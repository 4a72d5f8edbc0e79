"""An entry of the registry in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ckptkit.base.text import human_bytes
from ckptkit.registry.schema import Entry

NOT_KNOWN = "not known"
NOT_PINNED = "not pinned: no checksum of this file is published"

_LABEL_WIDTH = 20


def described(row: Entry, here: Sequence[tuple[str, str]] = ()) -> Iterator[str]:
    """Every fact of an entry, what is known of its file ``here``, and its sources."""
    yield f"{row.id}: {row.display_name}"
    for label, text in [*_facts(row), *_file(row), *here, *_links(row)]:
        yield f"  {label:<{_LABEL_WIDTH}}{text}"
    yield from ("", "Sources, best first", *_sources(row))


def _facts(row: Entry) -> list[tuple[str, str]]:
    exact = None if row.exact_parameters is None else f"{row.exact_parameters:,} exactly"
    accuracy = [
        f"top-{rank} {value}%"
        for rank, value in ((1, row.published_top1), (5, row.published_top5))
        if value is not None
    ]
    given = [f"{name} {_word(value)}" for name, value in row.settings.items()]
    embedding = [] if row.pos_emb is None else [("position embedding", _word(row.pos_emb))]
    deviations = [
        ("known deviation", f"{known.figure} {known.published}: {known.reason}")
        for known in row.known_deviations
    ]
    notes = [("note", " ".join(row.note.split()))] if row.note else []
    return [
        ("architecture", f"{row.variant} ({_joined(row.family, row.group)})"),
        ("training", _joined(row.pretrain_data, row.setting, _pixels(row.train_resolution))),
        ("test", _test(row)),
        *embedding,
        ("parameters", _joined(_published(row.published_params), exact)),
        (
            "FLOPs",
            _joined(_published(row.published_flops), row.published_flops and "multiply-adds of one image"),
        ),
        *deviations,
        ("accuracy", _joined(*accuracy, "as published" if accuracy else None)),
        ("behaviour", _joined(*given) if given else "no setting that changes the output"),
        ("licence, paper", _joined(row.license, row.paper)),
        *notes,
    ]


def _test(row: Entry) -> str:
    resize = None if row.test_resize is None else f"resize {row.test_resize}"
    return _joined(
        _pixels(row.test_resolution),
        resize,
        row.interpolation,
        row.normalization and f"{row.normalization} normalization",
    )


def _file(row: Entry) -> list[tuple[str, str]]:
    weights = row.weights and f"{row.weights} weights"
    size = None if row.size is None else f"{human_bytes(row.size)} ({row.size:,} bytes)"
    facts = [
        ("file", _joined(row.file_name, f"format {row.format}", f"layout {row.layout}", weights)),
        ("size", size or NOT_KNOWN),
        ("sha256", row.sha256 or NOT_PINNED),
    ]
    if row.hash_provenance:
        provenance = row.hash_provenance
        facts.append(("", f"observed {provenance.observed_at} from {provenance.url}"))
    return facts


def _links(row: Entry) -> list[tuple[str, str]]:
    links = [("config", row.config_url), ("log", row.log_url)]
    return [(name, url) for name, url in links if url]


def _sources(row: Entry) -> list[str]:
    lines = []
    for number, source in enumerate(row.sources, 1):
        lines.append(f"  {number}. {source.url}")
        statistics = {True: "has BatchNorm statistics", False: "lacks BatchNorm statistics", None: None}
        marks = [statistics[source.bn_statistics], "by hand only" if source.manual else None]
        remarks = "; ".join(text for text in [*marks, source.note] if text)
        if remarks:
            lines.append(f"     {remarks}")
    return lines


def _published(figure: str | None) -> str | None:
    return figure and f"{figure} as published"


def _pixels(size: int | None) -> str | None:
    return None if size is None else f"{size}×{size}"


def _word(value: bool | int) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _joined(*parts: Any) -> str:
    """Join what is known with commas."""
    return ", ".join(str(part) for part in parts if part) or NOT_KNOWN
