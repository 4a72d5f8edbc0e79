"""Asking the registry: by id, by glob, by figure.

Nothing here imports pydantic or a YAML library.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ckptkit.base.errors import NotFoundError
from ckptkit.base.parse import parse_count

if TYPE_CHECKING:
    from pydantic import BaseModel

Number = float | int | str
Texts = str | Sequence[str]

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


class SourceFacts:
    """What every kind of source has (see `ckptkit.registry.Source`)."""

    if TYPE_CHECKING:
        url: str
        note: str
        bn_statistics: bool | None
        manual: bool


class ProvenanceFacts:
    """What every kind of provenance has (see `ckptkit.registry.HashProvenance`)."""

    if TYPE_CHECKING:
        observed_at: str
        url: str
        note: str | None


class DeviationFacts:
    """What every kind of known deviation has (see `ckptkit.registry.KnownDeviation`)."""

    if TYPE_CHECKING:
        figure: str
        published: str
        reason: str


class EntryFacts:
    """What every kind of entry has: the fields of `ckptkit.registry.Entry`, and what follows from them."""

    if TYPE_CHECKING:
        id: str
        family: str
        variant: str
        display_name: str
        group: str | None
        required: bool
        pretrain_data: str | None
        setting: str | None
        train_resolution: int | None
        test_resolution: int | None
        pos_emb: bool | None
        published_params: str | None
        published_flops: str | None
        published_top1: float | None
        published_top5: float | None
        exact_parameters: int | None
        license: str | None
        paper: str | None
        layout: str
        format: str
        weights: str | None
        normalization: str | None
        test_resize: int | None
        interpolation: str | None
        sha256: str | None
        size: int | None
        config_url: str | None
        log_url: str | None
        note: str | None

        @property
        def settings(self) -> dict[str, Any]:
            """What is known of the settings of its model."""

        @property
        def sources(self) -> tuple[SourceFacts, ...]:
            """Where the file can be had, best first."""

        @property
        def hash_provenance(self) -> ProvenanceFacts | None:
            """When and from where the checksum was observed."""

        @property
        def known_deviations(self) -> tuple[DeviationFacts, ...]:
            """Published figures that are known not to round from what is counted."""

    def known_deviation(self, figure: str) -> DeviationFacts | None:
        """The known deviation of one figure, ``params`` or ``flops``; None where there is none."""
        return next((known for known in self.known_deviations if known.figure == figure), None)

    @property
    def params(self) -> float | None:
        """Parameters: the published figure, else the exact count."""
        if self.published_params is not None:
            return parse_count(self.published_params)
        return None if self.exact_parameters is None else float(self.exact_parameters)

    @property
    def flops(self) -> float | None:
        """Multiply-adds of one image, as published."""
        return None if self.published_flops is None else parse_count(self.published_flops)

    @property
    def file_name(self) -> str:
        """Name of the published file: the last part of the first URL that needs no hand."""
        from urllib.parse import unquote, urlsplit

        for source in sorted(self.sources, key=lambda source: source.manual):
            name = unquote(urlsplit(source.url).path).replace("\\", "/").rpartition("/")[2]
            if not source.manual and name not in {"", ".", ".."}:
                return name
        return self.id

    @property
    def is_archive(self) -> bool:
        """Whether the published file must be unpacked (``.pth.tar`` is a plain PyTorch file)."""
        return self.file_name.lower().endswith(ARCHIVE_SUFFIXES)


E = TypeVar("E", bound=EntryFacts)


def nearest(wanted: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """Names most like ``wanted``, best first.

    Examples
    --------
    >>> nearest("moat0-225", ["moat0-224", "moat1-224", "moganet-s-224"], count=1)
    ['moat0-224']
    """
    import difflib

    names = list(known)
    lowered = {name.lower(): name for name in names}
    close = difflib.get_close_matches(wanted.lower(), lowered, n=count, cutoff=0.6)
    inside = [low for low in lowered if wanted and wanted.lower() in low and low not in close]
    return [lowered[low] for low in [*close, *inside][:count]]


def _either(names: Sequence[str]) -> str:
    """Join as in "a, b or c"."""
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def is_glob(pattern: str) -> bool:
    """Whether ``pattern`` has a wildcard of `fnmatch` in it."""
    return any(sign in pattern for sign in "*?[")


def _matches(value: str | None, wanted: Texts | None) -> bool:
    """Whether ``value`` is one of the wanted texts or globs, in any case."""
    if wanted is None:
        return True
    from fnmatch import fnmatchcase

    patterns = [wanted] if isinstance(wanted, str) else wanted
    return value is not None and any(fnmatchcase(value.lower(), pattern.lower()) for pattern in patterns)


def _within(value: float | None, least: Number | None, most: Number | None) -> bool:
    """Whether a figure lies in the bounds; an unknown one lies in no bounds."""
    if least is None and most is None:
        return True
    if value is None:
        return False
    return (least is None or value >= parse_count(least)) and (most is None or value <= parse_count(most))


@dataclass(frozen=True)
class FamilyFacts:
    """What an entry of a family may say, handed in from above: this room knows no architecture."""

    variants: Sequence[str]
    formats: Mapping[str, Sequence[str]]  # containers that each layout comes in
    #: Fields of its entries besides those that every entry has.
    settings: type[BaseModel] | None = None

    def known(self, field: str) -> Sequence[str]:
        """Values of ``variant`` or ``layout``."""
        return self.variants if field == "variant" else tuple(self.formats)


Families = Mapping[str, FamilyFacts]


class Catalogue(Mapping[str, E]):
    """Entries by id, in the order of the files.

    Parameters
    ----------
    entries : iterable of entries
        Each with an id of its own.
    """

    def __init__(self, entries: Iterable[E]) -> None:
        self._entries = {entry.id: entry for entry in entries}

    def __getitem__(self, key: str | EntryFacts) -> E:
        """Return the entry of an id.

        Raises
        ------
        NotFoundError
            When there is none; the message suggests the nearest ids.
        """
        if isinstance(key, EntryFacts):
            key = key.id
        if not isinstance(key, str):
            raise NotFoundError(
                f"no entry {key!r} in the registry, which goes by ids",
                hint=f"take an id such as {next(iter(self._entries), 'moat0-224')!r}; 'ckptkit list' has all",
            )
        if key in self._entries:
            return self._entries[key]
        close = nearest(key, self._entries)
        hint = f"did you mean {_either(close)}?" if close else "see 'ckptkit list'"
        raise NotFoundError(f"no entry {key!r} in the registry", hint=hint)

    def __iter__(self) -> Iterator[str]:
        """Ids, in the order of the files."""
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def get(self, key: str, default: E | None = None) -> E | None:  # type: ignore[override]  # no third type
        """Return the entry of an id, or ``default``."""
        return self._entries.get(key, default)

    def find(
        self,
        *,
        family: Texts | None = None,
        variant: Texts | None = None,
        ids: Texts | None = None,
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
    ) -> list[E]:
        """Entries that meet every condition given.

        Parameters
        ----------
        family, variant, ids, group, pretrain_data, setting : str or sequence of str, optional
            A glob (``moat*-384*``) or several, of which one must fit; upper and lower case are the same.
        min_params, max_params, min_flops, max_flops : float, int or str, optional
            Bounds, included, on the published figures: numbers, or text such as ``"30M"``.
        min_top1, max_top1 : float, optional
            Bounds, included, in percent.
        resolution : int, optional
            Pixels, of training or of testing.
        pos_emb : bool, optional
            With or without position embedding; entries of families that have none fit neither.

        Notes
        -----
        A figure that is not known (null) meets no condition on it.
        """
        return [
            entry
            for entry in self._entries.values()
            if _matches(entry.family, family)
            and _matches(entry.variant, variant)
            and _matches(entry.id, ids)
            and _matches(entry.group, group)
            and _matches(entry.pretrain_data, pretrain_data)
            and _matches(entry.setting, setting)
            and _within(entry.params, min_params, max_params)
            and _within(entry.flops, min_flops, max_flops)
            and _within(entry.published_top1, min_top1, max_top1)
            and (resolution is None or resolution in (entry.train_resolution, entry.test_resolution))
            and (pos_emb is None or entry.pos_emb is pos_emb)
        ]

    def select(self, patterns: Sequence[str]) -> list[E]:
        """Entries named by ids and globs, each once, in the order of the files.

        Raises
        ------
        NotFoundError
            When a plain id is not there or a glob fits nothing.
        """
        wanted: set[str] = set()
        for pattern in patterns:
            if not is_glob(pattern):
                wanted.add(self[pattern].id)
                continue
            fitting = self.find(ids=pattern)
            if not fitting:
                raise NotFoundError(f"no id fits {pattern!r}", hint="see 'ckptkit list'")
            wanted.update(entry.id for entry in fitting)
        return [entry for key, entry in self._entries.items() if key in wanted]
