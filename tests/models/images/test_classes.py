"""The thousand classes: their order is that of their WordNet ids, and each can be named."""

from __future__ import annotations

import pytest

from ckptkit.base.errors import UsageError
from ckptkit.models.images.classes import find_class, imagenet_classes


def test_a_thousand_in_the_order_of_their_ids():
    classes = imagenet_classes()
    wnids = [one.wnid for one in classes]
    assert len(classes) == 1000
    assert wnids == sorted(set(wnids))
    assert [one.index for one in classes] == list(range(1000))


@pytest.mark.parametrize(
    ("index", "wnid", "name"),
    [
        # Known to everybody who has worked with ImageNet.
        (0, "n01440764", "tench"),
        (1, "n01443537", "goldfish"),
        (207, "n02099601", "golden retriever"),
        (281, "n02123045", "tabby"),
        (817, "n04285008", "sports car"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_known_classes(index, wnid, name):
    one = imagenet_classes()[index]
    assert (one.wnid, one.name) == (wnid, name)
    assert find_class(str(index)) == find_class(wnid) == find_class(name.upper()) == one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1000", "unknown class 1000; the classes are 0 to 999"),
        ("crane", "'crane' means 2 classes; n02012849 .134. or n03126707 .517."),
        ("retriever", "unknown class 'retriever'; do you mean .*golden retriever"),
        ("zzz", "unknown class 'zzz'; give an index"),
    ],
)
def test_what_is_no_class_is_refused_in_words(text, message):
    with pytest.raises(UsageError, match=message):
        find_class(text)
