"""`torch.compile` where it works, and in one line where it does not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from ckptkit.base.errors import UsageError  # noqa: E402
from ckptkit.models import create_model  # noqa: E402
from ckptkit.models.create import require_compiler  # noqa: E402

WITHOUT_COMPILER = """
from ckptkit.base.errors import UsageError
from ckptkit.models import create_model

try:
    create_model("tiny-moat0", compile=True)
except UsageError as error:
    print(error)
"""


def test_a_compiler_that_fails_is_said_so_in_one_line(monkeypatch):
    def failing(function):
        def call(x):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n in g++")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(
        UsageError, match=r"No working C\+\+ compiler found in g\+\+; install a C\+\+ compiler"
    ):
        require_compiler()


@pytest.mark.slow
def test_without_a_compiler_it_is_refused_before_anything_is_built(tmp_path):
    environment = {
        **os.environ,
        "CXX": str(tmp_path / "no-such-compiler"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    (said,) = ran.stdout.splitlines()
    assert said.startswith("torch.compile does not work here: ")
    assert said.endswith("install a C++ compiler (g++) and Python's headers, or leave compile out")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-moat0", "moganet-xt-224"])
def test_compiled_models_compute_the_same(name):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    plain = create_model(name, resolution=64, num_classes=10)
    compiled = create_model(name, resolution=64, num_classes=10, compile=True)
    compiled.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(compiled(images), plain(images), rtol=0, atol=1e-4)
    assert type(compiled) is type(plain)
