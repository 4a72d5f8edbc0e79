"""The registry as a mapping: by id, by glob, by figure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ckptkit.base.errors import NotFoundError, listed
from ckptkit.base.parse import is_glob, parse_count
from ckptkit.base.shown import Column, Piece, Shown, Table
from ckptkit.base.text import counted
from ckptkit.registry.schema import Entry

Number = float | int | str
Texts = str | Sequence[str]


def nearest(wanted: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """Names that begin with ``wanted``, else those most like it or their beginning, best first.

    >>> nearest("moat0-225", ["moat0-224", "moat1-224", "moganet-s-224"], count=1)
    ['moat0-224']
    """
    from difflib import SequenceMatcher

    typed, names = wanted.lower(), list(known)
    if len(typed) < _LEAST_TYPED:
        return []
    if begun := [name for name in names if name.lower().startswith(typed)]:
        return begun[:count]
    ranked = []
    for place, name in enumerate(names):
        low = name.lower()
        pair = [SequenceMatcher(None, typed, text) for text in (low[: len(typed)], low)]
        if typed not in low and all(one.real_quick_ratio() < _ALIKE for one in pair):
            continue  # too long, or too short
        if typed not in low and all(one.quick_ratio() < _ALIKE for one in pair):
            continue
        begins, whole = (one.ratio() for one in pair)
        if max(begins, whole) >= _ALIKE or typed in low:
            ranked.append((-max(begins, whole), -whole, place, name))
    return [name for *_, name in sorted(ranked)[:count]]


_ALIKE = 0.7
_LEAST_TYPED = 3
"""Letters from which a word is compared with names."""


def _either(names: Sequence[str]) -> str:
    """Join as in "a, b or c"."""
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _matches(value: str | None, wanted: Texts | None) -> bool:
    """Whether ``value`` is one of the wanted texts or globs, in any case."""
    if wanted is None:
        return True
    from fnmatch import fnmatchcase

    patterns = [wanted] if isinstance(wanted, str) else wanted
    return value is not None and any(fnmatchcase(value.lower(), pattern.lower()) for pattern in patterns)


def _within(value: float | None, least: Number | None, most: Number | None) -> bool:
    """Whether a figure is within the bounds; an unknown one is not."""
    if least is None and most is None:
        return True
    if value is None:
        return False
    return (least is None or value >= parse_count(least)) and (most is None or value <= parse_count(most))


class Registry(Mapping[str, Entry], Shown):
    """Every entry of the registry files, by id and in the order of the files.

    ``files`` are where they come from, in the order of loading, ``counts`` how many entries each of them has.
    """

    def __init__(
        self, entries: Iterable[Entry], files: Sequence[Path] = (), counts: Sequence[int] = ()
    ) -> None:
        self._entries = {entry.id: entry for entry in entries}
        self.files = tuple(files)
        self.counts = tuple(counts)

    def __getitem__(self, key: str | Entry) -> Entry:
        """The entry of an id; NotFoundError suggests the nearest ones."""
        if isinstance(key, Entry):
            key = key.id
        if not isinstance(key, str):
            raise NotFoundError(
                f"no entry {key!r} in the registry, which goes by ids",
                hint=f"take an id such as {next(iter(self._entries), 'moat0-224')!r}; 'ckptkit list' has all",
            )
        if key in self._entries:
            return self._entries[key]
        if is_glob(key) and (fitting := [entry.id for entry in self.find(ids=key)]):
            raise NotFoundError(
                f"{key!r} is a glob, and one entry is needed here",
                details=[f"it matches {listed(fitting)}"],
                hint="name one of them",
            )
        raise NotFoundError(f"no entry {key!r} in the registry", hint=self._near(key))

    def no_match(self, pattern: str, what: str = "id") -> NotFoundError:
        """What to say of a glob that fits nothing."""
        return NotFoundError(f"no {what} matches {pattern!r}", hint=self._near(pattern.strip("*?[]")))

    def _near(self, wanted: str) -> str:
        close = nearest(wanted, self._entries)
        return f"did you mean {_either(close)}?" if close else "see 'ckptkit list'"

    @property
    def headline(self) -> str:
        """The registry in one line."""
        return (
            f"{counted(len(self), 'entry')}: "
            f"{', '.join(dict.fromkeys(entry.family for entry in self.values()))}"
        )

    def pieces(self) -> Iterator[Piece]:
        """A row for each entry."""
        columns = [Column("id"), Column("variant"), Column("pretrain"), Column("resolution", numeric=True)]
        columns += [Column(figure, numeric=True) for figure in ("params", "FLOPs", "top-1")]
        rows = [
            [
                entry.id,
                entry.variant,
                *(
                    "-" if value is None else str(value)
                    for value in (
                        entry.pretrain_data,
                        entry.test_resolution,
                        entry.published_params,
                        entry.published_flops,
                        entry.published_top1,
                    )
                ),
            ]
            for entry in self.values()
        ]
        yield Table(columns, rows)

    def __iter__(self) -> Iterator[str]:
        """Ids, in the order of the files."""
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def get(self, key: str, default: Entry | None = None) -> Entry | None:  # type: ignore[override]  # no third type
        """The entry of an id, or ``default``."""
        return self._entries.get(key, default)

    def find(
        self,
        *,
        family: Texts | None = None,
        variant: Texts | None = None,
        ids: Texts | None = None,
        task: Texts | None = None,
        method: Texts | None = None,
        metric: Texts | None = None,
        group: Texts | None = None,
        pretrain_data: Texts | None = None,
        setting: Texts | None = None,
        min_params: Number | None = None,
        max_params: Number | None = None,
        min_flops: Number | None = None,
        max_flops: Number | None = None,
        min_top1: float | None = None,
        max_top1: float | None = None,
        resolution: int | None = None,
        pos_emb: bool | None = None,
    ) -> list[Entry]:
        """Entries that meet every condition given.

        Texts are globs (``moat*-384*``) or several, of which one must fit; upper and lower case are the same.
        ``metric`` names published metrics (``box_mAP``), all of which an entry must have.
        Bounds are included, and apply to the published figures: numbers, or text such as ``"30M"``. The
        resolution is that of training or of testing. A figure that is not known meets no condition on it.
        """
        metrics = self._metrics([metric] if isinstance(metric, str) else metric or ())
        return [
            entry
            for entry in self._entries.values()
            if _matches(entry.family, family)
            and _matches(entry.variant, variant)
            and _matches(entry.id, ids)
            and _matches(entry.task, task)
            and _matches(entry.method, method)
            and all(entry.metric(name) is not None for name in metrics)
            and _matches(entry.group, group)
            and _matches(entry.pretrain_data, pretrain_data)
            and _matches(entry.setting, setting)
            and _within(entry.params, min_params, max_params)
            and _within(entry.flops, min_flops, max_flops)
            and _within(entry.published_top1, min_top1, max_top1)
            and (resolution is None or resolution in (entry.train_resolution, entry.test_resolution))
            and (pos_emb is None or entry.pos_emb is pos_emb)
        ]

    def _metrics(self, names: Sequence[str]) -> Sequence[str]:
        """Names of metrics, each of which some entry has."""
        for name in names:
            if not any(entry.metric(name) is not None for entry in self.values()):
                known = dict.fromkeys(key for entry in self.values() for key in entry.published_metrics)
                raise NotFoundError(f"no entry has a metric {name!r}", hint=f"choose from {', '.join(known)}")
        return names

    def select(self, patterns: Sequence[str]) -> list[Entry]:
        """Entries named by ids and globs, each once, in the order of the files; each must name one."""
        wanted: set[str] = set()
        for pattern in patterns:
            if not is_glob(pattern):
                wanted.add(self[pattern].id)
                continue
            fitting = self.find(ids=pattern)
            if not fitting:
                raise self.no_match(pattern)
            wanted.update(entry.id for entry in fitting)
        return [entry for key, entry in self._entries.items() if key in wanted]
