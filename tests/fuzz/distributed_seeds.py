"""Seeds of what trainings on many ranks save: folders of torch.distributed, and steps of DeepSpeed's ZeRO."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np

from tests.fuzz.layers import Layer, Seed, arrays, member_layers, raw_layers, stored_zip, whole, written
from tests.support.dcp_files import Dcp, path, saved, saved_array
from tests.support.deepspeed_files import Step
from tests.support.torch_files import number, storage, tensor
from tests.support.torch_files import whole as pickled

W = np.arange(24, dtype="float32").reshape(4, 6)
GRID = [(slice(0, 1), slice(0, 4)), (slice(0, 1), slice(4, 6)), (slice(1, 4), slice(0, 6))]


def _made(content: bytes | None = None) -> Dcp:
    keys = (("model", "w"), ("model", "b"), ("optim", "m"))
    made = Dcp(paths={".".join(one): path(*one) for one in keys})
    made.add("model.w", W, GRID, files=2)
    made.add("model.b", W[0])
    made.add("optim.m", W)
    made.objects["step"] = saved(pickled(number(7)))
    if content is not None:
        made.tensors["model.w"][1][1].content = content
    return made


def dcp_seeds() -> Iterator[Seed]:
    """A checkpoint of two ranks, and one that ckptkit wrote."""
    files = _made().files()
    chunk = pickled(tensor(store=storage(count=2), shape=(1, 2), strides=(2, 1)))
    whole_chunk = saved_array(W[:1, 4:])

    def around(damaged: bytes) -> Mapping[str, bytes]:
        return _made(damaged).files()

    def with_pickle(damaged: bytes) -> Mapping[str, bytes]:
        return _made(saved(damaged, W[:1, 4:].tobytes())).files()

    layers = [
        *raw_layers(files),
        *[Layer(".metadata", files[".metadata"], whole, "pickle")] * 5,
        Layer("", chunk, whole, "pickle", with_pickle),
        Layer("", whole_chunk, whole, "", around),
    ]
    yield Seed("dcp", "two ranks", files, ".", layers)
    files = written("dcp", arrays(), "m", max_shard_size=200)
    layers = [*raw_layers(files), *[Layer(".metadata", files[".metadata"], whole, "pickle")] * 4]
    yield Seed("dcp", "written by ckptkit", files, ".", layers)


def deepspeed_seeds() -> Iterator[Seed]:
    """Steps of stages 2 and 3."""
    groups = [{"a.w": W, "a.b": W[0]}, {"scale": np.array(2.5, "float32")}]
    more = {"buffers": {"m": W[1].astype("float16")}, "frozen": {"f": W[:1]}, "shared": {"tied": "a.w"}}
    for stage in (2, 3):
        files = Step(stage, 2, groups, **more).files()
        layers = raw_layers(files)
        for name, raw in files.items():
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                members = {one: archive.read(one) for one in archive.namelist()}
            own = member_layers(name, members, stored_zip, {"archive/data.pkl": "pickle"})
            layers += [own[0]] * 4 + own
        yield Seed("deepspeed", f"stage {stage}", files, ".", layers)


DISTRIBUTED = {"dcp": dcp_seeds, "deepspeed": deepspeed_seeds}
