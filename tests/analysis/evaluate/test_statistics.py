"""Moments of a population gathered batch by batch, against numpy on all values at once."""

from __future__ import annotations

import numpy as np
import pytest

from ckptkit.analysis.evaluate.statistics import Moments, even_groups, gathered_moments


def test_moments_of_parts_are_those_of_the_whole():
    random = np.random.default_rng(1)
    values = random.normal(1000, [0.01, 1, 50], size=(997, 3))  # far from zero: mean of squares would cancel
    moments = Moments()
    for part in np.split(values, [1, 2, 100, 640]):
        moments.add(len(part), part.mean(axis=0), ((part - part.mean(axis=0)) ** 2).sum(axis=0))
    assert moments.values == 997
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, values.var(axis=0), rtol=1e-9)


@pytest.mark.parametrize(("images", "size"), [(1, 4), (4, 4), (5, 4), (9, 4), (2048, 32), (33, 32)])
def test_even_groups_take_every_image_once(images: int, size: int):
    groups = even_groups(images, size)
    assert [n for group in groups for n in group] == list(range(images))
    sizes = [len(group) for group in groups]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(groups) == -(-images // size)


def test_layers_see_what_the_batches_own_statistics_make():
    """Two layers in a row, by hand: the second one sees the first one's output normalized batch by batch."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(2, eps=1e-3), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([2.0, 0.5]))
        model[0].bias.copy_(torch.tensor([0.1, -3.0]))
    batches = [torch.randn(n, 2, 4, 5) * 3 + n for n in (2, 3)]
    with gathered_moments(model) as found, torch.no_grad():
        for batch in batches:
            model(batch)
    assert list(found) == ["0", "2"]

    def channels(x) -> np.ndarray:
        return np.moveaxis(x.double().numpy(), 1, -1).reshape(-1, x.shape[1])

    first = np.concatenate([channels(batch) for batch in batches])
    np.testing.assert_allclose(found["0"].mean, first.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["0"].variance, first.var(axis=0), rtol=1e-6)
    second = []
    for batch in batches:
        values = channels(batch)
        normal = (values - values.mean(axis=0)) / np.sqrt(values.var(axis=0) + 1e-3)
        normal = normal * [2.0, 0.5] + [0.1, -3.0]
        second.append(
            normal @ model[1].weight.double().detach().numpy()[:, :, 0, 0].T + model[1].bias.tolist()
        )
    seen = np.concatenate(second)
    np.testing.assert_allclose(found["2"].mean, seen.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["2"].variance, seen.var(axis=0), rtol=1e-5)


def test_the_hooks_are_gone_afterwards():
    import torch
    from torch import nn

    model = nn.BatchNorm2d(1).eval()
    with gathered_moments(model) as found:
        pass
    model(torch.ones(1, 1, 1, 1))
    assert found[""].values == 0
    assert model.running_mean.item() == 0
