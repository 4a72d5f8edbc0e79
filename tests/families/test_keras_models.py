"""What the Keras models are built with; stand-ins for layers do."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ckptkit.base.errors import UsageError

pytest.importorskip("tensorflow")

from ckptkit.families.keras_backend import build_chain, require_images


def test_a_chain_hands_on_the_channels():
    shapes = []
    conv = SimpleNamespace(build=shapes.append, filters=8)
    norm = SimpleNamespace(build=shapes.append)
    build_chain((norm, conv, norm, norm), 3)
    assert [shape[-1] for shape in shapes] == [3, 3, 8, 8]
    assert {shape[:-1] for shape in shapes} == {(None, None, None)}


@pytest.mark.parametrize("shape", [(1, 64, 48, 3), (None, None, None, 3), (0, 1, 1, 3)])
def test_images(shape):
    require_images(SimpleNamespace(shape=shape))


@pytest.mark.parametrize(
    "shape", [(1, 3, 64, 64), (64, 64, 3), (1, 64, 64, 4), (1, 0, 64, 3), (1, 64, 0, 3), (2, 1, 8, 8, 3), ()]
)
def test_what_is_no_batch_of_images_is_refused_in_one_line(shape):
    with pytest.raises(UsageError, match="channels last") as caught:
        require_images(np.zeros(shape))
    assert f"input of shape {list(shape)}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_has_no_shape_is_refused():
    with pytest.raises(UsageError, match="channels last"):
        require_images("cat.png")
