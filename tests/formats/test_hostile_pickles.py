"""Files made to do harm: each is read inertly or refused in one line; nothing runs, nothing fills up.

The tables of cases are in ``tests/support/hostile_files.py``, with the outcome each must have.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckptkit.base.budget import LIMITS, Limit
from ckptkit.base.errors import FormatError
from ckptkit.formats.base import Reader
from ckptkit.formats.detect import open_reader
from tests.support.commands import runner
from tests.support.hostile_archives import CONTAINERS
from tests.support.hostile_files import Hostile, bombs, malformed, programs, tensors
from tests.support.moganet_weights import recipe_state
from tests.support.running import REPOSITORY, finish, start
from tests.support.torch_files import (
    STORAGE,
    TENSOR,
    call,
    legacy,
    storage,
    table,
    tar_members,
    tensor,
    text,
    whole,
    write_tar,
    write_zip,
)

MODULE = "ckptkit_trap"
PROGRAMS = programs(Path("canary"), MODULE)
MALFORMED, BOMBS, TENSORS = malformed(), bombs(), tensors()


def write_legacy(path: Path, pickled: bytes) -> Path:
    path.write_bytes(legacy(pickled))
    return path


def write_old_tar(path: Path, pickled: bytes) -> Path:
    return write_tar(path, {**tar_members(), "pickle": pickled})


WRITERS: dict[str, Callable[[Path, bytes], Path]] = {
    "zip": write_zip,
    "legacy": write_legacy,
    "tar": write_old_tar,
}


def beside_weights(container: str, fragment: bytes) -> bytes:
    """A pickle of a good state dict and something else."""
    weights = text("70") + b"Q" if container == "tar" else TENSOR
    return whole(table(state_dict=table(w=weights), evil=fragment))


def outcome(case: Hostile, container: str) -> str:
    """The old tar layout knows storages by number: one described in words has no meaning there."""
    return "refused" if container == "tar" and text("storage") in case.fragment else case.outcome


def is_good(reader: Reader, container: str) -> bool:
    wanted = [[0, 3], [1, 4], [2, 5]] if container == "tar" else np.frombuffer(STORAGE, "<f4").tolist()
    return list(reader.specs) == ["w"] and reader.read("w").tolist() == wanted


def read(path: Path, container: str) -> str:
    """How reading ends; anything but success and a proper refusal escapes."""
    try:
        with open_reader(path) as reader:
            assert is_good(reader, container)
            extras = getattr(reader, "extras", {})
            assert "".join([*extras, *extras.values()]).replace("\n", "").isprintable()
    except FormatError as error:
        message = str(error)
        assert path.name in message
        assert message.isprintable()
        assert len(message) < 1500
        return "refused"
    return "inert"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that must not appear, and a module that makes it appear when imported."""
    canary = tmp_path / "canary"
    write_trap(tmp_path, canary)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return canary


def write_trap(folder: Path, canary: Path) -> None:
    code = f"open({str(canary)!r}, 'w').close()\nclass Thing: pass\nanything = 1\n"
    (folder / f"{MODULE}.py").write_text(code)


def test_there_are_enough_cases() -> None:
    assert len(PROGRAMS) >= 70
    assert sum(case.live for case in PROGRAMS.values()) >= 40


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("case", PROGRAMS)
def test_programs_do_not_run(case: str, container: str, trap: Path, tmp_path: Path) -> None:
    hostile = programs(trap, MODULE)[case]
    path = WRITERS[container](tmp_path / "m.pth", beside_weights(container, hostile.fragment))
    before = set(sys.modules)  # of what the fragments name, os and subprocess are there already
    assert read(path, container) == outcome(hostile, container)
    assert not trap.exists()
    assert MODULE not in sys.modules
    assert (set(sys.modules) - before) & _NAMED == set()


_NAMED = {"pandas", "pty", "pydoc", "runpy", "torch", "torch.hub", "webbrowser"}

LIVE = """
import contextlib, json, pickle, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
canary, ran = Path(sys.argv[1], "canary"), {}
for case, raw in json.loads(Path(sys.argv[1], "cases.json").read_text()).items():
    with contextlib.suppress(Exception):
        pickle.loads(bytes.fromhex(raw))
    ran[case] = canary.exists()
    canary.unlink(missing_ok=True)
    sys.modules.pop("ckptkit_trap", None)
print(json.dumps(ran))
"""


def test_the_programs_are_live(tmp_path: Path) -> None:
    """Python's own unpickler falls for each, so that nothing happening above means something."""
    write_trap(tmp_path, tmp_path / "canary")
    live = {case: h for case, h in programs(tmp_path / "canary", MODULE).items() if h.live}
    raw = {case: whole(hostile.fragment).hex() for case, hostile in live.items()}
    (tmp_path / "cases.json").write_text(json.dumps(raw))
    child = subprocess.run(
        [sys.executable, "-c", LIVE, tmp_path], capture_output=True, text=True, check=True, timeout=60
    )
    ran = json.loads(child.stdout.splitlines()[-1])
    assert [case for case, happened in ran.items() if not happened] == []
    assert len(ran) == len(live)


@pytest.mark.parametrize(
    ("case", "container"),
    [
        (case, container)
        for case, hostile in MALFORMED.items()
        for container in WRITERS
        if container != "tar" or b"tQ" not in hostile.fragment  # a tuple has a meaning of its own there
    ],
)
def test_malformed_pickles_are_refused(case: str, container: str, tmp_path: Path) -> None:
    pickled = beside_weights(container, MALFORMED[case].fragment)
    assert read(WRITERS[container](tmp_path / "m.pth", pickled), container) == "refused"


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("case", TENSORS)
def test_tensors_outside_their_storage_are_refused(case: str, container: str, tmp_path: Path) -> None:
    pickled = whole(table(state_dict=table(v=TENSOR, w=TENSORS[case].fragment)))
    assert read(WRITERS[container](tmp_path / "m.pth", pickled), container) == "refused"


def test_an_empty_tensor_of_endless_axes_is_refused(tmp_path: Path) -> None:
    """It needs no bytes, and still numpy cannot make it."""
    pickled = whole(table(w=tensor(shape=(0, 1 << 61, 1 << 61), strides=(1, 1, 1))))
    with pytest.raises(FormatError, match=r"m\.pth: an empty tensor of shape"):
        open_reader(write_zip(tmp_path / "m.pth", pickled)).read("w")


HALF = b'{"a": "\\ud800"}'
"""Half of a surrogate pair: JSON can spell it, and no terminal or file takes it as text."""


def test_metadata_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.pth", whole(table(w=TENSOR)), records={"ckptkit.json": HALF})
    with pytest.raises(FormatError, match=r"m\.pth: ckptkit's metadata is not valid JSON"):
        open_reader(path)
    raw = b'{"__metadata__": ' + HALF + b"}"
    (tmp_path / "m.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    with pytest.raises(FormatError, match=r"m\.safetensors: bad JSON"):
        open_reader(tmp_path / "m.safetensors")


def test_names_that_are_no_text_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pickle can hold half a surrogate pair, as Python does for file names of another encoding."""
    name = b"X\x04\x00\x00\x00n\xed\xa0\x80"
    path = write_zip(tmp_path / "m.pth", whole(b"}(" + name + TENSOR + b"u"))
    ran = runner(capsys)("inspect", path, "--json")
    assert [tensor["name"] for tensor in json.loads(ran.out)["tensors"]] == ["n\\ud800"]


def test_values_that_are_no_tensors_are_noted_in_few_words(tmp_path: Path) -> None:
    numbers = b"".join(text(f"k{k}") + b"K\x01" for k in range(5000))
    path = write_zip(tmp_path / "m.pth", whole(b"}(" + text("w") + TENSOR + numbers + b"u"))
    with open_reader(path) as reader:
        assert len(reader.notes) == 21
        assert reader.notes[-1] == "4,980 more values are not tensors: skipped"


# -- time and memory -----------------------------------------------------------------------------------------

LIMITED = """
import json, resource, sys, time
from pathlib import Path

import numpy
from ckptkit.base.errors import FormatError
from ckptkit.formats.detect import open_reader
from ckptkit.formats.torch_reader import TorchReader

spare = 512 << 20
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + spare, held + spare))
for path in sys.argv[1:]:
    started = time.process_time()
    try:
        with open_reader(path) as reader:
            shapes = [reader.read(name).shape for name in reader.specs]
            said = sum(map(len, reader.extras.values())) + sum(map(len, reader.notes))
            found = "inert" if said < 3_000_000 else "much too long"
    except FormatError as error:
        found = "refused" if len(str(error)) < 1500 else "much too long"
    except BaseException as error:
        found = repr(error)
    print(json.dumps([path, found, time.process_time() - started]), flush=True)
"""

SECONDS = 5
"""On the machine the tests were written on the slowest case takes 1.2 s."""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux counts it")
@pytest.mark.parametrize("container", WRITERS)
def test_bombs_stay_small_and_short(container: str, tmp_path: Path) -> None:
    """All in one process that may use 512 MB more than it starts with."""
    cases = BOMBS if container == "zip" else {case: BOMBS[case] for case in _FEW_BOMBS}
    paths = {}
    for number, (case, hostile) in enumerate(cases.items()):
        pickled = beside_weights(container, hostile.fragment)
        paths[str(WRITERS[container](tmp_path / f"{number}.pth", pickled))] = case
    child = subprocess.run(
        [sys.executable, "-c", LIMITED, *paths],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,  # what it says is compared
    )
    reports = [json.loads(line) for line in child.stdout.splitlines()]
    assert {paths[path]: found for path, found, _ in reports} == {
        case: outcome(hostile, container) for case, hostile in cases.items()
    }, child.stderr
    assert {paths[path]: seconds for path, _, seconds in reports if seconds > SECONDS} == {}


_FEW_BOMBS = (
    "billion laughs as an argument",
    "calls of calls",
    "long names of globals",
    "millions of objects",
)


def test_all_pickles_of_a_file_share_one_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A legacy file is four pickles and the old tar layout any number: each alone may be small enough."""
    monkeypatch.setitem(LIMITS, "steps", Limit("steps", 3000, 0, 3000))
    idle = b"N0" * 1000
    path = tmp_path / "m.pth"
    path.write_bytes(legacy(whole(idle + table(w=TENSOR))))
    assert open_reader(path).read("w").shape == (2,)
    listed = whole(idle + b"]" + text("0") + b"a")
    path.write_bytes(
        legacy(whole(idle + table(w=TENSOR))).replace(b"\x80\x02]q\x00X\x01\x00\x00\x000q\x01a.", listed)
    )
    with pytest.raises(FormatError, match="more than 3,000 steps"):
        open_reader(path)


# -- what is said of it --------------------------------------------------------------------------------------

RUNS = {
    "os.system": "os.system",
    "posix.system": "os.system",
    "subprocess list": "subprocess.check_call",
    "nt.system": "os.system",
    "python 2 eval": "builtins.eval",
    "runpy": "runpy.run_path",
    "pty": "pty.spawn",
    "webbrowser": "webbrowser.open",
    "torch.hub.load": "torch.hub.load",
    "eval": "builtins.eval",
    "compile and exec": "builtins.compile and builtins.exec",
    "importlib": "importlib.import_module",
    "__import__": "builtins.__import__",
    "pydoc.locate": "pydoc.locate",
    "partial": "os.system",
    "__reduce__ by Python": "subprocess.getoutput",
    "__reduce__ by Python, protocol 0": "subprocess.getoutput",
    "torch.load's own way in": "pickle.Unpickler and subprocess.getoutput",
    "attrgetter of globals": "operator.attrgetter, builtins.__import__ and 1 more",
    "key of a dictionary": "subprocess.getoutput",
}
"""What some of the programs would run, as it is named."""


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("case", RUNS)
def test_a_pickle_that_would_run_code_is_called_that(case: str, container: str, tmp_path: Path) -> None:
    fragment = PROGRAMS[case].fragment
    runs = f"is a pickle that would run {RUNS[case]} when loaded by torch.load; ckptkit does not run it"
    with open_reader(
        WRITERS[container](tmp_path / "with.pth", beside_weights(container, fragment))
    ) as reader:
        assert reader.notes[0] == f"this {runs}"
    alone = whole(table(state_dict=table(w=fragment)))
    for pickled in (alone, whole(fragment)):
        path = WRITERS[container](tmp_path / "alone.pth", pickled)
        with pytest.raises(FormatError) as caught:
            open_reader(path)
        assert str(caught.value) == f"{path} {runs}"


_OF_THEIR_OWN = {
    "import of a module",
    "class with a side effect",
    "BUILD with __setstate__",
    "_reconstructor",
}
"""Programs of a module that nobody knows: nothing in the pickle tells them from a harmless class."""


def test_every_known_way_to_run_code_is_noted(tmp_path: Path) -> None:
    unnoted = set()
    for case, hostile in PROGRAMS.items():
        path = write_zip(tmp_path / "m.pth", beside_weights("zip", hostile.fragment))
        if hostile.live and hostile.outcome == "inert":
            with open_reader(path) as reader:
                unnoted |= set() if any("that would run" in note for note in reader.notes) else {case}
    assert unnoted == _OF_THEIR_OWN


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_that_would_run_code(protocol: int, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, ("echo pwned",)

    for name, value in {"root": Evil(), "table": {"model": {"w": Evil()}}, "list": [Evil()]}.items():
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(FormatError) as caught:
            open_reader(path)
        runs = "is a pickle that would run os.system when loaded by pickle.load; ckptkit does not run it"
        assert str(caught.value) == f"{path} {runs}"


def test_a_pickle_that_would_call_somebodys_function(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.pth", whole(table(state_dict=table(w=call("helpers.net", "download")))))
    with pytest.raises(
        FormatError, match=r"would call helpers\.net\.download when loaded by torch\.load; ckptkit d"
    ):
        open_reader(path)
    model = write_zip(tmp_path / "m.pth", whole(call("my.package", "Model")))
    with pytest.raises(FormatError, match=r"is a whole pickled object \(my\.package\.Model"):
        open_reader(model)


def test_texts_that_begin_like_old_pickles_are_texts(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\nmouse\n")
    with pytest.raises(FormatError, match="is a text file that begins with 'cat dog mouse'"):
        open_reader(tmp_path / "labels.txt")


# -- containers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CONTAINERS)
def test_tricks_of_containers(case: str, tmp_path: Path) -> None:
    """Two readers must never find two different things in one file; nothing is ever unpacked to a name."""
    path = tmp_path / "inner" / "m.pth"
    path.parent.mkdir()
    CONTAINERS[case](path)
    assert read(path, "zip") == ("inert" if case == "pickle in two folders" else "refused")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["m.pth"]


# -- the command line ----------------------------------------------------------------------------------------

_AT_THE_COMMAND_LINE = ("os.system", "class with a side effect", "map drained by list", "codecs bomb")


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("case", _AT_THE_COMMAND_LINE)
def test_inspect(case: str, container: str, trap: Path, tmp_path: Path) -> None:
    hostile = programs(trap, MODULE)[case]
    path = WRITERS[container](tmp_path / "m.pth", beside_weights(container, hostile.fragment))
    code, out, err = finish(
        start(["inspect", path], tmp_path / "home", f"import sys; sys.path[:0] = [{str(tmp_path)!r}]")
    )
    assert not trap.exists()
    if outcome(hostile, container) == "inert":
        runs = "this is a pickle that would run os.system when loaded by torch.load; ckptkit does not run it"
        assert (code, err) == (0, f"note: {runs}\n" if case == "os.system" else "")
        assert "also holds  evil: " in out
    else:
        assert (code, out, err.count("\n")) == (5, "", 1)
        assert err.startswith(f"error: {path}")


@pytest.mark.parametrize("case", TENSORS)
def test_refusals_are_one_plain_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_zip(tmp_path / "m.pth", whole(table(w=TENSORS[case].fragment)))
    ran = runner(capsys)("inspect", path)
    assert (ran.code, ran.out) == (5, "")
    assert ran.err.removesuffix("\n").isprintable()
    assert re.match(rf"error: {re.escape(str(path))}(: | is | holds )", ran.err), ran.err


def _by_hand(name: str, key: int, array: np.ndarray) -> bytes:
    kind = {"float32": "FloatStorage", "int64": "LongStorage"}[array.dtype.name]
    strides = tuple(step // array.itemsize for step in array.strides)
    where = storage(key=str(key), kind=kind, count=array.size)
    return text(name) + tensor(store=where, shape=array.shape, strides=strides)


@pytest.mark.parametrize("case", ["__reduce__ by Python", "map drained by list"])
def test_convert(case: str, trap: Path, tmp_path: Path) -> None:
    """Real weights with company: all of them arrive, or nothing is written; nothing runs either way."""
    state = recipe_state("moganet-xt")
    weights = b"}(" + b"".join(_by_hand(n, k, a) for k, (n, a) in enumerate(state.items())) + b"u"
    hostile = programs(trap, MODULE)[case]
    path = write_zip(
        tmp_path / "m.pth",
        whole(table(evil=hostile.fragment, state_dict=weights)),
        {str(k): array.tobytes() for k, array in enumerate(state.values())},
    )
    target = tmp_path / "m.safetensors"
    command = ["convert", path, "--to", "safetensors", "--output", target]
    code, _, err = finish(
        start(command, tmp_path / "home", f"import sys; sys.path[:0] = [{str(tmp_path)!r}]")
    )
    assert not trap.exists()
    if hostile.outcome == "refused":
        assert (code, target.exists()) == (5, False)
        assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
        return
    assert code == 0, err
    with open_reader(target) as reader:
        assert set(reader.specs) == set(state)
        assert all(reader.read(name).tobytes() == array.tobytes() for name, array in state.items())
