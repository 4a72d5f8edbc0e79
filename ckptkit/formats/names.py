"""What formats are called: their names, what people type for them, and how their files' names end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ckptkit.base.errors import UsageError, command, one_of
from ckptkit.base.home import user_path
from ckptkit.base.text import escaped
from ckptkit.formats.base import Format
from ckptkit.formats.builtin import BUILT_IN, WORDS, added, format_of, is_dcp

FORMATS = tuple(name for name, format in BUILT_IN.items() if not format.read_only)
"""The built-in formats that can be written."""

EXTENSIONS: Mapping[str, str] = {name: BUILT_IN[name].endings[0] for name in FORMATS}
"""What a converted file's name ends with."""

DEFAULT_FORMAT = FORMATS[0]

FOLDERS = tuple(name for name in FORMATS if BUILT_IN[name].folder)
"""Those whose checkpoints are folders."""

_PREFIXES = tuple(name for name in FORMATS if not BUILT_IN[name].one_file and name not in FOLDERS)
OUTPUT_HELP = "File ({files}), prefix for {prefixes}, folder for {folders}".format(
    files=", ".join(EXTENSIONS[name] for name in FORMATS if BUILT_IN[name].one_file),
    prefixes=", ".join(f"{name} ({EXTENSIONS[name]})" for name in _PREFIXES),
    folders=", ".join(f"{name} ({EXTENSIONS[name]})" for name in FOLDERS),
)
"""What ``--output`` takes, for its help."""

_INDEX = "the index of a checkpoint in shards, which --max-shard-size writes"
_GRAPHS = "a graph, which export writes"
_PACKED = "an archive, and conversions are not packed"
_NEVER: Mapping[str, tuple[str, str]] = {
    ".keras": ("a whole Keras model, and a checkpoint holds no more than weights", "keras"),
    ".weights.json": (_INDEX, "keras"),
    ".index": ("one file of a TensorFlow checkpoint, which goes by its prefix", "tf"),
    ".index.json": (_INDEX, DEFAULT_FORMAT),
    **dict.fromkeys((f"{ending}.index.json" for ending in BUILT_IN["torch"].endings), (_INDEX, "torch")),
    ".distcp": ("one file of a torch.distributed checkpoint, which goes by its folder", "dcp"),
    ".npy": ("a single array", "npz"),
    ".onnx": (_GRAPHS, ""),
    ".pb": (_GRAPHS, ""),
    ".gguf": ("a GGUF file, which ckptkit does not write", DEFAULT_FORMAT),
    ".tflite": ("a TFLite model, which ckptkit does not write", DEFAULT_FORMAT),
    ".mlmodel": ("a Core ML model, which ckptkit does not write", DEFAULT_FORMAT),
    ".mlpackage": ("a Core ML model, which ckptkit does not write", DEFAULT_FORMAT),
    ".msgpack": ("a Flax checkpoint, which ckptkit does not write", DEFAULT_FORMAT),
    ".pdparams": ("a Paddle checkpoint, which ckptkit does not write", DEFAULT_FORMAT),
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip"), (_PACKED, "")),
}
"""Endings that no conversion is written under: what they say the file is, and the format to take instead."""

_FIRM = ((_PACKED, ""), (_GRAPHS, ""))
"""No other package's format has these either."""

GRAPHS = {"onnx": "onnx", **dict.fromkeys(("saved-model", "saved_model", "savedmodel"), "saved-model")}
"""What is exported, not converted: each word for it, and the name of the target."""


def format_named(text: str, source: object = "FILE") -> str:
    """The format that a user names for what becomes of ``source``, by its own name or another one for it.

    Examples
    --------
    >>> format_named("torch"), format_named("pytorch"), format_named("NumPy")
    ('torch', 'torch', 'npz')
    """
    if text.lower() in GRAPHS:
        raise UsageError(
            f"{text} is a graph, not a checkpoint format",
            hint=command("export", source, "--to", GRAPHS[text.lower()]),
        )
    lower = text.lower()
    if WORDS.get(lower, lower) in FORMATS:
        return WORDS.get(lower, lower)
    others = {**BUILT_IN, **added()}
    names = [name for name, format in others.items() if not format.read_only]
    words = {word: name for name, format in others.items() for word in format.aliases}
    name = {**words, **WORDS}.get(lower, lower)
    if name in others and name not in names:
        raise UsageError(f"{name} files are read, not written: {others[name].read_only}")
    return one_of("format", text, names, {**words, **WORDS})


def format_to_write(to: str | None, output: str | Path | None, source: object = "FILE") -> str:
    """The format of a file to be written: as named, else as the ending of its name says.

    Examples
    --------
    >>> format_to_write(None, "m.PTH"), format_to_write("torch", "m.ckpt"), format_to_write("tf", "m.v2")
    ('torch', 'torch', 'tf')
    >>> format_to_write("npz", "m.pth")
    Traceback (most recent call last):
    ...
    ckptkit...UsageError: m.pth is the name of a torch file, not of npz; give -o m.npz, or --to torch
    """
    wanted = format_named(to, source) if to is not None else None
    if output is None:
        return wanted or DEFAULT_FORMAT
    name = Path(output).name
    found, ending = _by_ending(name)
    if found is None:
        _refuse_never(str(output), wanted, source)
        if wanted is None:
            raise UsageError(
                f"cannot tell the format from the name {str(output)!r}",
                hint=f"end it with {_listed()}, or give --to",
            )
        return wanted
    if wanted in (None, found) or ending in format_of(wanted).also_endings:
        return wanted or found
    raise UsageError(
        f"{output} is the name of {'an' if found == 'npz' else 'a'} {found} file, not of {wanted}",
        hint=f"give -o {_renamed(str(output), ending, wanted)}, or --to {found}",
    )


def file_ending(name: str) -> str:
    """The end of a name that makes it a checkpoint's or a graph's file; empty where there is none.

    Examples
    --------
    >>> file_ending("m.pth.tar"), file_ending("moat.v2")
    ('.pth.tar', '')
    """
    return _by_ending(name)[1] or _never(name)


def is_folder(output: str | Path, *, results: int = 1, to: str | None = None) -> bool:
    """Whether what a user gives for results is a folder: one that is there, or a name that ends with a slash.

    Of ``results`` that are several, a name without an ending is a folder too. One that is a folder itself,
    by the format that the user names, takes the name that is not there yet.
    """
    text = os.fspath(output)
    if not text:
        raise UsageError("--output is empty", hint="give a file or a folder/")
    slash = text.endswith(("/", os.sep))
    if "://" in text:
        return slash
    path = user_path(text)
    if results == 1 and _is_folder_itself(path, to):
        return False
    if path.is_dir():
        if not slash and _by_ending(path.name)[0] is not None:
            raise UsageError(f"{text} is a folder", hint=f"give -o {text}/ to write into it")
        return True
    if slash and path.exists():
        raise UsageError(f"{path} is a file, not a folder", hint="give another --output")
    return slash or (results > 1 and not path.exists() and not path.suffix)


def _is_folder_itself(path: Path, to: str | None) -> bool:
    """Whether a result, which is a folder, is to be the one of this name."""
    named = WORDS.get(to.lower(), to.lower()) if to else _by_ending(path.name)[0]
    if named not in FOLDERS:
        return False
    return not path.exists() or (path.is_dir() and (not any(path.iterdir()) or is_dcp(path)))


def without_ending(name: str) -> str:
    """A checkpoint's name without what tells its format, or how it is packed.

    Examples
    --------
    >>> without_ending("m.pth.tar"), without_ending("m.weights.h5"), without_ending("m.ckpt.index")
    ('m', 'm', 'm')
    """
    known = sorted((*(ending for ending, _ in _endings(name)), *_NEVER), key=len, reverse=True)
    for _ in range(2):  # m.ckpt.index
        lower = name.lower()
        ending = next((e for e in known if lower.endswith(e) and lower != e), "")
        name = name[: len(name) - len(ending)]
    return name


def _by_ending(name: str) -> tuple[str | None, str]:
    """The format that a name's ending says, and the ending; ``.pth.tar`` before ``.tar``."""
    fitting = [(ending, format) for ending, format in _endings(name) if name.lower().endswith(ending)]
    ending, format = max(fitting, key=lambda one: len(one[0]), default=("", None))
    return format, ending


def _endings(name: str) -> list[tuple[str, str]]:
    """Endings and what format each says; those of other packages too, where no built-in one fits the name."""
    known = _written(BUILT_IN)
    lower = name.lower()
    is_known = lower.endswith(tuple(ending for ending, _ in known)) or _NEVER.get(_never(lower)) in _FIRM
    return known if is_known or "." not in lower else known + _written(added())


def _written(formats: Mapping[str, Format]) -> list[tuple[str, str]]:
    return [
        (ending, name)
        for name, format in formats.items()
        if not format.read_only
        for ending in format.endings
    ]


def _never(name: str) -> str:
    lower = name.lower()
    return max((ending for ending in _NEVER if lower.endswith(ending)), key=len, default="")


def _refuse_never(output: str, wanted: str | None, source: object) -> None:
    ending = _never(output)
    if not ending:
        return
    what, instead = _NEVER[ending]
    better = wanted or instead or DEFAULT_FORMAT
    hint = f"give -o {_renamed(output, ending, better)}"
    if what == _INDEX:
        hint += " --max-shard-size 5GB"
    elif ending == ".keras":
        named = [escaped(str(word), "shell") for word in (source, output)]
        hint = (
            f"'ckptkit export {named[0]} --to keras -o {named[1]}' writes one; for the weights alone {hint}"
        )
    elif ending == ".onnx":
        hint = command("export", source, "--to", "onnx", "-o", output)
    raise UsageError(f"{output} is the name of {what}", hint=hint)


def _renamed(output: str, ending: str, format: str) -> str:
    """The same path with the ending of another format."""
    stem = output[: len(output) - len(ending)]
    for known in format_of(format).endings:  # m.safetensors.index.json, m.ckpt.index
        stem = stem[: len(stem) - len(known)] if stem.lower().endswith(known) else stem
    return stem + format_of(format).endings[0]


def _listed() -> str:
    *first, last = EXTENSIONS.values()
    return f"{', '.join(first)} or {last}"
