"""Choices that several commands offer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ckptkit.base.parse import parse_resolution
from ckptkit.cli.completion import complete_variants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptkit.analysis.model_source import ModelSource
    from ckptkit.workspace import Workspace


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

    from pydantic import TypeAdapter, ValidationError

    from ckptkit.base.errors import UsageError, one_of
    from ckptkit.families.base import families, get_family
    from ckptkit.registry.schema import Entry

    key, equals, value = text.partition("=")
    known = tuple(setting for family in families() for setting in get_family(family).setting_names)
    if not equals:
        raise UsageError(f"--set {text!r} has no value", hint=f"write KEY=VALUE; keys: {', '.join(known)}")
    key = one_of("setting", key, known)
    field = Entry.model_fields[key]
    kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    lower = value.strip().lower()
    is_switch = bool in get_args(field.annotation)
    try:
        if is_switch and lower in {"0", "1"}:
            return key, lower == "1"
        given = _WORDS[lower] if lower in _WORDS else json.loads(lower)
        return key, TypeAdapter(kind).validate_python(given, strict=True)
    except (ValueError, RecursionError, ValidationError) as error:
        takes = "yes or no (true, false, on, off, 1, 0)" if is_switch else "a whole number above 0, or none"
        raise UsageError(
            f"--set {text[:80]}: {key} cannot be {value!r}", hint=f"{key} takes {takes}"
        ) from error


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
