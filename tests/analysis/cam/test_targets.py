"""Classes as users name them."""

from __future__ import annotations

import pytest

from ckptkit.analysis.cam.targets import HeadClasses
from ckptkit.base.errors import UsageError


@pytest.mark.parametrize("named", [207, "207", "n02099601", "Golden Retriever"])
def test_imagenet(named: int | str):
    classes = HeadClasses(1000)
    assert classes.find(named) == 207
    found = classes.named(207)
    assert found is not None
    assert found.wnid == "n02099601"


def test_classes_without_names():
    classes = HeadClasses(12)
    assert (classes.find("11"), classes.find(0), classes.named(3)) == (11, 0, None)


@pytest.mark.parametrize("named", ["12", "-1", "tabby", "", "1.0", "٣"])
def test_no_such_class(named: str):
    with pytest.raises(UsageError, match="12 classes without names: give 0 to 11"):
        HeadClasses(12).find(named)


@pytest.mark.parametrize("named", [1000, "crane", "no such thing"])
def test_no_such_class_of_imagenet(named: int | str):
    with pytest.raises(UsageError):
        HeadClasses(1000).find(named)
