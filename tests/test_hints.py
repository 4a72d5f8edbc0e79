"""Every hint that names a command or an option is followed, in the situation that prints it, and helps.

`SITUATIONS` is the table: what is there, the command that fails, and (where the hint's own words are not
enough) the values a person fills in. What the hint advises is then run. `test_every_hint_is_followed` reads
the source for hints that can be followed and fails for one that no situation prints.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptkit
from ckptkit.base.errors import CkptkitError
from ckptkit.cli.app import main
from ckptkit.families.moganet import MogaNet
from ckptkit.formats.readers import MappedReader
from ckptkit.parity.backends import run_torch
from ckptkit.registry.loading import load_registry
from ckptkit.store.cache import Home
from ckptkit.store.lockfile import LockFile
from tests.conftest import REPOSITORY
from tests.support.commands import WHEN, runner
from tests.support.evaluation import shard
from tests.support.parity_cases import models_here
from tests.support.tensors import raw_safetensors
from tests.support.training_logs import long_log

Arrange = Callable[[], None]


@dataclass(frozen=True)
class Situation:
    """A command that fails with a hint.

    Parameters
    ----------
    command : str
        Run in a folder of its own that holds the ground's files.
    arrange : callable, optional
        Makes what else has to be there.
    fill : mapping of str to str
        What a person puts in the place of the hint's words: ``ID``, ``FILE``, an option without its value.
    then : str, optional
        The command that follows the hint, where taking its options and commands as they are is not enough.
        Every option and command in it must be in the hint, or in the command that failed.
    between : callable, optional
        What happens elsewhere before the hint is followed: a server is well again.
    code : int
        Exit status of what the hint advises: 1 where it shows what does not hold.
    slow : bool
        Whether following it takes half a minute; ``says`` is then the hint, unseen by the default run.
    says : str, optional
        The hint, word for word.
    needs : tuple of str
        Packages without which the situation cannot arise.
    wrong : str, optional
        The word of the command in whose place the hint gives the right one, or several to choose from.
    python : bool
        Whether ``command`` and ``then`` are not for a terminal but Python.
    """

    command: str
    arrange: Arrange | None = None
    fill: Mapping[str, str] = field(default_factory=dict)
    then: str | None = None
    between: Arrange | None = None
    code: int = 0
    slow: bool = False
    needs: tuple[str, ...] = ()
    says: str | None = None
    wrong: str | None = None
    python: bool = False


def _copy(source: str, target: str) -> Arrange:
    return lambda: shutil.copy(source, target) and None


def _text(name: str, text: str) -> Arrange:
    return lambda: Path(name).write_text(text, encoding="utf-8") and None


def _folder(*names: str) -> Arrange:
    return lambda: [Path(name).mkdir(parents=True) for name in names] and None


def _ran(*commands: str) -> Arrange:
    """Have run these commands before."""

    def run() -> None:
        for command in commands:
            with pytest.raises(SystemExit) as left:
                main(shlex.split(command))
            assert not left.value.code, command

    return run


def _together(*steps: Arrange) -> Arrange:
    return lambda: [step() for step in steps] and None


def _cases() -> None:
    """good.yaml, a case of two recordings, and empty.yaml, of which one has no outputs."""
    np.savez("empty.npz", **{"inputs/x": np.ones((2, 3), "f4")})
    np.savez("good.npz", output=np.arange(6, dtype="f4").reshape(2, 3))
    for name in ("good", "empty"):
        side = "{framework: recorded, model: %s.npz}"
        text = f"left: {side % 'good'}\nright: {side % name}\ninputs: {{shape: [2, 3]}}\n"
        Path(f"{name}.yaml").write_text(text, encoding="utf-8")


def _recording() -> None:
    """outputs.npz: what PyTorch's model of moat.ckpt gives for a random image, and the image."""
    images = np.random.default_rng(0).standard_normal((1, 64, 64, 3), dtype=np.float32)
    model = ckptkit.create_model("tiny-moat0", checkpoint="moat.ckpt", resolution=64)
    np.savez("outputs.npz", images=images, **run_torch(model, images))


def _part_of(source: str, kept: Callable[[str], bool]) -> Arrange:
    """part.safetensors: the arrays of a checkpoint whose names are kept."""

    def write() -> None:
        arrays = ckptkit.load(source, layout="as-is")
        save_file({name: array for name, array in arrays.items() if kept(name)}, "part.safetensors")

    return write


def _pictures(*names: str) -> Arrange:
    def draw() -> None:
        from tests.support.showground import picture

        for number, name in enumerate(names):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            picture(number, 64, 64).save(name)

    return draw


def _with_nan(source: str, target: str) -> Arrange:
    """A checkpoint with one element of its first tensor spoilt."""

    def write() -> None:
        arrays = dict(ckptkit.load(source, layout="as-is"))
        name = next(iter(arrays))
        arrays[name] = arrays[name].copy()
        arrays[name].flat[0] = np.nan
        save_file(arrays, target)

    return write


def _publish(log: str) -> Arrange:
    """Put a training log where CKPTKIT_MIRROR leads."""

    def write() -> None:
        path = Path("published") / urlsplit(str(load_registry()["moganet-xt-224"].log_url)).path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(log, encoding="utf-8")

    return write


def _ten_classes() -> None:
    """A model of ten classes."""
    arrays = dict(ckptkit.load("moat.safetensors", layout="as-is"))
    heads = [name for name, array in arrays.items() if 1000 in array.shape]
    arrays |= {name: arrays[name][:10].copy() for name in heads}
    save_file(arrays, "ten.safetensors")


def _opaque(source: str, target: str) -> Arrange:
    """A checkpoint with a tensor of a type of which only the bytes are known."""

    def write() -> None:
        arrays = ckptkit.load(source, layout="as-is")
        tensors = {name: (_SAFETENSORS[a.dtype.char], a.shape, a.tobytes()) for name, a in arrays.items()}
        name, shape = next((name, a.shape) for name, a in arrays.items() if a.ndim == 1)
        raw_safetensors(Path(target), {**tensors, name: ("F8_E8M0", shape, bytes(shape[0]))})

    return write


_SAFETENSORS = {"f": "F32", "l": "I64"}


def _with_another(source: str, target: str) -> Arrange:
    """A checkpoint with a tensor that its model has not."""
    return lambda: save_file({**ckptkit.load(source, layout="as-is"), "extra": np.ones(2, "f4")}, target)


def _two_of_one_name() -> None:
    """A file whose reader says that one name in it is another one's too: TensorFlow's object graphs can."""
    _with_another("moat.safetensors", "both.safetensors")()
    _PATCHES.setattr(MappedReader, "namesakes", {"extra": "head.weight"})


def _registry(name: str, lesser: str | None = None, **fields: object) -> Arrange:
    """A registry in which the published entry has other fields; a callable gives its value.

    ``lesser`` is the file of an upload without statistics.
    """

    def write() -> None:
        said = {key: value() if callable(value) else value for key, value in fields.items()}
        files = {"published.tar.gz": True, **({lesser: False} if lesser else {})}
        sources = [{"url": Path(f).absolute().as_uri(), "bn_statistics": has} for f, has in files.items()]
        entry = {"id": ID, "sources": sources, **said}
        Path(name).write_text(json.dumps({"entries": [entry]}), encoding="utf-8")

    return write


def _pinned(sha256: object) -> dict[str, object]:
    """Fields of an entry that is pinned."""
    return {"sha256": sha256, "hash_provenance": {"observed_at": WHEN, "url": "https://example.org/m.tar.gz"}}


def _published_sha256() -> str:
    return hashlib.sha256(Path("published.tar.gz").read_bytes()).hexdigest()


def _cached(pattern: str) -> Path:
    """The one file of the cache that a pattern matches."""
    (path,) = Path(os.environ["CKPTKIT_HOME"]).rglob(pattern)
    return path


def _damage() -> None:
    path = _cached("published.tar.gz")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-9])


def _trust_other_bytes() -> None:
    """The lock file says that other bytes came first."""
    path = Home.default().path
    path = LockFile.default(path).path
    path.write_text(path.read_text("utf-8").replace(_published_sha256(), "ab" * 32), encoding="utf-8")


def _publish_anew() -> None:
    url = load_registry()[ID].sources[0].url
    path = Path(urlsplit(url).path)
    archive = bytearray(path.read_bytes())
    archive[4:8] = b"\1\0\0\0"  # when it was packed
    path = Path("published.tar.gz").absolute()
    path.unlink()
    path.write_bytes(archive)
    text = Path("mine.yaml").read_text("utf-8")
    Path("mine.yaml").unlink()
    Path("mine.yaml").write_text(text.replace(url, path.as_uri()), encoding="utf-8")


def _torch_file(name: str, **tables: Mapping[str, np.ndarray]) -> Arrange:
    """A PyTorch file of several state dicts."""

    def write() -> None:
        import torch

        def tensors(table: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
            return {key: torch.from_numpy(array) for key, array in table.items()}

        torch.save({key: tensors(table) for key, table in tables.items()}, name)

    return write


def _two_copies() -> None:
    """A file with averages of weights, of which nothing says which ones are meant."""
    arrays = ckptkit.load("moat.pth", layout="as-is")
    _torch_file("pair.pth", net=arrays, net_ema=arrays)()


def _other_graph() -> None:
    """An ONNX file that takes no pictures."""
    import onnx

    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", "x", "y")], "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph), "other.onnx")


def _without_metadata() -> None:
    import onnx

    model = onnx.load("m.onnx")
    del model.metadata_props[:]
    onnx.save(model, "m.onnx")


def _arrays(name: str, **arrays: np.ndarray) -> Arrange:
    return lambda: np.savez(name, **arrays)


def _two_shards() -> None:
    _pictures("0.png")()
    for number in range(2):
        shard(Path(f"shard-{number}.tar"), {"0.png": Path("0.png").read_bytes(), "0.cls": b"7"})


def _without_statistics() -> None:
    from ckptkit.models.synth import synthetic_for, write_checkpoint

    synthetic = dataclasses.replace(synthetic_for(load_registry()[ID]), bn_statistics=False)
    write_checkpoint(synthetic, Path("lesser.tar.gz").absolute())


PICTURE = "val/n01440764/0.png"
TORCH, IMAGES, BOTH = ("torch",), ("torch", "PIL"), ("torch", "tensorflow")
GRAPHS = (*TORCH, "onnxruntime", "onnxscript")
GATE = "--set attn_force_fp32=true"
ID = "tiny-moat0-256"

_RULES_OPEN = 'version: 2\nrules:\n  - {source: "a/{i}/w", target: "b.{i}.w", sure: ambiguous}\n'

SITUATIONS: Mapping[str, Situation] = {
    # -- what to name
    "no such variant": Situation("profile nosuch"),
    "no such file": Situation("inspect nosuch/file.pth"),
    "no such glob": Situation("fetch 'nosuch-*'"),
    "not fetched": Situation(f"inspect {ID}"),
    "not fetched, path": Situation(f"cache path {ID}"),
    "nothing fetched to verify": Situation("verify --all", fill={"ID": ID}),
    "nothing fetched to run": Situation("parity --all", then=f"fetch {ID}"),
    "nothing to verify": Situation("verify", arrange=_ran(f"fetch {ID}")),
    "nothing to run": Situation(
        "parity --resolution 64", then="parity moat.ckpt --resolution 64", needs=BOTH
    ),
    "nothing to fetch": Situation("fetch", then=f"fetch {ID}"),
    "nothing to pin": Situation("registry pin"),
    "never fetched": Situation(f"registry pin {ID} --file pins.yaml"),
    "pin all of nothing": Situation("registry pin --all --file pins.yaml", fill={"ID": ID}),
    "nothing of it cached": Situation("cache rm 'nosuch-*'"),
    "nothing to prune": Situation("cache prune"),
    "nothing to count": Situation("profile", then="profile tiny-moat0", needs=TORCH),
    # -- where to write
    "output exists": Situation(
        "convert moat.pth --to safetensors -o moat.safetensors",
        fill={"--output": "--output other.safetensors"},
    ),
    "output is the source": Situation(
        "convert moat.safetensors --to safetensors -o moat.safetensors --force",
        fill={"--output": "--output other.safetensors"},
    ),
    "findings of no scan": Situation(
        "inspect moga.pth --sarif x.sarif", then="inspect moga.pth --sarif x.sarif --security"
    ),
    "no columns": Situation("list --columns ,"),
    "nothing to draw": Situation("plot --family moat --max-params 1 -o p.png", then="list --family moat"),
    "exported to a file": Situation(
        "export moat.pth --to hf -o any.npz", fill={"--output": "--output folder"}, needs=TORCH
    ),
    "exported over files of others": Situation(
        "export moat.pth --to hf -o theirs",
        arrange=_together(_folder("theirs"), _text("theirs/thesis.txt", "mine")),
        fill={"--output": "--output folder"},
        needs=TORCH,
    ),
    # -- how to convert
    "reversed without rules": Situation(
        "convert net.npz --reverse --to npz -o back.npz",
        fill={"FILE": "rules.yaml"},
        arrange=_ran("convert any.npz --rules rules.yaml --to npz -o net.npz"),
    ),
    "rules that leave a question open": Situation(
        "convert any.npz --rules open.yaml --to npz -o o.npz",
        arrange=_text("open.yaml", _RULES_OPEN),
        says="answer the question beside each, then delete its 'sure: ambiguous'",
        between=_text("open.yaml", _RULES_OPEN.replace(", sure: ambiguous", "")),
        then="convert any.npz --rules open.yaml --to npz -o o.npz",
    ),
    "rules that are not proven": Situation(
        "convert any.npz --rules rules.yaml --require proven --to npz -o o.npz",
        says="leave --require out, or use rules that are marked 'sure: proven'",
    ),
    "proof without rules": Situation(
        "convert any.npz --require proven --layout as-is --to npz -o o.npz",
        fill={"FILE": "proven.yaml"},
        arrange=_text("proven.yaml", _RULES_OPEN.replace("ambiguous", "proven")),
        then="convert any.npz --require proven --rules proven.yaml --to npz -o o.npz",
    ),
    "no such rules": Situation(
        "convert any.npz --to npz --rules nosuch.yaml -o o.npz", fill={"--rules": "--rules rules.yaml"}
    ),
    "unknown model": Situation(
        "convert any.npz --to npz -o o.npz", then="convert any.npz --to npz -o o.npz --layout as-is"
    ),
    "two models without a layer in common": Situation("rules suggest any.npz objects.npz"),
    "proof without values": Situation(
        "rules suggest names.json any.npz --prove case.yaml",
        arrange=_text("names.json", '{"a": [2], "c": [3]}'),
        then="rules suggest any.npz any.npz",
    ),
    "proof of other names": Situation(
        "rules suggest any.npz any.npz --prove case.yaml --strip-prefix net.",
        then="rules suggest any.npz any.npz",
    ),
    "proof of what is recorded": Situation(
        "rules suggest any.npz any.npz --prove good.yaml", _cases, then="rules suggest any.npz any.npz"
    ),
    "unknown model, its tensors": Situation("convert any.npz --to npz -o o.npz", fill={"FILE": "rules.yaml"}),
    "no such family": Situation("convert any.npz --variant moat0 --to npz -o o.npz"),
    "no moving averages": Situation("convert any.npz --layout as-is --weights ema --to npz -o o.npz"),
    "no head": Situation(
        "convert headless.safetensors --to torch -o o.pth",
        arrange=_ran("convert moat.pth --no-head --to safetensors -o headless.safetensors"),
    ),
    "no tables to resize": Situation(f"convert moga.pth {GATE} --resolution 64 --to torch -o o.pth"),
    "no statistics": Situation(
        "convert part.safetensors --to torch -o o.pth",
        arrange=_part_of("moat.safetensors", lambda name: "running_" not in name),
    ),
    "a tensor is missing": Situation(
        "convert part.safetensors --to torch -o o.pth",
        arrange=_part_of("moat.safetensors", lambda name: "stages.0.0" not in name),
        code=1,
    ),
    "no position embedding": Situation("synth moganet-xt --no-pos-emb -o s.pth"),
    "names in a layout": Situation("inspect any.npz --layout torch"),
    "averages of any model": Situation("diff any.npz any.npz --weights ema", then="diff any.npz any.npz"),
    # -- registries
    "no such registry": Situation("list --registry nosuch.yaml", fill={"--registry": "--registry mine.yaml"}),
    "a broken registry": Situation(
        "list --registry broken.yaml",
        arrange=_text("broken.yaml", "entries:\n  - id: tiny-moat0-256\n    nosuch: 1\n"),
        then="registry schema",
    ),
    "a revision of a file elsewhere": Situation(
        "registry add new https://example.org/m.pth --checkpoint moat.pth --revision abc --file own.yaml",
        then="registry add new https://example.org/m.pth --checkpoint moat.pth --file own.yaml",
    ),
    "a branch whose commit cannot be asked for": Situation(
        "--offline registry add new hf://org/m/m.pth --checkpoint moat.pth --revision main --file own.yaml",
        then=f"registry add new hf://org/m/m.pth --checkpoint moat.pth --file own.yaml --revision {'a' * 40}",
    ),
    "checksums of what was never fetched": Situation(f"cache checksums {ID}", then=f"fetch {ID}"),
    "a synthetic file of which only the container is known": Situation("synth contained -o contained.pth"),
    "a gate that is not known": Situation(
        "convert moga.pth -o other.h5 --layout kecam",
        then="convert moga.pth -o other.h5 --layout kecam --set attn_force_fp32=false",
    ),
    "a gate that another's code has not": Situation(
        "convert moga.pth -o other.h5 --layout kecam --set attn_force_fp32=true",
        then="convert moga.pth -o other.pth --layout torch --set attn_force_fp32=true",
    ),
    "biases that another's code has not": Situation(
        "convert moga.pth -o other.pth --layout birder --set attn_force_fp32=false",
        then="convert moga.pth -o other.pth --layout torch --set attn_force_fp32=false",
    ),
    "a metric without a number": Situation(
        "registry add new https://example.org/m.pth --checkpoint moat.pth --metric mIoU=high --file own.yaml",
        then="registry add new https://example.org/m.pth --checkpoint moat.pth --metric box_mAP=39.7 "
        "--file own.yaml",
    ),
    "a field that cannot be": Situation(
        "registry add new https://example.org/m.pth --checkpoint moat.pth --top1 999 --file own.yaml",
        then="registry schema",
    ),
    "a pin without the file": Situation(
        "registry add new https://example.org/m.pth --pin --file own.yaml", fill={"FILE": "moat.pth"}
    ),
    "added twice": Situation(
        "registry add new https://example.org/m.pth --checkpoint moat.pth --file own.yaml",
        arrange=_ran("registry add new https://example.org/m.pth --checkpoint moat.pth --file own.yaml"),
    ),
    # -- fetching
    "accept and require": Situation(
        f"fetch {ID} --accept-new --require-checksum", then=f"fetch {ID} --accept-new"
    ),
    "offline": Situation(
        f"fetch {ID} --offline --mirror file://=https://", fill={"FILE": "published.tar.gz"}
    ),
    "no checksum": Situation(f"fetch {ID} --require-checksum", then=f"fetch {ID}"),
    # -- running models
    "converted has its precision": Situation(
        "parity moat.ckpt --converted moat.pth --dtype float16 --resolution 64", needs=BOTH
    ),
    "a batch of one picture": Situation(
        "parity moat.ckpt --image cat.png --batch 2 --resolution 64",
        arrange=_pictures("cat.png"),
        needs=(*BOTH, "PIL"),
    ),
    "a setting is not known": Situation(
        "predict part.safetensors cat.png",
        arrange=_together(_pictures("cat.png"), _part_of("moga.pth", lambda name: "ema_" not in name)),
        then="predict part.safetensors cat.png --set attn_force_fp32=true",
        needs=IMAGES,
    ),
    "methods and a method": Situation(
        "cam moat.pth cat.png --compare methods --method hirescam -o c.png",
        arrange=_pictures("cat.png"),
        needs=(*IMAGES, "captum"),
    ),
    "stages and a stage": Situation(
        "cam moat.pth cat.png --compare stages --stage 3 -o c.png",
        arrange=_pictures("cat.png"),
        needs=(*IMAGES, "captum"),
    ),
    "no such pictures": Situation(
        "eval moat.pth --data nosuch",
        fill={"--data": "--data val"},
        arrange=_pictures(PICTURE),
        needs=IMAGES,
    ),
    "weights that are not numbers, predict": Situation(
        "predict nan.safetensors cat.png",
        arrange=_together(_pictures("cat.png"), _with_nan("moat.safetensors", "nan.safetensors")),
        code=1,
        needs=IMAGES,
    ),
    "weights that are not numbers, cam": Situation(
        "cam nan.safetensors cat.png -o c.png",
        arrange=_together(_pictures("cat.png"), _with_nan("moat.safetensors", "nan.safetensors")),
        code=1,
        needs=(*IMAGES, "captum"),
    ),
    "weights that are not numbers, eval": Situation(
        "eval nan.safetensors --data val",
        arrange=_together(_pictures(PICTURE), _with_nan("moat.safetensors", "nan.safetensors")),
        code=1,
        needs=IMAGES,
    ),
    "target twice": Situation(
        "cam moat.pth cat.png --target 1 --target 2 --compare stages -o c.png",
        arrange=_pictures("cat.png"),
        then="cam moat.pth cat.png --target 1 --compare stages -o c.png",
        needs=(*IMAGES, "captum"),
    ),
    "target twice, eigencam": Situation(
        "cam moat.pth cat.png --target 1 --target 2 --method eigencam -o c.png",
        arrange=_pictures("cat.png"),
        then="cam moat.pth cat.png --target 1 --method eigencam -o c.png",
        needs=(*IMAGES, "captum"),
    ),
    "calibrated into the source": Situation(
        "calibrate moat.safetensors --data val --images 2 -o moat.safetensors --force",
        arrange=_pictures(PICTURE, "val/n01440764/1.png"),
        fill={"--output": "--output new.safetensors"},
        needs=IMAGES,
    ),
    "folders of no class": Situation(
        "eval moat.pth --data val",
        arrange=_together(_pictures("val/dogs/0.png", "flat/0.png"), _text("labels.txt", "0.png 207\n")),
        then="eval moat.pth --data flat --labels labels.txt",
        needs=IMAGES,
    ),
    "a flat folder": Situation(
        "eval moat.pth --data flat",
        arrange=_together(_pictures("flat/0.png"), _text("labels.txt", "0.png 207\n")),
        then="eval moat.pth --data flat --labels labels.txt",
        needs=IMAGES,
    ),
    "no such labels": Situation(
        "eval moat.pth --data flat --labels nosuch.txt",
        arrange=_together(_pictures("flat/0.png"), _text("labels.txt", "0.png 207\n")),
        fill={"--labels": "--labels labels.txt"},
        needs=IMAGES,
    ),
    "no graphics card": Situation(
        "eval moat.pth --data val --device cuda", arrange=_pictures(PICTURE), needs=IMAGES
    ),
    "a log without network": Situation(
        "logs moganet-xt-224 --offline --mirror https://github.com/W=https://mirror.example/W",
        arrange=_publish(long_log()),
        then="logs moganet-xt-224",
    ),
    "a log that is a web page": Situation(
        "logs moganet-xt-224",
        arrange=_publish("<!DOCTYPE html><html>quota exceeded</html>"),
        between=_publish(long_log()),
        then="logs moganet-xt-224",
    ),
    "a graph has its precision": Situation(
        "parity moat.ckpt --with onnxruntime --dtype float16 --resolution 64",
        needs=GRAPHS,
        slow=True,
        says="leave --dtype out",
    ),
    "a graph of something else": Situation(
        "parity moat.ckpt --converted other.onnx --resolution 64",
        arrange=_other_graph,
        then="export moat.ckpt --to onnx -o m.onnx --resolution 64",
        needs=GRAPHS,
        slow=True,
        says="'ckptkit export ID --to onnx' makes one that does",
    ),
    "a graph for another size": Situation(
        "parity moat.ckpt --converted m.onnx --resolution 96",
        arrange=_ran("export moat.ckpt --to onnx --resolution 64 -o m.onnx"),
        then="parity moat.ckpt --converted m.onnx --resolution 64",
        needs=GRAPHS,
        slow=True,
        says="leave --resolution and --batch as the file has them, or export another one",
    ),
    "a graph without its setting": Situation(
        "parity moga.pth --converted m.onnx --resolution 64",
        arrange=_together(
            _ran(f"export moga.pth {GATE} --to onnx --resolution 64 -o m.onnx"), _without_metadata
        ),
        then=f"parity moga.pth --converted m.onnx --resolution 64 {GATE}",
        needs=GRAPHS,
        slow=True,
        says="say --set attn_force_fp32=true or =false",
    ),
    "no recording": Situation(
        "parity moat.ckpt --with recorded --resolution 64",
        arrange=_recording,
        then="parity moat.ckpt --with recorded --converted outputs.npz",
        needs=TORCH,
    ),
    "a recording and other inputs": Situation(
        "parity moat.ckpt --with recorded --converted outputs.npz --resolution 64 --batch 2",
        arrange=_recording,
        then="parity moat.ckpt --with recorded --converted outputs.npz",
        needs=TORCH,
    ),
    "keras for a graph": Situation(
        "parity moat.ckpt --with keras --converted m.onnx --resolution 64",
        arrange=_ran("export moat.ckpt --to onnx --resolution 64 -o m.onnx"),
        then="parity moat.ckpt --converted m.onnx --resolution 64",
        needs=GRAPHS,
        slow=True,
        says="leave --with out: it is for --with onnxruntime, which takes files ending in .onnx",
    ),
    "a checkpoint for the graph's runtime": Situation(
        "parity moat.ckpt --with onnxruntime --converted moat.pth --resolution 64",
        then="parity moat.ckpt --converted moat.pth --resolution 64",
        needs=BOTH,
    ),
    "a copy of each": Situation(
        "convert pair.pth --to npz -o o.npz",
        arrange=_two_copies,
        then="convert pair.pth --to npz -o o.npz --weights ema",
        needs=TORCH,
    ),
    "a folder named like a graph": Situation(
        "export moat.pth --to hf -o m.onnx", then="export moat.pth --to hf -o m", needs=TORCH
    ),
    "added without saying what it is": Situation(
        "registry add new https://example.org/m.pth --file own.yaml", fill={"FILE": "moat.pth"}
    ),
    "an id that is a variant": Situation("registry pin nosuch --file pins.yaml"),
    "the file to pin is not one": Situation(
        "registry add new https://example.org/m.ckpt --checkpoint moat.ckpt --pin --file own.yaml",
    ),
    "added as something else": Situation(
        "registry add new https://example.org/m.pth --checkpoint moat.pth --layout deeplab2 --file own.yaml",
        then="registry add new https://example.org/m.pth --checkpoint moat.pth --file own.yaml",
    ),
    "private without pushing": Situation(
        "export moat.pth --to hf -o h --private", then="export moat.pth --to hf -o h"
    ),
    "a backbone pushed": Situation(
        "export moat.pth --to backbone -o h --push me/moat",
        then="export moat.pth --to backbone -o h",
        needs=TORCH,
    ),
    # -- what a file holds
    "a folder for each class": Situation(
        "eval ten.pth --data val",
        arrange=_together(
            _ten_classes,
            _ran("convert ten.safetensors --to torch -o ten.pth"),
            _pictures("val/dogs/0.png", "flat/0.png"),
            _text("labels.txt", "0.png 7\n"),
        ),
        then="eval ten.pth --data flat --labels labels.txt",
        needs=IMAGES,
    ),
    "no data": Situation("eval moat.pth"),
    "no data, in Python": Situation(
        "ckptkit.evaluate('moat.pth', [])",
        arrange=_pictures(PICTURE),
        then="ckptkit.evaluate('moat.pth', 'val')",
        python=True,
        needs=IMAGES,
    ),
    "nothing published to draw": Situation(
        "plot --variant tiny-moat0 --y top5 -o p.png",
        then="plot --variant tiny-moat0 --y top1 -o p.png",
        needs=("matplotlib",),
    ),
    "names that Keras does not find": Situation(
        "convert any.npz --layout as-is --to keras -o o.weights.h5",
        then="convert any.npz --layout as-is --to safetensors -o o.safetensors",
    ),
    "no statistics, in Python": Situation(
        "ckptkit.create_model('tiny-moat0', checkpoint='part.safetensors')",
        arrange=_part_of("moat.safetensors", lambda name: "running_" not in name),
        then="ckptkit.create_model('tiny-moat0', checkpoint='part.safetensors', allow_missing_bn=True)",
        python=True,
        needs=TORCH,
    ),
    "tensors are missing, in Python": Situation(
        "ckptkit.create_model('tiny-moat0', checkpoint='part.safetensors')",
        arrange=_part_of("moat.safetensors", lambda name: "stages.0.0" not in name),
        then="ckptkit.create_model('tiny-moat0', checkpoint='part.safetensors', strict=False)",
        python=True,
        needs=TORCH,
    ),
    "a name that leads out of an archive": Situation(
        "convert upwards.safetensors --layout as-is --to npz -o o.npz",
        arrange=lambda: save_file({"../w": np.ones(2, "f4")}, "upwards.safetensors"),
        then="convert upwards.safetensors --layout as-is --to safetensors -o o.safetensors",
    ),
    "a file of nothing": Situation(
        "convert empty.safetensors --layout as-is --to npz -o o.npz",
        arrange=lambda: save_file({}, "empty.safetensors"),
    ),
    "no such prefix": Situation(
        "convert any.npz --strip-prefix nosuch. --layout as-is --to npz -o o.npz", then="inspect any.npz"
    ),
    "one state dict": Situation("inspect any.npz --state-dict nosuch"),
    "a prefix of synthetic weights": Situation(
        "predict tiny-moat0 --synthetic --strip-prefix model. cat.png",
        arrange=_pictures("cat.png"),
        then="predict moat.pth cat.png",
        needs=IMAGES,
    ),
    "averages only": Situation(
        "convert averages.pth --layout as-is --weights raw --to npz -o o.npz",
        arrange=_torch_file("averages.pth", state_dict_ema={"w": np.ones(2, "f4")}),
        needs=TORCH,
    ),
    "a state dict and the other copy": Situation(
        "convert two.pth --state-dict state_dict --weights ema --layout as-is --to npz -o o.npz",
        arrange=_torch_file(
            "two.pth", state_dict={"w": np.zeros(2, "f4")}, state_dict_ema={"w": np.ones(2, "f4")}
        ),
        then="convert two.pth --state-dict state_dict --layout as-is --to npz -o o.npz",
        needs=TORCH,
    ),
    "a type that no model has": Situation(
        "convert opaque.safetensors --to safetensors -o o.safetensors",
        arrange=_opaque("moat.safetensors", "opaque.safetensors"),
    ),
    "tensors of another model": Situation(
        "convert more.safetensors --to npz -o o.npz",
        arrange=_with_another("moat.safetensors", "more.safetensors"),
    ),
    "two of one name": Situation(
        "convert both.safetensors --to safetensors -o o.safetensors",
        arrange=_two_of_one_name,
        then="convert both.safetensors --to safetensors -o o.safetensors --layout as-is",
    ),
    "of a registry that is named": Situation(
        f"inspect {ID} --registry other.yaml",
        arrange=_together(_registry("other.yaml"), lambda: _PATCHES.delenv("CKPTKIT_REGISTRY")),
    ),
    "of another entry": Situation(
        f"convert {ID} --to npz -o o.npz --registry other.yaml",
        arrange=_together(
            _registry("other.yaml", pos_emb=False, **_pinned(_published_sha256)),
            _ran(f"fetch {ID} --registry other.yaml"),
        ),
    ),
    "two into one": Situation(
        "convert a/moat.pth b/moat.pth --to npz -o out/",
        arrange=_together(
            _folder("a", "b"), _copy("moat.pth", "a/moat.pth"), _copy("moat.pth", "b/moat.pth")
        ),
        then="convert a/moat.pth --to npz --output a.npz",
    ),
    "the file has averages": Situation(
        "convert averages.safetensors --weights raw --to npz -o o.npz",
        arrange=_ran(
            "synth moganet-xt --ema -o ema.pth",
            f"convert ema.pth {GATE} --weights ema --to safetensors -o averages.safetensors",
        ),
    ),
    "an average is missing": Situation(
        f"convert part.safetensors {GATE} --weights raw --to npz -o o.npz",
        arrange=_together(
            _ran("synth moganet-xt --ema -o ema.pth"),
            _part_of("ema.pth", lambda name: name != "ema_backbone_blocks1_0_attn_gate_weight"),
        ),
        then=f"convert part.safetensors {GATE} --weights ema --to npz -o o.npz",
    ),
    "a type that npz lacks": Situation(
        "convert moat.safetensors --dtype bfloat16 --to npz -o o.npz",
        then="convert moat.safetensors --dtype float32 --to npz -o o.npz",
    ),
    # -- names
    "a graph's format": Situation(
        "convert moat.pth --to onnx", needs=GRAPHS, slow=True, says="Run: ckptkit export moat.pth --to onnx"
    ),
    "a graph's name": Situation(
        "convert moat.pth -o o.onnx",
        needs=GRAPHS,
        slow=True,
        says="Run: ckptkit export moat.pth --to onnx -o o.onnx",
    ),
    "a whole model's name": Situation(
        "convert moat.pth -o o.keras",
        needs=BOTH,
        slow=True,
        says="'ckptkit export moat.pth --to keras -o o.keras' writes one; "
        "for the weights alone give -o o.weights.h5",
    ),
    "a name that says nothing": Situation("convert moat.pth -o moat.xyz", fill={"--to": "--to npz"}),
    "a name that says another format": Situation("convert moat.pth --to torch -o o.npz"),
    "another format than published": Situation(
        "synth tiny-moat0 -o o.npz", then="synth tiny-moat0 -o o.ckpt"
    ),
    # -- exports
    "a backbone of another type": Situation(
        "export moat.pth --to backbone --dtype float16 -o b", needs=TORCH
    ),
    "a folder named like a file": Situation(f"export moga.pth {GATE} --to backbone -o b.pth", needs=TORCH),
    "a backbone that nothing takes": Situation(
        f"export moga.pth {GATE} --to backbone -o b",
        arrange=lambda: _PATCHES.setattr(MogaNet, "consumer", None),
        needs=TORCH,
    ),
    "synthetic weights pushed": Situation(
        "export moat.pth --to hf -o h --push me/moat --dry-run",
        arrange=lambda: _PATCHES.setenv("HF_TOKEN", "hf_x"),
        needs=(*TORCH, "huggingface_hub"),
    ),
    "an export to nothing": Situation("export moat.pth -o folder", needs=TORCH),
    "a folder without config": Situation(
        "ckptkit.create_model('empty')",
        arrange=_folder("empty"),
        then="ckptkit.create_model('tiny-moat0', checkpoint='moat.pth')",
        python=True,
        needs=TORCH,
    ),
    "a config of others": Situation(
        "ckptkit.create_model('theirs')",
        arrange=_together(_folder("theirs"), _text("theirs/config.json", '{"model_type": "bert"}')),
        then="ckptkit.create_model('tiny-moat0', checkpoint='moat.pth')",
        python=True,
        needs=TORCH,
    ),
    # -- pictures
    "nothing on standard input": Situation(
        "predict moat.pth -",
        arrange=_together(_pictures("cat.png"), lambda: _PATCHES.setattr(sys, "stdin", None)),
        then="predict moat.pth cat.png",
        needs=IMAGES,
    ),
    # -- what is trusted
    "pinned and trusted differ": Situation(
        f"registry pin {ID} --file pins.yaml",
        arrange=_together(_ran(f"fetch {ID}"), _trust_other_bytes),
    ),
    "pinned otherwise": Situation(
        f"registry pin {ID} --file pins.yaml --registry other.yaml",
        arrange=_together(_ran(f"fetch {ID}"), _registry("other.yaml", **_pinned("ab" * 32))),
    ),
    "added with another checksum": Situation(
        f"registry add {ID} https://example.org/m.ckpt --checkpoint published.tar.gz --pin --file own.yaml "
        "--registry other.yaml --registry own.yaml",
        arrange=_together(_registry("other.yaml", **_pinned("ab" * 32)), _text("own.yaml", "entries: []\n")),
    ),
    "pinned from the lesser upload": Situation(
        f"registry pin {ID} --file pins.yaml",
        arrange=_together(
            _without_statistics,
            _registry("lesser.yaml", lesser="lesser.tar.gz"),
            lambda: _PATCHES.setenv("CKPTKIT_REGISTRY", "lesser.yaml"),
            _ran(f"import {ID} lesser.tar.gz"),
        ),
    ),
    "the installed registry": Situation(
        f"registry pin {ID}",
        arrange=_together(
            _ran(f"fetch {ID}"),
            lambda: _PATCHES.delenv("CKPTKIT_REGISTRY"),
            lambda: _PATCHES.setattr(
                sys.modules["ckptkit.registry.loading"], "in_source_tree", lambda: False
            ),
        ),
        fill={"FILE": "own.yaml"},
        then=f"registry pin {ID} --file own.yaml",
    ),
    "damaged, and offline": Situation(
        f"fetch {ID} --offline --mirror file://=https://",
        arrange=_together(_ran(f"fetch {ID}"), _damage),
        then=f"fetch {ID}",
    ),
    "other bytes than before": Situation(
        f"fetch {ID}",
        arrange=_together(_ran(f"fetch {ID}", f"cache rm {ID}"), _publish_anew),
    ),
    "an entry by number": Situation(
        "ckptkit.registry()[3]", then="ckptkit.registry()['moat0-224']", python=True
    ),
    # -- one of several, or of a form
    "a format": Situation("convert any.npz --to nosuch --layout as-is -o out/", wrong="nosuch"),
    "a format, nearly": Situation("convert any.npz --to pytroch --layout as-is -o out/", wrong="pytroch"),
    "a number type": Situation("convert moat.pth --dtype nosuch --to npz -o o.npz", wrong="nosuch"),
    "a layout": Situation("convert moat.pth --layout nosuch --to npz -o o.npz", wrong="nosuch"),
    "a variant, nearly": Situation("synth mogant-xt -o s.pth", wrong="mogant-xt"),
    "an age": Situation("cache prune --older-than nosuch", wrong="nosuch"),
    "a size of the cache": Situation("cache prune --max-size nosuch", wrong="nosuch"),
    "a size of shards": Situation(
        "convert moat.pth --to safetensors --max-shard-size nosuch -o out/", wrong="nosuch"
    ),
    "a share": Situation("verify moat.pth --shard nosuch", wrong="nosuch"),
    "a share of one file": Situation(
        "convert moat.pth --to safetensors -o out/ --shard 1/2",
        fill={"--max-shard-size": "--max-shard-size 5MB"},
    ),
    "a share for a store": Situation(
        "convert moat.pth -o s3://bucket/moat.safetensors --max-shard-size 5MB --shard 1/2",
        then="convert moat.pth --output out/moat.safetensors --max-shard-size 5MB --shard 1/2",
    ),
    "columns": Situation("list --columns nosuch", wrong="nosuch"),
    "a setting without its value": Situation(
        "convert moga.pth --set attn_force_fp32 --to npz -o o.npz",
        then=f"convert moga.pth {GATE} --to npz -o o.npz",
    ),
    "an input size": Situation("convert moat.pth --resolution nosuch --to npz -o o.npz", wrong="nosuch"),
    "a picture's size": Situation(
        "plot --family moat --size nosuch -o p.png", wrong="nosuch", needs=("matplotlib",)
    ),
    "a count": Situation("list --min-params nosuch", wrong="nosuch"),
    "a percentage": Situation("list --min-top1 nosuch", wrong="nosuch"),
    "a side": Situation("list --resolution 3x4", wrong="3x4"),
    "a rate": Situation(f"fetch {ID} --limit-rate nosuch", wrong="nosuch"),
    "a mirror": Situation(f"fetch {ID} --mirror nosuch", wrong="nosuch"),
    "a repository": Situation(
        "export moat.pth --to hf -o h --push nosuch --push-synthetic --dry-run",
        arrange=lambda: _PATCHES.setenv("HF_TOKEN", "hf_x"),
        wrong="nosuch",
        needs=(*TORCH, "huggingface_hub"),
    ),
    "a device": Situation(
        "eval moat.pth --data val --device nosuch", arrange=_pictures(PICTURE), wrong="nosuch", needs=IMAGES
    ),
    "a heat map's ending": Situation(
        "cam moat.pth cat.png -o c.xyz", arrange=_pictures("cat.png"), wrong=".xyz", needs=(*IMAGES, "captum")
    ),
    "a picture's ending": Situation("plot --family moat -o p.xyz", wrong=".xyz", needs=("matplotlib",)),
    "a measure": Situation("plot --family moat --x nosuch -o p.png"),
    "a command, nearly": Situation("conver moat.pth --to npz -o o.npz", wrong="conver"),
    "an option, nearly": Situation("list --famly moat", wrong="--famly"),
    "an id, nearly": Situation("fetch tiny-moat0-25", wrong="tiny-moat0-25"),
    "one of two state dicts": Situation(
        "inspect two.pth",
        arrange=_torch_file("two.pth", student={"w": np.zeros(2, "f4")}, teacher={"w": np.ones(2, "f4")}),
        then="inspect two.pth --state-dict student",
        needs=TORCH,
    ),
    # -- hints made of parts
    "a range of shards": Situation(
        "eval moat.pth --data 'shard-{9..1}.tar'",
        arrange=_two_shards,
        then="eval moat.pth --data 'shard-{0..1}.tar'",
        needs=IMAGES,
    ),
    "tensors that cannot be read": Situation(
        "convert objects.npz --layout as-is --to npz -o o.npz",
        arrange=_together(
            _arrays("objects.npz", a=np.ones(2, "f4"), b=np.array([None])),
            _text(
                "ignoring.yaml",
                "rules: [{source: a, target: a, op: identity}]\nignore: [{name: b, pattern: b, reason: x}]\n",
            ),
        ),
        then="convert objects.npz --rules ignoring.yaml --to npz -o o.npz",
    ),
    "no such case": Situation("parity --case nosuch.yaml", _cases, fill={"--case": "--case good.yaml"}),
    "a recording without outputs": Situation("parity --case empty.yaml", _cases, then="record --emit r.py"),
    "record what": Situation("record", then="record --emit r.py"),
    "the recorder in no file": Situation("record --emit -", then="record --emit recorder.py"),
    "the recorder of a side": Situation("record --emit r.py --side left", then="record --emit r.py"),
    "a registry with remarks in it": Situation(
        f"registry add {ID} https://example.org/m.tar.gz --file own.yaml --force",
        arrange=_text(
            "own.yaml",
            f"entries:\n- id: {ID}\n  sources:\n  - url: https://example.org/a.tar.gz\n  # the slow one\n"
            "  - url: https://example.org/b.tar.gz\n",
        ),
    ),
    "imported, but of another model": Situation(f"import {ID} moga.pth"),
    "imported, with other bytes than before": Situation(
        f"import {ID} published.tar.gz",
        arrange=_together(_ran(f"fetch {ID}", f"cache rm {ID}"), _publish_anew),
    ),
}

CANNOT_ARISE_HERE: Mapping[str, str] = {
    "run the same command again with --force": "a store that keeps other bytes than were sent",
    "either may be the wrong one.": "another process that fetches other bytes in the same moment",
    "leave --amp out": "a graphics card whose half precision overflows",
    "write it like {scheme}://bucket/file": "a bucket to write to",
    "all need the same --data and --limit": "several processes that torchrun started",
    "try a smaller --batch": "memory that runs out",
    "choose another --opset, or update torch and onnxscript": "an exporter that makes another operator set",
    "try another --opset, or other versions of torch and onnxscript": "an exporter that fails on our models",
}
"""Hints (a part of their words) that no test can bring about on any machine, and why."""

_PATCHES = pytest.MonkeyPatch()
"""What situations change in the process, undone after each."""

_TRIED: set[str] = set()
"""Situations that this process has brought about."""

_PRINTED: set[str] = set()
"""Every hint that a situation printed."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """One folder with small checkpoints of both families, made once."""
    from ckptkit.models.synth import Synthetic, synthetic_for, write_checkpoint

    folder = tmp_path_factory.mktemp("hints")
    write_checkpoint(Synthetic("tiny-moat0"), folder / "moat.ckpt")
    for to, name in (("torch", "moat.pth"), ("safetensors", "moat.safetensors")):
        ckptkit.convert(folder / "moat.ckpt", to=to, output=folder / name)
    write_checkpoint(Synthetic("moganet-xt", layout="openmixup"), folder / "moga.pth")
    np.savez(folder / "any.npz", **{"a/0/w": np.ones((2, 3), "f4"), "a/1/w": np.zeros(2, "f4")})
    (folder / "rules.yaml").write_text('rules:\n  - {source: "a/{i}/w", target: "b.{i}.w", op: identity}\n')
    entry = load_registry()["tiny-moat0-256"]
    archive = write_checkpoint(synthetic_for(entry), folder / "published.tar.gz")
    (folder / "mine.yaml").write_text(
        f"entries:\n- id: {entry.id}\n  sources: [{{url: '{archive.as_uri()}', bn_statistics: true}}]\n"
        "- {id: contained, family: moganet, variant: moganet-xt, display_name: MogaNet, layout: torch, "
        "format: torch, serves: container, sources: [{url: 'https://example.org/contained.pth'}]}\n"
    )
    return folder


@pytest.fixture
def _here(ground, tmp_path, monkeypatch):
    """A copy of the ground, by hard links, as the current folder."""
    here = tmp_path / "here"
    shutil.copytree(ground, here, copy_function=os.link)
    monkeypatch.chdir(here)
    monkeypatch.setenv("CKPTKIT_REGISTRY", str(here / "mine.yaml"))
    monkeypatch.setenv("CKPTKIT_MIRROR", f"https://github.com={(here / 'published').as_uri()}")
    with models_here():
        yield
    _PATCHES.undo()
    monkeypatch.chdir(ground)
    shutil.rmtree(here)
    shutil.rmtree(os.environ["CKPTKIT_HOME"], ignore_errors=True)


@pytest.fixture
def failing(capsys, monkeypatch) -> Iterator[Callable[[Situation], str]]:
    """Run what must fail; returns the hint it gave."""
    made: list[tuple[CkptkitError, str | None]] = []
    plain = CkptkitError.__init__

    def recorded(self: CkptkitError, *args: object, **options: object) -> None:
        plain(self, *args, **options)
        made.append((self, self.hint))

    monkeypatch.setattr(CkptkitError, "__init__", recorded)

    def run(situation: Situation) -> str:
        made.clear()
        if situation.python:
            with pytest.raises(CkptkitError) as raised:
                exec(situation.command, {"ckptkit": ckptkit})
            assert raised.value.hint, f"no hint was given: {raised.value}"
            _PRINTED.update(hint for error, hint in made if error is raised.value and hint)
            return raised.value.hint
        done = runner(capsys)(*shlex.split(situation.command))
        assert done.code not in (0, 1), done.out + done.err
        hints = [error.hint for error, _ in made if error.hint and error.hint in done.err]
        assert hints, f"no hint was printed: {done.err}"
        return max(hints, key=len)

    yield run


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if situation.slow else ())
        for name, situation in SITUATIONS.items()
    ],
)
def test_the_hint_helps(name, failing, capsys):
    situation = SITUATIONS[name]
    for package in situation.needs:
        pytest.importorskip(package)
    _TRIED.add(name)
    if situation.arrange:
        situation.arrange()
    hint = failing(situation)
    _PRINTED.add(hint)
    assert situation.says in (None, hint)
    if situation.python and situation.then:
        exec(situation.then, {"ckptkit": ckptkit})
        return
    advised = advice(situation, hint)
    assert advised, f"nothing to follow in: {hint}"
    if situation.between:
        situation.between()
    for words in advised:
        done = runner(capsys)(*words)
        assert done.code == situation.code, f"{shlex.join(words)}\n{done.out}{done.err}"


def advice(situation: Situation, hint: str) -> list[list[str]]:
    """The commands that a hint advises, as argument lists without ``ckptkit``."""
    for word, value in situation.fill.items():
        hint = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", value, hint)
    if situation.then is not None:
        known = set(re.findall(r"--[a-z][a-z-]*", f"{hint} {situation.command}"))
        unknown = set(re.findall(r"--[a-z][a-z-]*", situation.then)) - known
        assert not unknown, f"the hint says nothing of {unknown}: {hint}"
        assert situation.then.split()[0] in f"{hint.replace(chr(39), ' ')} {situation.command}".split(), hint
        return [shlex.split(situation.then)]
    failed = shlex.split(situation.command)
    if situation.wrong is not None:
        right = re.search(
            r"(?:one of|like|end it with|choose from|the name in|name it|did you mean) ([^\s,;?]+)", hint
        )
        assert right, f"nothing to put in the place of {situation.wrong}: {hint}"
        assert any(situation.wrong in word for word in failed)
        return [[word.replace(situation.wrong, right[1].strip("'")) for word in failed]]
    commands = re.findall(r"'ckptkit ([^']+)'|^ckptkit ([^;,]+)|: ckptkit (.+)$", hint)
    found = [shlex.split(" ".join(words)) for words in commands]
    for left_out in re.findall(r"(?:leave|without) (--[a-z-]+)", hint):
        found.append(_without(failed, left_out))
    if not found:
        for option, value in re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)(?:[ =]([^\s;,]+))?", hint):
            takes_value = (
                bool(value) and option not in _FLAGS and value not in ("to", "if", "and", "or", "out")
            )
            found.append([*_without(failed, option), option, *([value] if takes_value else [])])
    return found


def _without(words: list[str], option: str) -> list[str]:
    """A command without an option and, unless another option follows, its value."""
    kept: list[str] = []
    skip = False
    for number, word in enumerate(words):
        if word == option:
            following = words[number + 1] if number + 1 < len(words) else "-"
            skip = not following.startswith("-") and option not in _FLAGS
        elif word.startswith(option + "="):
            continue
        elif skip:
            skip = False
        else:
            kept.append(word)
    return kept


_FLAGS = frozenset({"--no-head", "--offline", "--force", "--pin", "--amp"})


def test_every_hint_is_followed():
    """A hint in the source that names a command or an option is one that a situation printed."""
    if not {name for name, situation in SITUATIONS.items() if not situation.slow} <= _TRIED:
        pytest.skip("some situations were not tried: a package is missing, or they were not selected")
    printed = _PRINTED | {one.says for one in SITUATIONS.values() if one.says is not None}
    hints = hints_in_the_source()
    missing = [
        f"{where}: {pattern}"
        for where, value in hints
        for pattern in patterns(value)
        if _CAN_BE_FOLLOWED.search(pattern.replace("\\", ""))
        and not any(re.fullmatch(pattern, hint, re.DOTALL) for hint in printed)
        and not any(part in ast.unparse(value) for part in CANNOT_ARISE_HERE)
    ]
    assert not missing, "\n".join(missing)
    sources = [ast.unparse(value) for _, value in hints]
    assert not [part for part in CANNOT_ARISE_HERE if not any(part in source for source in sources)]


_CAN_BE_FOLLOWED = re.compile(
    r"ckptkit (?!does)[a-z]|--[a-z]|pip install|command\("
    "|one of [^t]|write it like|end it with|choose[ _]from|name it "
)


def hints_in_the_source() -> list[tuple[str, ast.expr]]:
    """Every hint of the package that can be followed.

    Those are each ``hint=…``, what is assigned to a variable that is given so, and every call of `command`.
    """
    found = []
    for path in sorted((REPOSITORY / "ckptkit").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        hints = [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "hint"]
        names = {hint.id for hint in hints if isinstance(hint, ast.Name)}
        hints += [
            node.value
            for node in nodes
            if isinstance(node, ast.Assign)
            and names & {target.id for target in node.targets if isinstance(target, ast.Name)}
        ]
        inside = {id(part) for hint in hints for part in ast.walk(hint)}
        hints += [
            node
            for node in nodes
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) == "command"
            and path.name != "errors.py"
            and id(node) not in inside
        ]
        found += [
            (f"{path.relative_to(REPOSITORY)}:{hint.lineno}", hint)
            for hint in hints
            if _CAN_BE_FOLLOWED.search(ast.unparse(hint))
        ]
    return found


def patterns(value: ast.expr) -> list[str]:
    """Regular expressions for the texts that an expression can give."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "replace":
        return patterns(value.func.value)
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "command":
        words = [str(w.value) if isinstance(w, ast.Constant) else None for w in value.args]
        return ["[^:]*: ckptkit " + " ".join(".*" if word is None else re.escape(word) for word in words)]
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "choose_from":
        return ["choose from .*"]
    if isinstance(value, ast.IfExp):
        return [*patterns(value.body), *patterns(value.orelse)]
    if isinstance(value, ast.BinOp):
        return [a + b for a in patterns(value.left) for b in patterns(value.right)]
    if isinstance(value, ast.JoinedStr):
        return [
            "".join(parts)
            for parts in itertools.product(
                *(patterns(p.value if isinstance(p, ast.FormattedValue) else p) for p in value.values)
            )
        ]
    if isinstance(value, ast.Constant):
        return [re.escape(str(value.value))]
    return [".*"]
