"""Everything known of one entry, as ``ckptkit show`` says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptkit.base.text import human_bytes

if TYPE_CHECKING:
    from ckptkit.registry.rows import Row
    from ckptkit.store.cache import Record

NOT_KNOWN = "not known"
NOT_PINNED = "not pinned: no checksum of this file is published"

_LABEL_WIDTH = 20


def as_json(row: Row, record: Record | None, *, cached: bool) -> dict[str, Any]:
    """Return the entry's fields, what follows from them, and what the cache holds of it."""
    observed = None
    if record is not None:
        observed = {
            "sha256": record.sha256,
            "size": record.size,
            "fetched_at": record.fetched_at,
            "url": record.url,
        }
    derived = {
        "params": row.params,
        "flops": row.flops,
        "file_name": row.file_name,
        "is_archive": row.is_archive,
    }
    return {**row.fields, **derived, "cached": cached, "observed": observed}


def as_lines(row: Row, record: Record | None, *, cached: bool) -> list[str]:
    """Return the entry for people."""
    facts = [*_facts(row), *_file(row, record, cached=cached)]
    lines = [f"{row.id}: {row.display_name}"]
    lines += [f"  {label:<{_LABEL_WIDTH}}{text}" for label, text in facts]
    lines += ["", "Sources, best first", *_sources(row)]
    lines += ["", "Next", *(f"  {command}" for command in _next(row, cached=cached))]
    return lines


def _facts(row: Row) -> list[tuple[str, str]]:
    exact = None if row.exact_parameters is None else f"{row.exact_parameters:,} exactly"
    accuracy = [
        f"top-{rank} {value}%"
        for rank, value in ((1, row.published_top1), (5, row.published_top5))
        if value is not None
    ]
    settings = {
        "pool_size": row.pool_size,
        "window_size": row.window_size,
        "global_attention": row.global_attention,
        "attn_force_fp32": row.attn_force_fp32,
    }
    given = [f"{name} {_word(value)}" for name, value in settings.items() if value is not None]
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


def _test(row: Row) -> str:
    resize = None if row.test_resize is None else f"resize {row.test_resize}"
    return _joined(
        _pixels(row.test_resolution),
        resize,
        row.interpolation,
        row.normalization and f"{row.normalization} normalization",
    )


def _file(row: Row, record: Record | None, *, cached: bool) -> list[tuple[str, str]]:
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
    facts.append(("cached", "yes" if cached else "no"))
    if record is not None and record.sha256 != row.sha256:
        facts.append(("observed here", f"sha256 {record.sha256}, {record.size:,} bytes, {record.fetched_at}"))
    links = [("config", row.config_url), ("log", row.log_url)]
    return facts + [(name, url) for name, url in links if url]


def _sources(row: Row) -> list[str]:
    lines = []
    for number, source in enumerate(row.sources, 1):
        lines.append(f"  {number}. {source.url}")
        statistics = {True: "has BatchNorm statistics", False: "lacks BatchNorm statistics", None: None}
        marks = [statistics[source.bn_statistics], "by hand only" if source.manual else None]
        said = "; ".join(text for text in [*marks, source.note] if text)
        if said:
            lines.append(f"     {said}")
    return lines


def _next(row: Row, *, cached: bool) -> list[str]:
    """Return the commands that lead on; those that need the family's models only where it has some."""
    from ckptkit.families.base import families

    get = "import {} FILE" if all(source.manual for source in row.sources) else "fetch {}"
    commands = ["verify {} --deep"] if cached else [get]
    if row.family in families():
        commands += ["convert {} --to safetensors", "parity {}"]
    if cached and not row.sha256:
        commands.append("registry pin {}")
    return [f"ckptkit {command.format(row.id)}" for command in commands]


def _published(figure: str | None) -> str | None:
    return figure and f"{figure} as published"


def _pixels(size: int | None) -> str | None:
    return None if size is None else f"{size}×{size}"


def _word(value: bool | int) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _joined(*parts: Any) -> str:
    """Join what is known with commas."""
    return ", ".join(str(part) for part in parts if part) or NOT_KNOWN
