"""The state that global options set, and the options that several commands share."""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import typer

from ckptkit.base.errors import UsageError
from ckptkit.base.parse import parse_percent, parse_resolution, parse_side
from ckptkit.cli.completion import (
    complete_families,
    complete_ids,
    complete_metrics,
    complete_tasks,
    complete_variants,
)
from ckptkit.cli.help import described, usage
from ckptkit.cli.output import Output, pasteable, width_of

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import SourceRequest
    from ckptkit.cli.entries import Listed
    from ckptkit.registry.query import Registry
    from ckptkit.rules.mapping import RuleFile
    from ckptkit.workspace import Workspace


@dataclass
class State:
    """Global options of one run."""

    output: Output = field(default_factory=Output)
    offline: bool = False
    registries: tuple[Path, ...] = ()  # --registry: later overrides earlier; after CKPTKIT_REGISTRY's
    mirrors: tuple[str, ...] = ()  # --mirror FROM=TO rules, before CKPTKIT_MIRROR's
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
        """Copy standard input into a temporary file, which is there until the command ends."""
        from ckptkit.base.errors import UsageError
        from ckptkit.base.files import storage_error

        if self._spool is not None:
            raise UsageError("standard input can be read only once", hint="give '-' in one place")
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
        from ckptkit.families.base import registry_families
        from ckptkit.registry.loading import load_registry

        return load_registry(self.registries, registry_families)


def state_of(context: typer.Context) -> State:
    """Return the State of the running command."""
    return cast(State, context.find_root().obj)


def usage_of(context: Any) -> str:
    """A command's usage and its examples, for a line that names nothing to work on."""
    heading, *examples = (context.command.help or "").rpartition("\n\n")[2].split("\n")
    lines = [usage(context)]
    if heading == "Examples:":
        room = width_of(sys.stderr) if sys.stderr.isatty() else sys.maxsize
        shown = [line for each in examples for line in pasteable(each.strip(), room, "  ")]
        lines += ["", heading, *shown, ""]
    return "\n".join(lines)


class Form(str, Enum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class WhichWeights(str, Enum):
    """Which copy to take where a file holds both."""

    AUTO = "auto"
    EMA = "ema"
    RAW = "raw"


def one_of_these(
    named: Callable[[str], str], names: Sequence[str], param: str | None = None, **more: Any
) -> Any:
    """An option that takes one of several names, or another word for one of them."""
    return typer.Option(
        *([param] if param else []),
        parser=named,
        metavar=f"<{'|'.join(names)}>",
        autocompletion=lambda incomplete: [name for name in names if name.startswith(incomplete)],
        **more,
    )


def file_to_write(*names: str, **more: Any) -> Any:
    """An option that names one file to write: a slash at the end, which a path forgets, means a folder."""
    return typer.Option(*names, parser=_file, **more)


def _file(text: str) -> Path:
    if text.endswith(("/", os.sep)):
        raise UsageError(f"{text} is a folder", hint="name a file in it")
    return Path(text)


def _framework(text: str) -> str:
    from ckptkit.models import framework_named

    return framework_named(text)


WeightsOption = Annotated[
    WhichWeights,
    typer.Option(help="Copy to use if a file holds both; auto: the one the figures belong to, or ask."),
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
        help="Remove PREFIX from the front of every tensor's name; may be repeated, one after the other.",
    ),
]
FrameworkOption = Annotated[
    str, one_of_these(_framework, ("torch", "keras", "onnxruntime"), help="What runs the model.")
]
SyntheticOption = Annotated[
    bool,
    typer.Option("--synthetic", help="Random weights from a fixed recipe: no download, nothing learned."),
]
VariantOption = Annotated[
    str | None,
    typer.Option(help="Overrides what a file is recognised as.", autocompletion=complete_variants),
]
ResolutionOption = Annotated[
    str | None,
    typer.Option(metavar="SIDE|HxW", help="Input size in pixels; default the one of the checkpoint."),
]
SettingOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting that tensors do not show, such as attn_force_fp32=true; may be repeated.",
    ),
]


def parse_settings(texts: Sequence[str] | None) -> dict[str, Any]:
    """Read ``KEY=VALUE`` options; each value as the registry would take it.

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

    key, equals, value = text.partition("=")
    owners = {name: family for family in map(get_family, families()) for name in family.settings}
    if not equals:
        raise UsageError(f"--set {text!r} has no value", hint=f"write KEY=VALUE; keys: {', '.join(owners)}")
    key = one_of("setting", key, tuple(owners))
    family = owners[key]
    lower = value.strip().lower()
    is_switch = family.settings[key].is_switch
    try:
        if is_switch and lower in {"0", "1"}:
            return key, lower == "1"
        try:
            given = _WORDS[lower] if lower in _WORDS else json.loads(lower)
        except ValueError:
            given = lower  # a word, where the setting is one of several
        family.check_setting(key, given)
    except (ValueError, RecursionError, UsageError) as error:
        phrase = "yes or no (true, false, on, off, 1, 0)" if is_switch else family.settings[key].accepts
        raise UsageError(
            f"--set {text[:80]}: {key} cannot be {value!r}", hint=f"{key} takes {phrase}"
        ) from error
    return key, given


SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID|FILE",
        help="An id (fetched if needed), or a checkpoint file; with --synthetic also a variant.",
        autocompletion=complete_ids,
    ),
]


@dataclass(frozen=True)
class SourceOptions:
    """Which weights of what a command names, and how their model is built."""

    synthetic: SyntheticOption = False
    weights: WeightsOption = WhichWeights.AUTO
    state_dict: StateDictOption = None
    strip_prefix: StripPrefixOption = None
    variant: VariantOption = None
    resolution: ResolutionOption = None
    settings: SettingOptions = None

    def of(self, what: str) -> SourceRequest:
        """The request for an id, a file, or with ``--synthetic`` a variant."""
        from ckptkit.analysis.model_source import SourceRequest

        chosen = {
            **vars(self),
            "weights": self.weights.value,
            "resolution": parse_resolution(self.resolution),
            "settings": parse_settings(self.settings),
        }
        return SourceRequest(what, **chosen)


ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="K/N",
        help="Do the K-th of N parts, K from 1 to N, one in each process. Under torchrun convert takes "
        "RANK and WORLD_SIZE.",
    ),
]
PosEmbOption = Annotated[
    bool | None, typer.Option("--pos-emb/--no-pos-emb", help="With or without position embedding.")
]
_ABOUT_GLOB = "a glob, any case; may be repeated."

PatternsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATTERN…",
        help="Ids or globs on the id, such as 'moat*-384*'.",
        autocompletion=complete_ids,
    ),
]
_Globs = list[str] | None


def _count(at: str) -> Any:
    return typer.Option(metavar="COUNT", help=f"{at}, such as 30M, 5.7B or 30000000.")


@dataclass(frozen=True)
class EntryFilter:
    """The entries that meet every condition given."""

    family: Annotated[
        _Globs, typer.Option(help=f"Family: {_ABOUT_GLOB}", autocompletion=complete_families)
    ] = None
    variant: Annotated[
        _Globs, typer.Option(help=f"Architecture: {_ABOUT_GLOB}", autocompletion=complete_variants)
    ] = None
    task: Annotated[_Globs, typer.Option(help=f"Task: {_ABOUT_GLOB}", autocompletion=complete_tasks)] = None
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="With this published metric, such as box_mAP; may be repeated.",
            autocompletion=complete_metrics,
        ),
    ] = None
    setting: Annotated[_Globs, typer.Option(help=f"Training setting: {_ABOUT_GLOB}")] = None
    pretrain: Annotated[_Globs, typer.Option(help=f"Pretraining data: {_ABOUT_GLOB}")] = None
    min_params: Annotated[str | None, _count("At least")] = None
    max_params: Annotated[str | None, _count("At most")] = None
    min_flops: Annotated[str | None, _count("At least")] = None
    max_flops: Annotated[str | None, _count("At most")] = None
    min_top1: Annotated[
        float | None, typer.Option(parser=parse_percent, metavar="PERCENT", help="At least this top-1.")
    ] = None
    max_top1: Annotated[
        float | None, typer.Option(parser=parse_percent, metavar="PERCENT", help="At most this top-1.")
    ] = None
    resolution: Annotated[
        int | None,
        typer.Option(parser=parse_side, metavar="PIXELS", help="Trained or tested at this resolution."),
    ] = None
    pos_emb: PosEmbOption = None
    cached: Annotated[bool | None, typer.Option("--cached/--not-cached", help="Fetched already, or not.")] = (
        None
    )

    def of(self, catalogue: Registry, patterns: Sequence[str] | None) -> list[Listed]:
        """Choose from a registry; ``patterns`` are ids and globs on them, None for all."""
        from ckptkit.cli.entries import Listed
        from ckptkit.store.cache import Home

        conditions = {
            "pretrain_data" if name == "pretrain" else name: value
            for name, value in vars(self).items()
            if name != "cached"
        }
        found = catalogue.find(ids=_known(catalogue, patterns), **conditions)
        fetched = set(Home.default().fetched_ids())
        items = [Listed(row, row.id in fetched) for row in found]
        return [item for item in items if self.cached is None or item.cached is self.cached]


def _known(catalogue: Registry, patterns: Sequence[str] | None) -> Sequence[str] | None:
    """Patterns as they are, after refusing one that names nothing."""
    if patterns:
        catalogue.select(patterns)
    return patterns or None


_JSON = inspect.Parameter(
    "as_json",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--json", help="Print the result as JSON.")],
)


def with_shared_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--json``, and for a parameter that is a dataclass an option for each of its fields."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = parameter.annotation
        hints = get_type_hints(parameter.annotation, include_extras=True)
        parameters += [
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name]
            )
            for one in fields(parameter.annotation)
        ]
    parameters.append(_JSON)

    def run(**values: Any) -> None:
        output = state_of(values["context"]).output
        output.as_json |= values.pop("as_json")
        for name, group in groups.items():
            values[name] = group(**{one.name: values.pop(one.name) for one in fields(group)})
        with output.waiting():
            function(**values)

    run.__name__ = function.__name__
    parameters = [described(one) for one in parameters]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def rules_given(path: Path | None, *, reverse: bool) -> RuleFile | None:
    """The rules that ``--rules`` and ``--reverse`` name."""
    if path is None:
        if reverse:
            raise UsageError("--reverse requires --rules", hint="give --rules FILE too")
        return None
    from ckptkit.rules.file import load_rules

    return load_rules(path, reverse=reverse)
