"""Several processes evaluating one set of images together, as ``torchrun`` starts them.

Process r of W takes images r, r + W, …, so each image is taken once and none is padded. A process that
fails says so in the rendezvous store, which all look into between batches: none waits for one that is gone.
Results are added up as integers by ``all_reduce``: nccl where the processes have GPUs, else gloo.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ckptkit.base import errors
from ckptkit.base.errors import CkptkitError, UsageError
from ckptkit.base.tensors import Array

if TYPE_CHECKING:
    from ckptkit.models import Framework

_POLL_S = 0.02
_FAREWELL_S = 60.0
"""How long a process that failed waits until the first one has reported it."""
_BEFORE_LEAVING_S = 0.5
_FAILURE, _REPORTED = "failure", "reported"


def world_of_environment() -> tuple[int, int]:
    """Rank and number of processes from ``torchrun``'s RANK and WORLD_SIZE; (0, 1) without them."""
    texts = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not all(text.isdigit() for text in texts) or int(texts[0]) >= int(texts[1]):
        raise UsageError(f"RANK is {texts[0]!r} and WORLD_SIZE {texts[1]!r}", hint="let torchrun set them")
    return int(texts[0]), int(texts[1])


class Group:
    """One process among those that evaluate together; alone by default."""

    def __init__(self, rank: int = 0, world: int = 1, store: Any = None, device: str = "cpu") -> None:
        self.rank = rank
        self.world = world
        self._store = store
        self._device = device
        self._turn = 0

    def share(self, positions: Sequence[int]) -> Sequence[int]:
        """Of these images, the ones this process takes."""
        return positions[self.rank :: self.world]

    def check(self) -> None:
        """Raise what another process failed with, if one did."""
        if self.world == 1:
            return
        with self._plain_store_errors():
            if not self._store.check([_FAILURE]):
                return
            found = json.loads(self._store.get(_FAILURE))
        if found["rank"] != self.rank:
            raise _rebuilt(found)

    def all_gather(self, value: str) -> list[str]:
        """Exchange a text with the others; gives everybody's, by rank."""
        if self.world == 1:
            return [value]
        self._turn += 1  # all processes exchange in the same order
        keys = [f"gather/{self._turn}/{rank}" for rank in range(self.world)]
        with self._plain_store_errors():
            self._store.set(keys[self.rank], value)
            self._await(keys)
            return [self._store.get(one).decode() for one in keys]

    def broadcast(self, value: str) -> str:
        """Get the first process's text."""
        if self.world == 1:
            return value
        self._turn += 1
        key = f"broadcast/{self._turn}"
        with self._plain_store_errors():
            if self.rank == 0:
                self._store.set(key, value)
            self._await([key])
            return str(self._store.get(key).decode())

    def _await(self, keys: list[str]) -> None:
        while not self._store.check(keys):
            self.check()
            time.sleep(_POLL_S)

    def all_reduce(self, numbers: Array) -> Array:
        """Add up everybody's integers."""
        import torch
        import torch.distributed as dist

        total = torch.from_numpy(numbers).to(self._device)
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        summed: Array = total.cpu().numpy()
        return summed

    def leave(self) -> None:
        """Leave when the work is done; the first process, which may hold the store, is the last one."""
        with self._plain_store_errors():
            if self.rank:
                self._store.set(f"left/{self.rank}", "")
            else:
                self._await([f"left/{rank}" for rank in range(1, self.world)])

    def fail(self, error: BaseException) -> None:
        """Tell the others that this process gives up; returns when the first one knows."""
        if self.world == 1:
            return
        with contextlib.suppress(RuntimeError):  # the store is gone: so are the others
            if not self._store.check([_FAILURE]):
                self._store.set(_FAILURE, json.dumps(_described(error, self.rank)))
            if self.rank == 0:
                self._store.set(_REPORTED, "")
                return
            end = time.monotonic() + _FAREWELL_S
            while time.monotonic() < end and not self._store.check([_REPORTED]):
                time.sleep(_POLL_S)
            time.sleep(_BEFORE_LEAVING_S)  # torchrun ends all when one ends, before the first has spoken

    @contextlib.contextmanager
    def _plain_store_errors(self) -> Iterator[None]:
        """Without the store another process is gone, which has reported why."""
        try:
            yield
        except RuntimeError as error:
            raise CkptkitError(
                "another process of this evaluation has stopped",
                hint="see its error, then run the same command again to resume",
            ) from error


def _described(error: BaseException, rank: int) -> dict[str, Any]:
    kind = type(error).__name__ if isinstance(error, CkptkitError) else ""
    message = error.message if isinstance(error, CkptkitError) else f"{type(error).__name__}: {error}"
    return {
        "rank": rank,
        "kind": kind,
        "message": message,
        "hint": getattr(error, "hint", None),
        "interrupted": isinstance(error, KeyboardInterrupt),
    }


def _rebuilt(found: dict[str, Any]) -> BaseException:
    """Make the error of another process again, of the same class, so that it returns the same exit code."""
    if found["interrupted"]:
        return KeyboardInterrupt()
    kind = getattr(errors, found["kind"], CkptkitError)
    error: CkptkitError = kind.__new__(kind)
    CkptkitError.__init__(error, f"process {found['rank']}: {found['message']}", hint=found["hint"])
    return error


@contextlib.contextmanager
def process_group(device: str = "auto", framework: Framework = "torch") -> Iterator[Group]:
    """Join the processes that the environment tells of, while the block runs.

    A process that is killed can say nothing: torchrun then ends the others, without it they wait.
    """
    rank, world = world_of_environment()
    if world == 1:
        yield Group()
        return
    if framework != "torch":
        raise UsageError(f"--framework {framework} runs in one process", hint="start it without torchrun")
    # when one process ends, those that still look into its store need not say so at length
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from ckptkit.analysis.runner import torch_device

    if dist.is_initialized():
        raise UsageError("a process group exists already", hint="evaluate makes its own; end yours first")
    chosen = torch_device(device)
    on_gpu = chosen.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(chosen)
    try:
        store, _, _ = next(rendezvous("env://", rank, world))
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"process {rank} of {world} found no others: {str(error).splitlines()[0]}",
            hint="start all of them with torchrun",
        ) from error
    group = Group(rank, world, dist.PrefixStore("ckptkit", store), chosen)
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", store=dist.PrefixStore("group", store), rank=rank, world_size=world
        )
        yield group
        group.leave()
    except BaseException as error:
        group.fail(error)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
