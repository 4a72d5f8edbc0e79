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
import stat
import tarfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

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
    "a set of one's own": (b"\x80\x04\x8f(cos\nsystem\nU\x02id\x85R\x90.", 4),
}


@pytest.mark.parametrize("case", RAW)
def test_what_no_pickler_writes(case: str, tmp_path: Path) -> None:
    raw, offset = RAW[case]
    report = scanned(tmp_path / "m.pkl", raw)
    assert report.verdict == "dangerous", report
    assert report.findings[0].offset == offset, report
    assert raw[offset : offset + 1] in (b"c", b"i", b"\x93")


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
    "names": b"\x80\x02" + b"".join(b"ca%d\nb\n0" % n for n in range(200_000)) + b"N.",
    "memo": b"\x80\x02N" + b"2\x94" * 2_000_000 + b".",
    "marks": b"(" * 4_000_000 + b"N.",
    "tuples": b"\x80\x02)" + b"2\x86" * 2_000_000 + b".",
    "lines": b"cos\n" + b"a" * 8_000_000,
    "pickles": b"\x80\x02N." * 1_000_000,
    "nested": b"\x80\x03" + b"C\x04\x80\x02N.0" * 400_000 + b"N.",
}


@pytest.mark.parametrize("case", ENDLESS)
def test_long_pickles_end_in_time(case: str, tmp_path: Path) -> None:
    begin = time.process_time()
    report = scanned(tmp_path / "m.pkl", ENDLESS[case])
    assert time.process_time() - begin < 3
    assert len(report.findings) < 10_000


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


def test_sarif_has_what_its_schema_requires(tmp_path: Path) -> None:
    """Required properties, and enumerations, of the 2.1.0 schema: of log, run, tool, result, location."""
    path = tmp_path / "m.pth"
    write_zip(path, beside_weights("zip", PROGRAMS["os.system"].fragment))
    log = sarif([scan_path(path), scanned(tmp_path / "n.pkl", SUSPICIOUS["no stop"])])
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "ckptkit"
    assert [rule["id"] for rule in driver["rules"]] == list(RULES)
    assert {one["level"] for one in run["results"]} == {"error", "warning", "none"}
    for one in run["results"]:
        assert one["message"]["text"]
        assert one["kind"] in ("fail", "informational")
        assert (one["level"] == "none") == (one["kind"] == "informational")
        assert driver["rules"][one["ruleIndex"]]["id"] == one["ruleId"]
        region = one["locations"][0]["physicalLocation"].get("region", {"byteOffset": 0})
        assert region["byteOffset"] >= 0


def test_missing_and_odd_paths(run: Any, tmp_path: Path) -> None:
    assert run("inspect", "--security", tmp_path / "none.pth").code == 3
    os.mkfifo(tmp_path / "pipe.pth")
    assert run("inspect", "--security", tmp_path / "pipe.pth").code == 5
    assert run("inspect", tmp_path / "none.pth", "--sarif", tmp_path / "x").code == 2


# -- beside the scanners that others wrote -------------------------------------------------------------------


def planted(folder: Path) -> dict[str, Path]:
    """Files that those can read: plain pickles."""
    raw = {name: pickle.dumps(value, 4) for name, value in DANGEROUS.items()}
    raw |= {name: content for name, (content, _) in RAW.items()}
    raw |= SUSPICIOUS
    raw |= {f"program {name}": whole(one.fragment) for name, one in PROGRAMS.items()}
    paths = {}
    for number, (name, content) in enumerate(raw.items()):
        paths[name] = folder / f"{number}.pkl"
        paths[name].write_bytes(content)
    return paths


def test_whatever_picklescan_calls_dangerous_is_found(tmp_path: Path) -> None:
    scanner = pytest.importorskip("picklescan.scanner")
    seen = 0
    for name, path in planted(tmp_path).items():
        if scanner.scan_file_path(str(path)).issues_count:
            seen += 1
            assert not scan_path(path).ok, name
    assert seen > 20


def test_whatever_fickling_calls_malicious_is_found(tmp_path: Path) -> None:
    fickle = pytest.importorskip("fickling.fickle")
    analysis = pytest.importorskip("fickling.analysis")
    seen = 0
    for name, path in planted(tmp_path).items():
        try:
            judged = analysis.check_safety(fickle.Pickled.load(path.read_bytes()))
        except Exception:  # it raises many kinds for pickles that it cannot follow
            continue
        if judged.severity >= analysis.Severity.LIKELY_OVERTLY_MALICIOUS:
            seen += 1
            assert not scan_path(path).ok, name
    assert seen > 20


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
