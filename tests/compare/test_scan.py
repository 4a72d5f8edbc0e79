"""``inspect --security``: planted files of each kind are found, sound ones are not, and nothing runs."""

from __future__ import annotations

import base64
import collections
import gzip
import io
import json
import os
import pickle
import random
import re
import stat
import tarfile
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckptkit.base.text import json_text
from ckptkit.compare.scan import scan_path
from ckptkit.compare.security import RULES, SecurityReport, sarif
from ckptkit.formats.pickle_names import builds_a_value, what_it_does
from ckptkit.formats.torch_pickle import UNDERSTOOD
from tests.formats.test_hostile_pickles import PROGRAMS, WRITERS, beside_weights
from tests.support.commands import runner
from tests.support.hostile_files import bombs, malformed
from tests.support.torch_files import TENSOR, legacy, table, tar_members, whole, write_tar, write_zip


class Reduced:
    """Pickles as a call of something, whatever it is."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


SYSTEM = Reduced(os.system, "echo pwned")


def found(report: SecurityReport) -> dict[str, str]:
    """The severity of each name."""
    return {one.what: one.severity for one in report.findings}


def scanned(path: Path, raw: bytes) -> SecurityReport:
    path.write_bytes(raw)
    return scan_path(path)


def npy_of_objects(value: Any) -> bytes:
    raw = io.BytesIO()
    np.save(raw, np.array([value, None], object))
    return raw.getvalue()


def tar_of(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=mode) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def zip_of(method: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), content)
    return raw.getvalue()


# -- pickles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("case", PROGRAMS)
def test_no_program_passes(case: str, container: str, tmp_path: Path) -> None:
    path = WRITERS[container](tmp_path / "m.pth", beside_weights(container, PROGRAMS[case].fragment))
    assert PROGRAMS[case].live <= (not scan_path(path).ok)


@pytest.mark.parametrize("container", WRITERS)
def test_a_good_checkpoint_is_harmless(container: str, tmp_path: Path) -> None:
    if container == "tar":
        path = write_tar(tmp_path / "m.pth", tar_members())
    else:
        path = WRITERS[container](tmp_path / "m.pth", whole(table(state_dict=table(w=TENSOR))))
    report = scan_path(path)
    assert report.ok, report
    assert "pickle" in report.scanned


DANGEROUS = {
    "os.system": SYSTEM,
    "eval": Reduced(eval, "1"),
    "exec": Reduced(exec, "pass"),
    "getattr chain": Reduced(getattr, Reduced(__import__, "os"), "system"),
    "open": Reduced(open, "/dev/null"),
    "in a table": {"model": {"w": [SYSTEM]}},
    "as default factory": collections.defaultdict(os.system),
    "nested pickle": {"b": pickle.dumps(SYSTEM), "n": 1},
    "nested twice": pickle.dumps({"b": pickle.dumps(SYSTEM)}),
    "nested pickle, protocol 0": pickle.dumps(SYSTEM, 0),
    "nested zip": zip_of(a__data_pkl=pickle.dumps(SYSTEM)),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("case", DANGEROUS)
def test_a_dangerous_call_in_any_protocol(case: str, protocol: int, tmp_path: Path) -> None:
    raw = pickle.dumps(DANGEROUS[case], protocol)
    report = scanned(tmp_path / "m.pkl", raw)
    assert report.verdict == "dangerous", report
    (first, *_) = report.findings
    assert (first.severity, first.rule) == ("dangerous", "pickle-name")


RAW = {
    "protocol 0": (b"cos\nsystem\n(S'id'\ntR.", 0),
    "INST": (b"(S'id'\nios\nsystem\n.", 7),
    "OBJ": (b"(cos\nsystem\nU\x02ido.", 1),
    "memoized texts": (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93\x8c\x02id\x85R.", 21),
    "escaped name": (b"(S'o\\x73'\nS'sys\\164em'\n\x93S'id'\n\x85R.", 23),
    "truncated after the call": (b"\x80\x04cos\nsystem\nU\x02id\x85R", 2),
    "unknown opcode after it": (b"\x80\x04cos\nsystem\nU\x02id\x85R\xff.", 2),
    "marks popped": (b"\x80\x02(((0K\x010cos\nsystem\nU\x02id\x85R.", 9),
    "second pickle": (b"\x80\x02N.\x80\x02cos\nsystem\n.", 6),
    "import alone": (b"\x80\x02csubprocess\nPopen\n.", 2),
    "through a harmless module": (b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.system\x93.", 34),
    "index with a sign": (b"S'os'\np+1\n0g 1\nS'system'\n\x93.", 25),
    "index with zeros": (b"S'os'\np0000000000000000000000001\n0g1\nS'system'\n\x93.", 47),
    "second pickle of an old protocol": (b"N.cos\nsystem\n(S'id'\ntR.", 2),
    "second pickle without its mark": (b"\x80\x04N.\x8c\x02os\x8c\x06system\x93.", 16),
    "behind a part that cannot be followed": (b"\x80\x02N\xff\xff0cos\nsystem\n.", 5),
    "a set of one's own": (b"\x80\x04\x8f(cos\nsystem\nU\x02id\x85R\x90.", 4),
}


@pytest.mark.parametrize("case", RAW)
def test_what_no_pickler_writes(case: str, tmp_path: Path) -> None:
    raw, offset = RAW[case]
    report = scanned(tmp_path / "m.pkl", raw)
    assert report.verdict == "dangerous", report
    assert report.findings[0].offset == offset, report
    assert raw[offset : offset + 1] in (b"c", b"i", b"\x93", b"0")


SUSPICIOUS = {
    "a class of other code": b"\x80\x02cmy.package\nModel\n)\x81}b.",
    "a function of other code": b"\x80\x02cmy.package\nmake\n)R.",
    "a computed name": b"\x80\x04cmy\na\n)R\x8c\x01x\x93.",
    "the extension registry": b"\x80\x02\x82\x01)R.",
    "a change of what is imported": b"\x80\x02ctorch.nn.modules.linear\nLinear\n}U\x01xK\x01sb.",
    "unknown opcode": b"\x80\x02}\xff.",
    "cut short": b"\x80\x02}q\x00(X\x05\x00\x00\x00epo",
    "no stop": b"\x80\x02}",
}


@pytest.mark.parametrize("case", SUSPICIOUS)
def test_what_cannot_be_told_is_suspicious(case: str, tmp_path: Path) -> None:
    assert scanned(tmp_path / "m.pkl", SUSPICIOUS[case]).verdict == "suspicious"


def test_loading_and_scanning_agree_on_names() -> None:
    assert not {name for name in UNDERSTOOD if what_it_does(name) is not None}
    assert builds_a_value("torch.nn.modules.linear.Linear")
    assert builds_a_value("torch.BFloat16Storage")
    assert not builds_a_value("torch.nn.modules.linear.Linear.forward")
    assert not builds_a_value("torch.hub.load")


def test_modules_of_torch_are_harmless_and_those_of_others_are_not(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.pth"
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)), path)
    assert scan_path(path).ok
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    torch.save({"optimizer": optimizer.state_dict(), "dtype": torch.float16, "size": torch.Size([1])}, path)
    assert scan_path(path).ok
    own = type("Own", (torch.nn.Module,), {"__module__": __name__})
    globals()["Own"] = own
    torch.save(own(), path)
    assert found(scan_path(path))[f"{__name__}.Own"] == "suspicious"
    path.write_bytes(pickle.dumps({"w": torch.ones(3)}))
    report = scan_path(path)
    assert report.ok, report
    assert report.scanned["pickle"] > 1  # of the tensor as well


# -- containers ----------------------------------------------------------------------------------------------


EVIL = pickle.dumps(SYSTEM)
JOBLIB = b"\x80\x04cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}b"
OBJECTS = ("'O'", "'O8'", "'object'", "'(2,)O'", "'i4,O'", "'\\x7cO'", "[('a', '<i4'), ('b', 'O')]")
"""Types of elements that numpy reads as pickled ones."""


def npy_header(descr: str) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}\n".encode()
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text


def patched(at: int, value: int) -> bytes:
    """An archive whose first member's own header has another value."""
    raw = bytearray(zip_of(a__data_pkl=EVIL))
    raw[at : at + 2] = value.to_bytes(2, "little")
    return bytes(raw)


DAMAGED = bytearray(zip_of(a__data_pkl=EVIL))
DAMAGED[DAMAGED.rindex(b"PK\5\6") + 10] ^= 3
HELD = {
    "npy": ("a.npy", npy_of_objects(SYSTEM)),
    "npz": ("a.npz", zip_of(**{"a.npy": npy_of_objects(SYSTEM)})),
    "compressed npz": ("a.npz", zip_of(zipfile.ZIP_DEFLATED, **{"a.npy": npy_of_objects(SYSTEM)})),
    "any member of a zip": ("a.zip", zip_of(weights=EVIL)),
    "pdparams": ("a.pdparams", EVIL),
    "gzip": ("a.pkl.gz", gzip.compress(EVIL)),
    "tar": ("a.tar", tar_of((tarfile.TarInfo("m/data.pkl"), EVIL))),
    "tar.gz": ("a.tar.gz", tar_of((tarfile.TarInfo("m/data.pkl"), EVIL), mode="w:gz")),
    **{
        f"zip by method {method}": ("a.pth", zip_of(method, a__data_pkl=EVIL))
        for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    },
    "zip whose member has another method": ("a.pth", patched(8, 8)),
    "zip whose member has another size": ("a.pth", patched(18, 3)),
    "zip whose member is called encrypted": ("a.pth", patched(6, 1)),
    "storage that is a pickle": ("a.pth", zip_of(a__data_pkl=pickle.dumps(1), a__data__0=EVIL)),
    **{f"npy of {descr}": ("a.npy", npy_header(descr) + EVIL) for descr in OBJECTS},
    "npy with a long header": ("a.npy", npy_header("'|O'" + " " * 9000) + EVIL),
    "array of joblib before it": (
        "a.joblib",
        JOBLIB + bytes(range(11, 251)) + b"\x8c\x05posix\x94\x8c\x06system\x94\x93.",
    ),
    "bytes that are loaded, whatever they are": (
        "a.pkl",
        b"\x80\x03ctorch.storage\n_load_from_bytes\nC\x10]0cos\nsystem\n0N.\x85R.",
    ),
    "zip in a tar": ("a.tar", tar_of((tarfile.TarInfo("m.pth"), zip_of(a__data_pkl=EVIL)))),
    "damaged zip": ("a.pth", bytes(DAMAGED)),
    "zip with bytes before": ("a.pth", b"PK\0\0" + zip_of(a__data_pkl=EVIL)),
    "legacy storages": ("a.pth", legacy(whole(table(w=TENSOR, e=PROGRAMS["os.system"].fragment)))),
    "records of the first format": ("a.tar", b""),
}


@pytest.mark.parametrize("case", HELD)
def test_pickles_are_found_wherever_they_are(case: str, tmp_path: Path) -> None:
    name, raw = HELD[case]
    path = tmp_path / name
    if raw:
        path.write_bytes(raw)
    else:
        members = tar_members()
        key = members["tensors"].index(b"c")
        members["tensors"] = members["tensors"][:key] + b"cos\nsystem\n0" + members["tensors"][key:]
        write_tar(path, members)
    report = scan_path(path)
    assert report.verdict == "dangerous", report


def test_a_folder_is_scanned_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "evil.pkl").write_bytes(EVIL)
    (tmp_path / "good.pkl").write_bytes(pickle.dumps({"a": 1}))
    os.mkfifo(tmp_path / "pipe")
    report = scan_path(tmp_path)
    assert [one.place for one in report.findings] == ["sub/evil.pkl"]
    assert report.scanned == {"pickle": 2}


def member(name: str, link: str | None = None, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    if link is not None:
        info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("info", "severity"),
    [
        (member("/etc/cron.d/x"), "dangerous"),
        (member("a/../../x"), "dangerous"),
        (member("a", "/etc/passwd"), "dangerous"),
        (member("a", "../../x", tarfile.LNKTYPE), "dangerous"),
        (member("a", "b"), "suspicious"),
        (member("a", "", tarfile.FIFOTYPE), "suspicious"),
        (member("a/b"), "harmless"),
    ],
    ids=["absolute", "up", "link to absolute", "link up", "link", "pipe", "good"],
)
def test_paths_and_links_of_a_tar(info: tarfile.TarInfo, severity: str, tmp_path: Path) -> None:
    last = (tarfile.TarInfo("last.pkl"), EVIL if severity == "suspicious" else pickle.dumps(1))
    report = scanned(tmp_path / "a.tar", tar_of((info, b""), last))
    assert found(report).get(info.name, "harmless") == severity
    assert ("posix.system" in found(report)) == (severity == "suspicious")  # what follows is looked at


def test_paths_and_links_of_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../up", b"1")
        archive.writestr("/top", b"1")
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("good", b"1")
    assert found(scan_path(path)) == dict.fromkeys(("../up", "/top", "link"), "dangerous")


# -- Keras, HDF5, ONNX ---------------------------------------------------------------------------------------

CODE = base64.b64encode(b"\xe3marshalled").decode()
LAMBDA_3 = {"class_name": "__lambda__", "config": {"code": CODE, "defaults": None, "closure": None}}
LAYERS = {
    "Lambda of Keras 3": (
        {"module": "keras.layers", "class_name": "Lambda", "config": {"function": LAMBDA_3}},
        2,
    ),
    "Lambda of Keras 2": (
        {"class_name": "Lambda", "config": {"function_type": "lambda", "function": [CODE, None, None]}},
        2,
    ),
    "Lambda of a name": ({"class_name": "Lambda", "config": {"function": "mine"}}, 1),
    "a function to import": ({"module": "os", "class_name": "function", "config": "system"}, 2),
    "a class to import": ({"module": "my.layers", "class_name": "Own", "config": {}}, 1),
    "a layer": ({"module": "keras.layers", "class_name": "Dense", "config": {"units": 3}}, 0),
    "a type": ({"module": "builtins", "class_name": "function", "config": "my_loss"}, 0),
}
SEVERITY = ("harmless", "suspicious", "dangerous")


@pytest.mark.parametrize("case", LAYERS)
def test_keras_configurations(case: str, tmp_path: Path) -> None:
    layer, severity = LAYERS[case]
    config = {"module": "keras", "class_name": "Functional", "config": {"layers": [layer]}}
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config))
    assert scan_path(path).verdict == SEVERITY[severity]
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(config)
    assert scan_path(tmp_path / "m.h5").verdict == SEVERITY[severity]


def test_hdf5_that_leads_to_other_files(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["layers/a"] = np.ones(3)
        file["layers/soft"] = h5py.SoftLink("/layers/a")
    assert scan_path(path).ok
    with h5py.File(path, "a") as file:
        file["layers/out"] = h5py.ExternalLink("/etc/other.h5", "/x")
        file.create_dataset("raw", (4,), "f4", external=[("/etc/hostname", 0, 16)])
        layout = h5py.VirtualLayout((3,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
        file.create_virtual_dataset("virtual", layout)
    report = scan_path(path)
    assert found(report) == dict.fromkeys(("/layers/out", "/raw", "/virtual"), "suspicious")
    assert "/etc/other.h5:/x" in next(one.why for one in report.findings if one.what == "/layers/out")


@pytest.mark.parametrize(
    ("location", "severity"),
    [("w.bin", None), ("sub/w.bin", None), ("../w.bin", "suspicious"), ("/etc/passwd", "suspicious")],
)
def test_onnx_data_outside_the_folder(location: str, severity: str | None, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    held = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=1)
    held.external_data.add(key="location", value=location)
    node = onnx.helper.make_node("Constant", [], ["y"], value=held)
    graph = onnx.helper.make_graph([node], "g", [], [], [held])
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert found(scan_path(path)).get(location) == severity


# -- bounds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*malformed(), *bombs()])
def test_hostile_files_end_in_time(case: str, tmp_path: Path) -> None:
    one = {**malformed(), **bombs()}[case]
    path = write_zip(tmp_path / "m.pth", beside_weights("zip", one.fragment))
    begin = time.process_time()
    scan_path(path)
    assert time.process_time() - begin < 2.5


ENDLESS = {
    "names": b"\x80\x02" + b"".join(b"ca%d\nb\n0" % n for n in range(50_000)) + b"N.",
    "memo": b"\x80\x02N" + b"2\x94" * 500_000 + b".",
    "marks": b"(" * 1_000_000 + b"N.",
    "tuples": b"\x80\x02)" + b"2\x86" * 500_000 + b".",
    "lines": b"cos\n" + b"a" * 2_000_000,
    "pickles": b"\x80\x02N." * 250_000,
    "nested": b"\x80\x03" + b"C\x04\x80\x02N.0" * 100_000 + b"N.",
    "calls": b"\x80\x02cx\ny\n" + b")R" * 500_000 + b".",
    "lines behind a fault": b"\x80\x04\xff" + b"ca\nb\n" * 200_000,
    "a row of letters behind a fault": b"\x80\x04\xff" + b"c" * 2_000_000,
}


@pytest.mark.parametrize("case", ENDLESS)
def test_long_pickles_end_in_time(case: str, tmp_path: Path) -> None:
    begin = time.process_time()
    report = scanned(tmp_path / "m.pkl", ENDLESS[case])
    assert time.process_time() - begin < len(ENDLESS[case]) / 1e6  # a second for each MB
    assert len(report.findings) < 10_000


def test_a_large_checkpoint_of_numpy_or_torch_is_followed_to_its_end(tmp_path: Path) -> None:
    arrays = {f"layers.{number}.weight": np.ones(4, "f4") for number in range(25_000)}
    report = scanned(tmp_path / "m.pkl", pickle.dumps(arrays))
    assert report.ok, report
    one = b"C" + bytes([len(NESTED)]) + NESTED
    calls = b"ctorch.storage\n_load_from_bytes\nq\x00" + (b"h\x00" + one + b"\x85R0") * 3_000
    report = scanned(tmp_path / "m.pkl", b"\x80\x03" + calls + b"N.")
    assert report.ok, report
    assert report.scanned == {"pickle": 3_001}
    evil = b"h\x00C" + bytes([len(EVIL)]) + EVIL + b"\x85R0"
    assert scanned(tmp_path / "m.pkl", b"\x80\x03" + calls + evil + b"N.").verdict == "dangerous"


NESTED = b"\x80\x02}X\x01\x00\x00\x00wK\x01s."


# -- output --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    return runner(capsys)


def test_the_command(run: Any, tmp_path: Path) -> None:
    good, evil = tmp_path / "good.pkl", tmp_path / "evil file.pkl"
    good.write_bytes(pickle.dumps({"a": 1}))
    evil.write_bytes(EVIL)
    assert run("inspect", "--security", good).code == 0
    done = run("inspect", "--security", good, evil, "--sarif", tmp_path / "x.sarif")
    assert done.code == 1
    assert "dangerous: posix.system\n  runs commands or programs; imported at" in done.out
    assert "with ('echo pwned',)" in done.out
    assert all(len(line) <= 80 for line in done.out.splitlines() if str(tmp_path) not in line)
    (first, second) = json.loads(run("inspect", "--security", good, evil, "--json").out)
    assert (first["ok"], second["ok"]) == (True, False)
    assert second["findings"][0] == {
        "severity": "dangerous",
        "rule": "pickle-name",
        "place": "",
        "offset": EVIL.index(b"\x93"),
        "what": "posix.system",
        "why": second["findings"][0]["why"],
        "file": "",
    }
    written = json.loads((tmp_path / "x.sarif").read_text())
    (result,) = written["runs"][0]["results"]
    assert (result["ruleId"], result["level"]) == ("pickle-name", "error")
    physical = result["locations"][0]["physicalLocation"]
    assert physical["artifactLocation"]["uri"].endswith("/evil%20file.pkl")
    assert physical["region"] == {"byteOffset": EVIL.index(b"\x93")}
    again = run("inspect", "--security", good, "--sarif", tmp_path / "x.sarif")
    assert again.code == 0
    refused = run("inspect", "--security", good, "--sarif", evil)
    assert refused.code == 2
    assert evil.read_bytes() == EVIL


TEXT, COUNT, INDEX = str, range(1 << 62), range(-1, 1 << 62)
SARIF: dict[str, tuple[set[str], dict[str, Any]]] = {
    "log": ({"version", "runs"}, {"$schema": TEXT, "version": {"2.1.0"}, "runs": ["run"]}),
    "run": (
        {"tool"},
        {"tool": "tool", "results": ["result"], "columnKind": {"utf16CodeUnits", "unicodeCodePoints"}},
    ),
    "tool": ({"driver"}, {"driver": "component"}),
    "component": ({"name"}, {"name": TEXT, "version": TEXT, "rules": ["rule"]}),
    "rule": ({"id"}, {"id": TEXT, "name": TEXT, "shortDescription": "description"}),
    "description": ({"text"}, {"text": TEXT, "markdown": TEXT}),
    "result": (
        {"message"},
        {
            "ruleId": TEXT,
            "ruleIndex": INDEX,
            "kind": {"notApplicable", "pass", "fail", "review", "open", "informational"},
            "level": {"none", "note", "warning", "error"},
            "message": "message",
            "locations": ["location"],
        },
    ),
    "message": ({"text"}, {"text": TEXT, "id": TEXT}),
    "location": (set(), {"physicalLocation": "physical", "logicalLocations": ["logical"]}),
    "physical": ({"artifactLocation"}, {"artifactLocation": "artifact", "region": "region"}),
    "artifact": (
        set(),
        {"uri": re.compile(r"([A-Za-z0-9._~/!$&'()*+,;=:@-]|%[0-9A-F]{2})+"), "index": INDEX},
    ),
    "region": (set(), {"byteOffset": INDEX, "byteLength": COUNT}),
    "logical": (set(), {"name": TEXT, "fullyQualifiedName": TEXT, "kind": TEXT, "index": INDEX}),
}
"""Required properties, and types of those that are used, of SARIF 2.1.0's schema, which allows no others."""


def check_sarif(value: Any, kind: Any) -> None:
    if isinstance(kind, list):
        assert isinstance(value, list)
        for one in value:
            check_sarif(one, kind[0])
    elif isinstance(kind, str):
        required, known = SARIF[kind]
        assert required <= value.keys() <= known.keys()
        for key, one in value.items():
            check_sarif(one, known[key])
    elif isinstance(kind, re.Pattern):
        assert kind.fullmatch(value), value
    elif isinstance(kind, type):
        assert type(value) is kind
    else:
        assert value in kind


def test_sarif_fits_its_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("é 1%2#a?b:c")
    folder.mkdir()
    write_zip(folder / "m 日.pth", beside_weights("zip", PROGRAMS["os.system"].fragment))
    for name, raw in (("n.pkl", SUSPICIOUS["no stop"]), (os.fsdecode(b"\xff.pkl"), EVIL), ("n.npy", NESTED)):
        (folder / name).write_bytes(raw)
    paths = (folder, folder / "m 日.pth", folder / os.fsdecode(b"\xff.pkl"), tmp_path / folder / "n.pkl")
    log = json.loads(json_text(sarif(map(scan_path, paths))))
    check_sarif(log, "log")
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    assert {one["level"] for one in run["results"]} == {"error", "warning", "none"}
    for one in run["results"]:
        assert rules[one["ruleIndex"]]["id"] == one["ruleId"]
        assert (one["level"] == "none") == (one["kind"] == "informational")
    placed = {
        (physical["artifactLocation"]["uri"], *(where["fullyQualifiedName"] for where in logical))
        for one in run["results"]
        for where in one["locations"]
        for physical, logical in [(where["physicalLocation"], where.get("logicalLocations", []))]
    }
    quoted = "%C3%A9%201%252%23a%3Fb%3Ac"
    files = {uri for uri, *_ in placed}
    assert files == {
        f"{quoted}/m%20%E6%97%A5.pth",
        f"{quoted}/n.pkl",
        f"{quoted}/%FF.pkl",
        (tmp_path / "x").as_uri()[:-1] + f"{quoted}/n.pkl",
    }
    inside = [logical for uri, *logical in placed if uri.endswith(".pth")]
    assert all(len(one) == 1 and one[0].startswith("archive/data.pkl@") for one in inside), inside
    assert all(not logical for uri, *logical in placed if not uri.endswith(".pth"))


def test_missing_and_odd_paths(run: Any, tmp_path: Path) -> None:
    assert run("inspect", "--security", tmp_path / "none.pth").code == 3
    os.mkfifo(tmp_path / "pipe.pth")
    assert run("inspect", "--security", tmp_path / "pipe.pth").code == 5
    assert run("inspect", tmp_path / "none.pth", "--sarif", tmp_path / "x").code == 2


# -- beside the scanners that others wrote -------------------------------------------------------------------


def planted(folder: Path) -> dict[str, Path]:
    """Files that those can read: plain pickles, and what holds them."""
    raw = {name: (".pkl", pickle.dumps(value, 4)) for name, value in DANGEROUS.items()}
    raw |= {name: (".pkl", content) for name, (content, _) in RAW.items()}
    raw |= {name: (".pkl", content) for name, content in SUSPICIOUS.items()}
    raw |= {f"program {name}": (".pkl", whole(one.fragment)) for name, one in PROGRAMS.items()}
    raw |= {name: ("".join(Path(file).suffixes), content) for name, (file, content) in HELD.items()}
    paths = {}
    for number, (name, (ending, content)) in enumerate(raw.items()):
        paths[name] = folder / f"{number}{ending}"
        paths[name].write_bytes(content)
    return paths


NOT_DANGEROUS = {"functools.partial", "uuid.anything", "test.anything"}
"""In honest models: norm layers of timm; identifiers; what many call their own module."""


def test_whatever_picklescan_calls_dangerous_is_found(tmp_path: Path) -> None:
    scanner = pytest.importorskip("picklescan.scanner")
    seen = 0
    for name, path in planted(tmp_path).items():
        with suppress(OSError):  # of files that it cannot follow
            if not scanner.scan_file_path(str(path)).issues_count:
                continue
            seen += 1
            assert not scan_path(path).ok, name
    assert seen > 40
    for module, names in scanner._unsafe_globals.items():
        for name in ["anything"] if names == "*" else [names] if isinstance(names, str) else names:
            known = what_it_does(f"{module}.{name}") is not None
            assert known or f"{module}.{name}" in NOT_DANGEROUS, name


@pytest.mark.filterwarnings("ignore")
def test_whatever_fickling_calls_malicious_is_found(tmp_path: Path) -> None:
    loader = pytest.importorskip("fickling.loader")
    malicious = pytest.importorskip("fickling.analysis").Severity.LIKELY_OVERTLY_MALICIOUS
    seen = 0
    for name, path in planted(tmp_path).items():
        found = [loader.scan_file(str(path), graceful=True)]
        if zipfile.is_zipfile(path):
            found += loader.scan_zip_archive(str(path), graceful=True).values()
        if max(one.severity for one in found) >= malicious:
            seen += 1
            assert not scan_path(path).ok, name
    assert seen > 40


HIDDEN = {
    "zip behind other bytes": ("m.keras", b"GGUF" + zip_of(a=EVIL)),
    "zlib": ("m.joblib", zlib.compress(EVIL)),
    "array among storages": (
        "m.npz",
        zip_of(a__data_pkl=pickle.dumps(1), **{"a__data__w.npy": npy_of_objects(SYSTEM)}),
    ),
    "no mark and no ending": ("model", b"]0cos\nsystem\n(S'id'\ntR."),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_what_is_hidden_from_other_scanners(case: str, tmp_path: Path) -> None:
    name, raw = HIDDEN[case]
    report = scanned(tmp_path / name, raw)
    assert report.verdict == "dangerous", report


@pytest.mark.parametrize("raw", [b"7z\xbc\xaf\x27\x1c" + b"\0" * 99, b"Rar!\x1a\x07\0" + b"\0" * 99])
def test_what_cannot_be_unpacked_is_suspicious(raw: bytes, tmp_path: Path) -> None:
    assert scanned(tmp_path / "m.pkl", raw).verdict == "suspicious"


def test_an_unknown_name_behind_an_odd_beginning(tmp_path: Path) -> None:
    assert scanned(tmp_path / "m.pkl", b"]0cmy.evil\nrun\n)R\xff").verdict == "suspicious"
    assert scanned(tmp_path / "labels.txt", b"cat\ndog\nmouse\n").ok
    assert scanned(tmp_path / "weights.bin", bytes(range(256)) * 9).ok


def test_what_libraries_write_is_harmless(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import torch.distributed.checkpoint as dcp

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.jit.script(model).save(tmp_path / "script.pt")
    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path / "dcp")
    for path in (tmp_path / "script.pt", tmp_path / "dcp"):
        report = scan_path(path)
        assert report.ok, report
        assert report.scanned["pickle"] > 1
    assert "TorchScript" in found(scan_path(tmp_path / "script.pt"))


def test_a_row_of_damaged_archives_ends_in_time(tmp_path: Path) -> None:
    """Members are looked for once, not again inside what may be the rest of the file."""
    one = zip_of(**{"a.pth": zip_of(a__data_pkl=EVIL)})
    begin = time.process_time()
    report = scanned(tmp_path / "m.pth", one * 200 + b"x")
    assert time.process_time() - begin < 2.5
    assert report.verdict == "dangerous"


@pytest.mark.parametrize("case", HELD)
def test_damage_is_no_fault(case: str, tmp_path: Path) -> None:
    """Whatever is changed, a scan ends with a report."""
    name, raw = HELD[case]
    draw = random.Random(case)
    for _ in range(40):
        changed = bytearray(raw or EVIL)
        for _ in range(draw.randint(1, 6)):
            changed[draw.randrange(len(changed))] = draw.choice((0, 0x80, 0xFF, draw.randrange(256)))
        scanned(tmp_path / name, bytes(changed[: draw.randint(1, len(changed))]))
