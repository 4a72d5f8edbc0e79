"""What the settings that all models share may be."""

from __future__ import annotations

import pytest

from ckptkit.base.errors import UsageError
from ckptkit.families.settings import parse_num_classes, parse_size


@pytest.mark.parametrize(("asked", "size"), [(224, (224, 224)), ((224, 192), (224, 192)), ([1, 2], (1, 2))])
def test_size(asked, size):
    assert parse_size(asked, "resolution") == size


@pytest.mark.parametrize("asked", [0, None, (224,), (224, -1), "224", 224.0, False])
def test_nonsensical_sizes_are_refused(asked):
    with pytest.raises(UsageError, match="resolution is"):
        parse_size(asked, "resolution")


@pytest.mark.parametrize(("asked", "classes"), [(1000, 1000), (1, 1), (0, None), (None, None)])
def test_number_of_classes(asked, classes):
    assert parse_num_classes(asked) == classes


@pytest.mark.parametrize("asked", [-1, 2.5, "10", True, False, [10]])
def test_nonsensical_numbers_of_classes_are_refused(asked):
    with pytest.raises(UsageError, match="num_classes is") as caught:
        parse_num_classes(asked)
    assert "\n" not in str(caught.value)
