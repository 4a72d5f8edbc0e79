"""Several processes evaluating one set of images together, as ``torchrun`` starts them.

Process r of W takes images r, r + W, …, so each image is taken once and none is padded. Processes that go
wrong say so in the rendezvous store, which all look into between batches: none waits for one that is gone.
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

if TYPE_CHECKING:
    from ckptkit.analysis.evaluate.progress import Progress
    from ckptkit.models import Framework

_POLL_S = 0.02
_LAST_WORDS_S = 60.0
"""How long a process that failed waits for the first one to have said so."""
_BEFORE_LEAVING_S = 0.5
_FAILURE, _SAID = "failure", "said"


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
        with self._store_in_words():
            if not self._store.check([_FAILURE]):
                return
            said = json.loads(self._store.get(_FAILURE))
        if said["rank"] != self.rank:
            raise _rebuilt(said)

    def told(self, value: str) -> list[str]:
        """Tell the others something and hear what each of them tells, by rank."""
        if self.world == 1:
            return [value]
        self._turn += 1  # all tell in the same order
        keys = [f"told/{self._turn}/{rank}" for rank in range(self.world)]
        with self._store_in_words():
            self._store.set(keys[self.rank], value)
            self._await(keys)
            return [self._store.get(one).decode() for one in keys]

    def told_by_first(self, value: str) -> str:
        """Hear what the first process tells."""
        if self.world == 1:
            return value
        self._turn += 1
        key = f"told/{self._turn}"
        with self._store_in_words():
            if self.rank == 0:
                self._store.set(key, value)
            self._await([key])
            return str(self._store.get(key).decode())

    def _await(self, keys: list[str]) -> None:
        while not self._store.check(keys):
            self.check()
            time.sleep(_POLL_S)

    def added(self, progress: Progress, known: Progress) -> Progress:
        """Add up what each process found beyond what all of them knew before."""
        if self.world == 1:
            return progress
        import numpy
        import torch
        import torch.distributed as dist

        flags = ("done", "top1", "top5")
        own = numpy.stack([getattr(progress, f).astype(int) - getattr(known, f).astype(int) for f in flags])
        bad = self.told(json.dumps({str(p): why for p, why in progress.bad.items()}))
        total = torch.from_numpy(own).to(self._device)
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        sums = total.cpu().numpy() + numpy.stack([getattr(known, f).astype(int) for f in flags])
        if sums.max(initial=0) > 1:
            raise AssertionError("an image was taken by two processes")
        everything = type(progress)(*(row.astype(bool) for row in sums))
        everything.bad = {int(p): why for text in bad for p, why in json.loads(text).items()}
        return everything

    def leave(self) -> None:
        """Leave when the work is done; the first process, which may hold the store, is the last one."""
        with self._store_in_words():
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
                self._store.set(_SAID, "")
                return
            end = time.monotonic() + _LAST_WORDS_S
            while time.monotonic() < end and not self._store.check([_SAID]):
                time.sleep(_POLL_S)
            time.sleep(_BEFORE_LEAVING_S)  # torchrun ends all when one ends, before the first has spoken

    @contextlib.contextmanager
    def _store_in_words(self) -> Iterator[None]:
        """Without the store, another process has gone: it must have said why."""
        try:
            yield
        except RuntimeError as error:
            raise CkptkitError(
                "another process of this evaluation is gone", hint="see what it said; run it again to go on"
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


def _rebuilt(said: dict[str, Any]) -> BaseException:
    """Make the error of another process again, of the same class, so that it returns the same exit code."""
    if said["interrupted"]:
        return KeyboardInterrupt()
    kind = getattr(errors, said["kind"], CkptkitError)
    error: CkptkitError = kind.__new__(kind)
    CkptkitError.__init__(error, f"process {said['rank']}: {said['message']}", hint=said["hint"])
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
        raise UsageError("--framework keras runs in one process", hint="start it without torchrun")
    # when one process ends, those that still look into its store need not say so at length
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from ckptkit.analysis.evaluate.running import torch_device

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
