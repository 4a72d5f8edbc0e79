"""Steps of DeepSpeed's ZeRO put together by hand, from what its engine and optimizers save.

Nothing here uses ckptkit's own encoders, and nothing imports torch or DeepSpeed.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.support.dcp_files import STORAGES, mapping, size
from tests.support.torch_files import call, name, number, storage, tensor, text, whole

Arrays = Mapping[str, "np.ndarray"]


class TorchSave:
    """One file of torch.save, whose tensors have a storage each."""

    def __init__(self) -> None:
        self._storages: list[bytes] = []

    def tensor(self, array: np.ndarray, *, shape: tuple[int, ...] | None = None, dtype: str = "") -> bytes:
        """A tensor; ``shape`` where it is less than its storage."""
        array = np.array(array, order="C")
        kind = STORAGES[dtype or array.dtype.name]
        store = storage(str(len(self._storages)), kind, array.size)
        self._storages.append(array.tobytes())
        sizes = array.shape if shape is None else shape
        strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
        return tensor(store=store, shape=sizes, strides=tuple(strides))

    def file(self, fragment: bytes) -> bytes:
        raw = io.BytesIO()
        with zipfile.ZipFile(raw, "w") as archive:
            records = {"data.pkl": whole(fragment), "byteorder": b"little"}
            records |= {f"data/{key}": held for key, held in enumerate(self._storages)}
            records["version"] = b"3\n"
            for key, held in records.items():
                archive.writestr(zipfile.ZipInfo(f"archive/{key}", (1980, 1, 1, 0, 0, 0)), held)
        return raw.getvalue()


def listed(values: Sequence[bytes]) -> bytes:
    return b"](" + b"".join(values) + b"e"


def named(values: Mapping[str, bytes]) -> bytes:
    return mapping([(text(key), value) for key, value in values.items()])


@dataclass
class Step:
    """A step: change what should be wrong, then ask for its files."""

    stage: int
    ranks: int
    groups: Sequence[Arrays]
    buffers: Arrays = field(default_factory=dict)
    frozen: Arrays = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    other: Arrays = field(default_factory=dict)  # in the model alone
    prefix: str = ""
    lean: bool = True  # the optimizer's padding is left out, as stages 1 and 2 do it
    state: Mapping[str, bytes] = field(default_factory=dict)  # of the optimizer, beside the usual
    model: Mapping[str, bytes] = field(default_factory=dict)
    align: int = 2

    def _cut_groups(self, rank: int) -> list[tuple[np.ndarray, int]]:
        """Stages 1 and 2: the part of a rank in every group, and how much of it is not padding."""
        parts = []
        for group in self.groups:
            flat = np.concatenate([array.reshape(-1) for array in group.values()]).astype("f4")
            length = -(-flat.size // (self.align * self.ranks)) * self.align
            padded = np.concatenate([flat, np.full(length * self.ranks - flat.size, 99, "f4")])
            used = min(max(flat.size - rank * length, 0), length) if self.lean else length
            parts.append((padded[rank * length : (rank + 1) * length], used))
        return parts

    def _cut_parameters(self, rank: int, group: Arrays) -> np.ndarray:
        """Stage 3: the part of a rank in every parameter, one after the other."""
        parts = []
        for array in group.values():
            length = -(-array.size // self.ranks)
            padded = np.concatenate([array.reshape(-1), np.full(length * self.ranks - array.size, 99)])
            parts.append(padded[rank * length : (rank + 1) * length].astype("f4"))
        return np.concatenate(parts)

    def optimizer(self, rank: int) -> bytes:
        file = TorchSave()
        stage = call("deepspeed.runtime.zero.config", "ZeroStageEnum", number(self.stage))
        if self.stage == 3:
            flats = listed([file.tensor(self._cut_parameters(rank, group)) for group in self.groups])
        else:
            flats = listed([file.tensor(part, shape=(used,)) for part, used in self._cut_groups(rank)])
        key = "fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups"
        count = number(self.ranks) if self.stage == 3 else listed([number(self.ranks)] * len(self.groups))
        scaler = (
            name("deepspeed.runtime.fp16.loss_scaler", "LossScaler")
            + b")\x81"
            + named({"x": number(1)})
            + b"b"
        )
        state = {
            "zero_stage": stage,
            "loss_scaler": scaler,
            "partition_count": count,
            key: flats,
            **self.state,
        }
        state["exp_avg"] = file.tensor(np.zeros(5, "f4"))
        return file.file(named({"optimizer_state_dict": named(state), "ds_version": text("0.19.8")}))

    def module(self, rank: int) -> bytes:
        file = TorchSave()
        held: dict[str, bytes] = {}
        if self.stage < 3:
            trained = {key: array for group in self.groups for key, array in group.items()}
            for key, array in {**trained, **self.frozen}.items():
                held[key] = file.tensor(array.astype("f2"))
            held |= {key: held[of] for key, of in self.shared.items()}
        held |= {key: file.tensor(array) for key, array in {**self.buffers, **self.other}.items()}
        fragments = {}
        for key, array in self.frozen.items():
            length = -(-array.size // self.ranks)
            padded = np.concatenate(
                [array.reshape(-1), np.zeros(length * self.ranks - array.size, array.dtype)]
            )
            part = padded[rank * length : (rank + 1) * length]
            fragments[key] = file.tensor(part if self.stage == 3 else array)
        shapes = [named({key: size(one.shape) for key, one in group.items()}) for group in self.groups]
        values = {
            "module": call("collections", "OrderedDict") + named(held)[1:],
            "buffer_names": listed([text(key) for key in self.buffers]),
            "param_shapes": listed(shapes),
            "frozen_param_shapes": named({key: size(array.shape) for key, array in self.frozen.items()}),
            "shared_params": named({key: text(of) for key, of in self.shared.items()}),
            "frozen_param_fragments": named(fragments),
            "global_steps": number(5),
            "ds_version": text("0.19.8"),
            **self.model,
        }
        return file.file(named(values))

    def files(self) -> dict[str, bytes]:
        """Names and contents."""
        files = {}
        for rank in range(self.ranks):
            files[f"{self.prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"] = self.optimizer(rank)
            if self.stage == 3:
                files[f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"] = self.module(rank)
        if self.stage < 3:
            files["mp_rank_00_model_states.pt"] = self.module(0)
        return files

    def write(self, folder: Path, tag: str = "global_step5") -> Path:
        """Write them as a run does; returns the step."""
        step = folder / tag
        step.mkdir(parents=True, exist_ok=True)
        for file, raw in self.files().items():
            (step / file).write_bytes(raw)
        (folder / "latest").write_text(tag)
        (folder / "zero_to_fp32.py").write_text("# a script")
        return step
