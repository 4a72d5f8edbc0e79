"""Which device a process takes: with the GPUs that PyTorch would report."""

from __future__ import annotations

import pytest

from ckptkit.analysis.runner import plain_out_of_memory, torch_device
from ckptkit.base.errors import UsageError

torch = pytest.importorskip("torch")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("wanted", "local_rank", "device"),
    [
        ("auto", None, "cuda:0"),
        ("auto", "1", "cuda:1"),
        ("cuda", "1", "cuda:1"),
        ("cuda", None, "cuda:0"),
        ("cuda:1", None, "cuda:1"),
        ("cuda:0", "1", "cuda:0"),
        ("cpu", "1", "cpu"),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, wanted: str, local_rank: str | None, device: str):
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert torch_device(wanted) == device


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("wanted", ["cuda:2", "cuda:", "cuda:x", "gpu", "mps", ""])
def test_devices_that_are_none(wanted: str):
    with pytest.raises(UsageError):
        torch_device(wanted)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device("auto") == torch_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="PyTorch sees no GPU here"):
        torch_device("cuda")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried …"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_no_memory_is_said_in_one_line(error: BaseException):
    with (
        pytest.raises(
            UsageError, match="not enough memory for 32 images at once; try a smaller --batch-size"
        ),
        plain_out_of_memory(32),
    ):
        raise error


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), plain_out_of_memory(32):
        raise RuntimeError("shapes do not fit")
