"""What the global options said, and the options that several commands share."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ckptkit.base.parse import parse_resolution
from ckptkit.cli.completion import complete_families, complete_ids, complete_variants
from ckptkit.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptkit.analysis.model_source import ModelSource
    from ckptkit.cli.entry_table import Listed
    from ckptkit.registry import Registry
    from ckptkit.workspace import Workspace


@dataclass
class State:
    """Global options of one run.

    Parameters
    ----------
    output : Output
        The sink.
    offline : bool
        Never touch the network.
    registries : tuple of Path
        ``--registry`` files, later overrides earlier; come after ``CKPTKIT_REGISTRY``'s.
    mirrors : tuple of str
        ``--mirror FROM=TO`` rules, before ``CKPTKIT_MIRROR``'s.
    """

    output: Output = field(default_factory=Output)
    offline: bool = False
    registries: tuple[Path, ...] = ()
    mirrors: tuple[str, ...] = ()
    _spool: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False)

    def workspace(self) -> Workspace:
        """The registries, cache and network rules that the global options name."""
        from ckptkit.workspace import Workspace

        return Workspace(
            registries=self.registries,
            offline=self.offline,
            mirrors=self.mirrors,
            note=self.output.note,
            warn=self.output.warn,
            progress=self.output.progress,
            standard_input=self.spooled_input,
        )

    def spooled_input(self) -> Path:
        """Copy standard input into a temporary file, which is there until the command ends.

        Raises
        ------
        UsageError
            Standard input is a terminal, or was read before.
        StorageError
            The disk refuses.
        """
        from ckptkit.base.errors import UsageError, storage_error

        if self._spool is not None:
            raise UsageError("standard input can be read once only", hint="give '-' in one place")
        if sys.stdin.isatty():
            raise UsageError("standard input is a terminal", hint="send a file into it: … < FILE")
        self._spool = tempfile.TemporaryDirectory(prefix="ckptkit-stdin-")
        path = Path(self._spool.name, "stdin")
        self.output.call(path, "standard input")
        try:
            with path.open("wb") as file, self.output.progress("reading standard input", None) as advance:
                while piece := sys.stdin.buffer.read(1 << 20):
                    file.write(piece)
                    advance(len(piece))
        except OSError as error:
            raise storage_error(error, path.parent) from error
        return path

    def close(self) -> None:
        """Remove what stood for standard input."""
        if self._spool is not None:
            self._spool.cleanup()

    def registry(self) -> Registry:
        """Load the built-in registry with every overlay on top."""
        from ckptkit.families import registry_families
        from ckptkit.registry import load_registry

        return load_registry(self.registries, registry_families)


def state_of(context: typer.Context) -> State:
    """Return the State of the running command."""
    return cast(State, context.find_root().obj)


class WhichWeights(str, Enum):
    """Which copy to take where a file holds both."""

    AUTO = "auto"
    EMA = "ema"
    RAW = "raw"


def one_of_these(
    named: Callable[[str], str], names: Sequence[str], param: str | None = None, **more: Any
) -> Any:
    """An option that takes one of several names, or another word for one of them.

    Parameters
    ----------
    named : callable
        Gives the name that a word means; raises UsageError for any other.
    names : sequence of str
        Shown in the help, and offered to a shell.
    param : str, optional
        The option, where it is not called as its parameter.
    **more
        Of `typer.Option`.
    """
    return typer.Option(
        *([param] if param else []),
        parser=named,
        metavar=f"<{'|'.join(names)}>",
        autocompletion=lambda incomplete: [name for name in names if name.startswith(incomplete)],
        **more,
    )


def _framework(text: str) -> str:
    from ckptkit.models import framework_named

    return framework_named(text)


WeightsOption = Annotated[
    WhichWeights,
    typer.Option(help="Copy to take where a file holds both; auto: the one the figures belong to, or ask."),
]
StateDictOption = Annotated[
    str | None,
    typer.Option(
        "--state-dict",
        metavar="KEY[.KEY…]",
        help="Which state dict of a PyTorch file with several: its key, or the keys to it with dots between.",
    ),
]
StripPrefixOption = Annotated[
    list[str] | None,
    typer.Option(
        "--strip-prefix",
        metavar="PREFIX",
        help="Take PREFIX off the front of every tensor's name; may be repeated, one after the other.",
    ),
]
FrameworkOption = Annotated[
    str, one_of_these(_framework, ("torch", "keras", "onnxruntime"), help="What runs the model.")
]
SyntheticOption = Annotated[
    bool,
    typer.Option("--synthetic", help="Random weights by recipe: no download, no knowledge."),
]
VariantOption = Annotated[
    str | None,
    typer.Option(help="Overrides what a file is recognised as.", autocompletion=complete_variants),
]
ResolutionOption = Annotated[
    str | None,
    typer.Option(metavar="SIDE|HxW", help="Input size in pixels; default the one of the checkpoint."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

SettingOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting that no tensor tells, such as attn_force_fp32=true; may be repeated.",
    ),
]


def parse_settings(texts: Sequence[str] | None) -> dict[str, Any]:
    """Read ``KEY=VALUE`` options; each value as the registry would take it.

    Raises
    ------
    UsageError
        When there is no such setting, or the value is none of its values.

    Examples
    --------
    >>> parse_settings(["attn_force_fp32=yes", "window_size=14"])
    {'attn_force_fp32': True, 'window_size': 14}
    """
    return dict(_parse_setting(text) for text in texts or ())


_WORDS = {
    **dict.fromkeys(("yes", "true", "on"), True),
    **dict.fromkeys(("no", "false", "off"), False),
    **dict.fromkeys(("null", "none"), None),
}


def _parse_setting(text: str) -> tuple[str, Any]:
    import json

    from ckptkit.base.errors import UsageError, one_of
    from ckptkit.families.base import families, get_family
    from ckptkit.families.settings import takes

    key, equals, value = text.partition("=")
    owners = {name: family for family in map(get_family, families()) for name in family.setting_names}
    if not equals:
        raise UsageError(f"--set {text!r} has no value", hint=f"write KEY=VALUE; keys: {', '.join(owners)}")
    key = one_of("setting", key, tuple(owners))
    family = owners[key]
    lower = value.strip().lower()
    is_switch = family.settings.model_fields[key].annotation is bool
    try:
        if is_switch and lower in {"0", "1"}:
            return key, lower == "1"
        given = _WORDS[lower] if lower in _WORDS else json.loads(lower)
        family.check_setting(key, given)
    except (ValueError, RecursionError, UsageError) as error:
        phrase = "yes or no (true, false, on, off, 1, 0)" if is_switch else takes(family, key)
        raise UsageError(
            f"--set {text[:80]}: {key} cannot be {value!r}", hint=f"{key} takes {phrase}"
        ) from error
    return key, given


@contextmanager
def opened_source(
    workspace: Workspace,
    what: str,
    *,
    synthetic: bool = False,
    resolution: str | None = None,
    weights: WhichWeights = WhichWeights.AUTO,
    state_dict: str | None = None,
    strip_prefix: Sequence[str] | None = None,
    variant: str | None = None,
    settings: Sequence[str] | None = None,
) -> Iterator[ModelSource]:
    """Open what a command names, an id, a file or (synthetic) an id or a variant, to build models from it.

    Synthetic weights lie in a temporary folder, there while the block lasts.
    """
    from ckptkit.analysis.model_source import named_source

    with named_source(
        what,
        workspace,
        synthetic=synthetic,
        resolution=parse_resolution(resolution),
        weights=weights.value,
        state_dict=state_dict,
        strip_prefix=strip_prefix,
        variant=variant,
        settings=parse_settings(settings),
    ) as source:
        yield source


_ABOUT_GLOB = "a glob, any case; may be repeated."
_ABOUT_COUNT = "such as 30M, 5.7B or 30000000."

PatternsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATTERN…",
        help="Ids or globs on the id, such as 'moat*-384*'.",
        autocompletion=complete_ids,
    ),
]
FamilyOption = Annotated[
    list[str] | None, typer.Option(help=f"Family: {_ABOUT_GLOB}", autocompletion=complete_families)
]
VariantsOption = Annotated[
    list[str] | None, typer.Option(help=f"Architecture: {_ABOUT_GLOB}", autocompletion=complete_variants)
]
SettingOption = Annotated[list[str] | None, typer.Option(help=f"Training setting: {_ABOUT_GLOB}")]
PretrainOption = Annotated[list[str] | None, typer.Option(help=f"Pretraining data: {_ABOUT_GLOB}")]
AtLeastOption = Annotated[str | None, typer.Option(metavar="COUNT", help=f"At least, {_ABOUT_COUNT}")]
AtMostOption = Annotated[str | None, typer.Option(metavar="COUNT", help=f"At most, {_ABOUT_COUNT}")]
LeastTop1Option = Annotated[float | None, typer.Option(metavar="PERCENT", help="At least this top-1.")]
MostTop1Option = Annotated[float | None, typer.Option(metavar="PERCENT", help="At most this top-1.")]
PixelsOption = Annotated[
    int | None, typer.Option(metavar="PIXELS", help="Trained or tested at this resolution.")
]
PosEmbOption = Annotated[
    bool | None, typer.Option("--pos-emb/--no-pos-emb", help="With or without position embedding.")
]
CachedOption = Annotated[bool | None, typer.Option("--cached/--not-cached", help="Fetched already, or not.")]


def found_entries(
    catalogue: Registry, patterns: Sequence[str] | None, *, cached: bool | None, **conditions: Any
) -> list[Listed]:
    """Return the entries that meet every condition given.

    Parameters
    ----------
    catalogue : Registry
    patterns : sequence of str or None
        Ids and globs on them; None for all.
    cached : bool or None
        In the cache or not.
    **conditions
        As `Registry.find` takes them.

    Raises
    ------
    NotFoundError
        When a plain id is not there.
    """
    from ckptkit.cli.entry_table import Listed
    from ckptkit.store.cache import Home

    found = catalogue.find(ids=_known(catalogue, patterns), **conditions)
    fetched = set(Home.default().fetched_ids())
    items = [Listed(row, row.id in fetched) for row in found]
    return [item for item in items if cached is None or item.cached is cached]


def _known(catalogue: Registry, patterns: Sequence[str] | None) -> Sequence[str] | None:
    """Patterns as they are, after refusing a plain id that is not there."""
    from ckptkit.registry.query import is_glob

    for pattern in patterns or []:
        if not is_glob(pattern):
            catalogue[pattern]
    return patterns or None
