"""What the public functions share: the environment's settings, and messages that name arguments."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, Literal, TypeVar, cast

from ckptkit.base.bars import seen_progress
from ckptkit.base.errors import CkptkitError
from ckptkit.base.home import expanded
from ckptkit.base.progress import Progress
from ckptkit.base.text import library_logger
from ckptkit.workspace import Workspace

logger = library_logger()

Function = TypeVar("Function", bound=Callable[..., Any])

# Names that type checkers and editors know. Plug-ins add formats and layouts, so those are never all.
Dtype = Literal["float32", "float16", "bfloat16"]
ExportTarget = Literal["hf", "onnx", "saved-model", "keras", "backbone"]
CamMethod = Literal["gradcam", "hirescam", "gradcam++", "layercam", "eigencam", "ablationcam"]
BuiltInFormat = Literal["safetensors", "torch", "tf", "keras", "keras2", "npz", "dcp"]
BuiltInLayout = Literal[
    "torch", "keras", "keras-h5", "deeplab2", "openmixup", "kecam", "birder", "wd-tagger", "as-is"
]


def workspace_of_environment(progress: Progress = seen_progress, mirrors: Sequence[str] = ()) -> Workspace:
    """Registries, cache and network rules as ``CKPTKIT_…`` variables say; notes go to the logger."""
    if "://" in os.environ.get("CKPTKIT_REGISTRY", ""):
        from ckptkit.store.registries import local_registries

        local_registries((), mirrors=mirrors, notes=note, progress=progress)
    return Workspace(note=note, warn=warn, progress=progress, mirrors=mirrors)


def note(text: str) -> None:
    """Log what a user may want to see."""
    logger.info("%s", in_python(text))


def warn(text: str) -> None:
    """Log what a user must see."""
    logger.warning("%s", in_python(text))


def public(function: Function) -> Function:
    """Make a function of the Python face: its paths may begin with ``~``, its errors speak of arguments."""

    @wraps(function)
    def face(*args: Any, **options: Any) -> Any:
        given = map(expanded, args)
        named = {key: expanded(value) for key, value in options.items()}
        try:
            return function(*given, **named)
        except CkptkitError as error:
            as_argument = "settings" not in inspect.signature(function).parameters
            error.reword(partial(in_python, settings_are_arguments=as_argument))
            raise

    return cast(Function, face)


_ARGUMENTS = {
    "--output": "output",
    "-o": "output",
    "--set": "settings",
    "--no-head": "head=False",
    "--no-check": "check=False",
    "--no-pos-emb": "pos_emb=False",
    "--no-bn": "bn_statistics=False",
    "--with": "backend",
    "--mirror": "CKPTKIT_MIRROR",
    "--registry": "CKPTKIT_REGISTRY",
    **{
        f"--{name}": f"{name.replace('-', '_')}=True"
        for name in (
            *("force", "allow-missing-bn", "reverse", "synthetic", "deep", "fresh", "refresh", "amp"),
            *("features", "private", "push-synthetic", "both-gates"),
        )
    },
}
"""What options are called in Python, where it is not their own name."""

_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*[a-z]|--[xy]|-o)\b(?![-=])")
_SETTING = re.compile(r"--set (\w+)=(\w+)(?: or =(\w+))?")
_VALUE = re.compile(
    r" ([A-Z]{2,}\b|[\w./~:-]*[\w~][./:][\w./:-]*[\w/]|\d\w*|as-is|torch|tf|keras|npz|safetensors|onnxruntime"
    r"|float32|float16|bfloat16|ema|raw|hf|onnx|saved-model|backbone|cuda|cpu)(?![\w-])"
)
"""What follows an option as its value, and not as the sentence's next word."""


_VALUES = {
    "--class-order": re.compile(r" (text|number)"),
    "--strip-prefix": re.compile(r" ([\w.]+)"),
    "--state-dict": re.compile(r" ([\w.]*\w)"),
    "-o": re.compile(r" (\S+?)(?=[,;]?(?: |$))"),
}
"""Options whose values may be any word."""


def in_python(text: str, *, settings_are_arguments: bool = False) -> str:
    """Say with arguments what a sentence says with options.

    Commands in it are left as they are: they work where they are typed.

    Parameters
    ----------
    text : str
    settings_are_arguments : bool
        Whether each setting is an argument of its own, rather than all of them one dictionary.

    Examples
    --------
    >>> in_python("m.pth exists already; give --force to replace it, or another --output")
    'm.pth exists already; give force=True to replace it, or another output'
    >>> in_python("m.pth is the name of a torch file, not of npz; give -o m.npz, or --to torch")
    'm.pth is the name of a torch file, not of npz; give output="m.npz", or to="torch"'
    >>> in_python("give --set attn_force_fp32=true or =false")
    'give settings={"attn_force_fp32": True} or {"attn_force_fp32": False}'
    >>> in_python("give --set attn_force_fp32=true or =false", settings_are_arguments=True)
    'give attn_force_fp32=True or False'
    """
    setting = _as_argument if settings_are_arguments else _as_dictionary
    text = _SETTING.sub(setting, text)
    before, run, commands = text.partition("Run: ckptkit ")
    pieces = re.split(r"('ckptkit [^']*')", before)
    return (
        "".join(piece if piece.startswith("'ckptkit ") else _worded(piece) for piece in pieces)
        + run
        + commands
    )


def _worded(text: str) -> str:
    worded, end = [], 0
    for option in _OPTION.finditer(text):
        if option.start() < end:
            continue
        name = _ARGUMENTS.get(option[1], option[1].lstrip("-").replace("-", "_"))
        value = None if "=" in name else _VALUES.get(option[1], _VALUE).match(text, option.end())
        worded += [text[end : option.start()], f'{name}="{value[1]}"' if value else name]
        end = value.end() if value else option.end()
    return "".join([*worded, text[end:]])


def _values(found: re.Match[str]) -> list[str]:
    return [{"true": "True", "false": "False"}.get(value, value) for value in found.groups()[1:] if value]


def _as_argument(found: re.Match[str]) -> str:
    return f"{found[1]}={' or '.join(_values(found))}"


def _as_dictionary(found: re.Match[str]) -> str:
    return "settings=" + " or ".join(f'{{"{found[1]}": {value}}}' for value in _values(found))
