"""PyTorch files put together by hand, so that tests can also build what torch.save would not.

Nothing here uses ckptkit's own encoders, and nothing imports torch.
"""

from __future__ import annotations

import io
import marshal
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
STORAGE = struct.pack("<2f", 1.5, -2.0)
"""What `TENSOR` refers to: two float32 under key "0"."""


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + raw


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"


def storage(key: str = "0", kind: str = "FloatStorage", count: int = 2, module: str = "torch") -> bytes:
    return b"(" + text("storage") + name(module, kind) + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(
    *,
    store: bytes | None = None,
    offset: int = 0,
    shape: tuple[int, ...] = (2,),
    strides: tuple[int, ...] = (1,),
) -> bytes:
    where = (store or storage()) + number(offset) + numbers(*shape) + numbers(*strides)
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + where + b"\x89}tR"


TENSOR = tensor()


def table(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def whole(fragment: bytes) -> bytes:
    """A pickle of the one value that a fragment leaves."""
    return b"\x80\x04" + fragment + b"."


def write_zip(
    path: Path,
    pickled: bytes,
    storages: Mapping[str, bytes] | None = None,
    records: Mapping[str, bytes] | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
    root: str = "archive",
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", pickled)
        for key, value in (records or {}).items():
            archive.writestr(f"{root}/{key}", value)
        for key, value in ({"0": STORAGE} if storages is None else storages).items():
            archive.writestr(f"{root}/data/{key}", value)
    return path


def legacy(
    pickled: bytes, storages: Mapping[str, tuple[int, bytes]] | None = None, *, little: bool = True
) -> bytes:
    """A stream as torch before 1.6 wrote it; storages are key -> (count, bytes)."""
    held = {"0": (2, STORAGE)} if storages is None else storages
    system = {
        "protocol_version": 1001,
        "little_endian": little,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    head = MAGIC + pickle.dumps(1001, 2) + pickle.dumps(system, 2) + pickled + pickle.dumps(list(held), 2)
    return head + b"".join(struct.pack("<q", count) + raw for count, raw in held.values())


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """The layout of torch before 0.1.10."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for key, value in members.items():
            info = tarfile.TarInfo(key)
            info.size, info.mtime = len(value), 1234567890.5  # the fraction makes a pax header
            archive.addfile(info, io.BytesIO(value))
    return path


def tar_members() -> dict[str, bytes]:
    """A transposed 3x2 float32 tensor (address 70) and a view of its storage (address 71)."""
    values = struct.pack("<6f", *range(6))
    float_storage, float_tensor = name("torch", "FloatStorage"), name("torch", "FloatTensor")
    storages = (
        pickle.dumps(1, 2)
        + whole(b"(" + number(50) + text("cpu") + float_storage + b"t")
        + struct.pack("<q", 6)
        + values
        + whole(b"](" + b"(" + number(51) + number(50) + number(2) + number(3) + b"te")
    )
    tensors = (
        pickle.dumps(2, 2)
        + whole(b"(" + number(70) + number(50) + float_tensor + b"t")
        + struct.pack("<i4x2q2qq", 2, 3, 2, 1, 3, 0)
        + whole(b"(" + number(71) + number(51) + float_tensor + b"t")
        + struct.pack("<i4x1q1qq", 1, 2, 1, 1)
    )
    body = whole(table(w=text("70") + b"Q", v=text("71") + b"Q"))
    return {"sys_info": pickle.dumps({}), "storages": storages, "tensors": tensors, "pickle": body}


# -- pickles that would do harm ------------------------------------------------------------------------------


def _reduced(function: str, argument: str) -> bytes:
    module, _, attribute = function.rpartition(".")
    return call(module, attribute, text(argument))


def hostile(canary: Path, module: str) -> dict[str, bytes]:
    """Fragments that create ``canary`` under Python's own unpickler (``module`` does so when imported)."""
    touch = f"touch {canary}"
    make = f"open({str(canary)!r}, 'w').close()"
    os_module = call("builtins", "__import__", text("os"))
    code = marshal.dumps(compile(make, "x", "exec"))
    inner = whole(_reduced("os.system", touch))
    raw = b"B" + struct.pack("<I", len(inner)) + inner
    system_args = b"(" + text(touch) + b"t"
    return {
        "os.system": _reduced("os.system", touch),
        "posix.system": _reduced("posix.system", touch),
        "eval": _reduced("builtins.eval", make),
        "exec": _reduced("builtins.exec", make),
        "python 2 eval": b"\x80\x02" + _reduced("__builtin__.eval", make),
        "subprocess list": call("subprocess", "check_call", b"](" + text("touch") + text(str(canary)) + b"e"),
        "INST": b"(" + text(touch) + b"ios\nsystem\n",
        "OBJ": b"(" + name("subprocess", "getoutput") + text(touch) + b"o",
        "INST of a class": b"(]("
        + text("touch")
        + text(str(canary))
        + b"eisubprocess\nPopen\n"
        + b"\x94"
        + b"0"
        + call("os", "wait"),
        "getattr": call("builtins", "getattr", os_module, text("system")) + system_args + b"R",
        "attrgetter": call("operator", "attrgetter", text("system"))
        + b"("
        + os_module
        + b"tR"
        + system_args
        + b"R",
        "methodcaller": call("operator", "methodcaller", text("system"), text(touch))
        + b"("
        + os_module
        + b"tR",
        "STACK_GLOBAL from memo": text("os")
        + b"q\x010"
        + text("system")
        + b"q\x020h\x01h\x02\x93"
        + system_args
        + b"R",
        "dotted STACK_GLOBAL": text("pathlib")
        + text("Path.touch")
        + b"\x93("
        + call("pathlib", "Path", text(str(canary)))
        + b"tR",
        "import of a module": name(module, "anything"),
        "partial with __setstate__": call("functools", "partial", name("builtins", "print"))
        + b"("
        + name("os", "system")
        + b"("
        + text(touch)
        + b"t}Ntb"
        + b")R",
        "map drained by list": call(
            "builtins", "list", call("builtins", "map", name("os", "system"), b"](" + text(touch) + b"e")
        ),
        "map drained by OrderedDict": call(
            "collections",
            "OrderedDict",
            call("builtins", "map", name("os", "system"), b"](" + text(touch) + b"e"),
        ),
        "reduce chain": call(
            "functools", "reduce", name("builtins", "getattr"), b"](" + os_module + text("system") + b"e"
        )
        + system_args
        + b"R",
        "pickle inside a pickle": call("pickle", "loads", raw),
        "code object": call(
            "types",
            "FunctionType",
            call("marshal", "loads", b"B" + struct.pack("<I", len(code)) + code),
            b"}",
        )
        + b")R",
        "NEWOBJ": name("subprocess", "Popen") + b")\x81" + b"0" + _reduced("os.system", touch),
        "NEWOBJ_EX": name("functools", "partial") + b"(" + name("os", "system") + text(touch) + b"t}\x92)R",
        "file opened": call("io", "open", text(str(canary)), text("w")),
        "memoised and called late": name("os", "system")
        + b"q\x090"
        + text(touch)
        + b"q\x080"
        + b"h\x09(h\x08tR",
        "protocol 0": f"cposix\nsystem\n(S{touch!r}\ntR".encode(),
        "dill-like chain": call(
            "builtins", "getattr", call("importlib", "import_module", text("os")), text("system")
        )
        + system_args
        + b"R",
    }


def refused() -> dict[str, bytes]:
    """Fragments that no checkpoint has and that must be refused, each for its own reason."""
    return {
        "EXT1": b"\x82\x01",
        "EXT2": b"\x83\x01\x00",
        "EXT4": b"\x84\x01\x00\x00\x00",
        "NEXT_BUFFER": b"\x97",
        "READONLY_BUFFER": b"\x97\x98",
        "unknown opcode": b"\xfe",
        "persistent id: text": text("storage") + b"Q",
        "persistent id: number": number(7) + b"Q",
        "persistent id: empty tuple": b")Q",
        "persistent id: short tuple": b"(" + text("storage") + b"tQ",
        "persistent id: line": b"Pevil\n",
        "persistent id: no storage": b"("
        + text("module")
        + name("os", "system")
        + text("0")
        + text("cpu")
        + number(2)
        + b"tQ",
        "persistent id: type of another module": storage(module="os", kind="system"),
        "persistent id: type is text": b"("
        + text("storage")
        + text("os")
        + text("0")
        + text("cpu")
        + number(2)
        + b"tQ",
        "persistent id: negative count": storage(count=-1),
        "persistent id: huge count": storage(count=1 << 63),
        "call of a text": text("os.system") + b"(" + text("x") + b"tR",
        "call of a number": number(3) + b")R",
        "call without tuple": name("os", "system") + text("x") + b"R",
        "global from numbers": number(1) + number(2) + b"\x93",
        "memo never set": b"h\x63",
        "pop of nothing": b"000000000000",
        "no mark": b"t" * 9,
        "mark as value": b"(\x85",
        "set items of a text": text("x") + b"(" + text("k") + text("v") + b"u",
        "append to a text": text("x") + text("v") + b"a",
        "odd number of items": b"}(" + text("k") + b"u",
        "list as key": b"}(]Nu",
        "nested tuple as key": b"}(" + b")\x85\x85" + b"Nu",
        "huge LONG4": b"\x8b" + struct.pack("<I", 1 << 30),
        "huge BINUNICODE8": b"\x8d" + struct.pack("<Q", 1 << 62),
        "huge BINBYTES8": b"\x8e" + struct.pack("<Q", 1 << 40),
        "huge BYTEARRAY8": b"\x96" + struct.pack("<Q", 1 << 40),
        "huge FRAME": b"\x95" + struct.pack("<Q", 1 << 40) + b"N",
        "long line": b"I" + b"9" * 100_000 + b"\n",
        "bad integer": b"Iabc\n",
        "bad float": b"Fabc\n",
        "bad utf-8": b"X\x02\x00\x00\x00\xff\xfe",
        "string without quotes": b"Sabc\n",
        "protocol 9": b"\x80\x09N",
    }
