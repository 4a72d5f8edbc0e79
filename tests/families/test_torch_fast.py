"""What optimised models of every family have in common: types, copies, and what they refuse."""

from __future__ import annotations

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")

from ckptkit.base.errors import UsageError  # noqa: E402
from ckptkit.families.base import get_family  # noqa: E402
from tests.support import moat_torch, moganet_torch  # noqa: E402
from tests.support.moat_reference import philox_normal  # noqa: E402

FAMILIES = {
    "moat": lambda: moat_torch.recipe_model(resolution=64),
    "moganet": lambda: moganet_torch.recipe_model(attn_force_fp32=True),
}

pytestmark = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def plain(family):
    return FAMILIES[family]()


@pytest.fixture
def fast(plain, family):
    return get_family(family).fast_torch_module().optimised(plain)


@pytest.fixture
def images():
    return moat_torch.nchw(philox_normal(5, (2, 64, 64, 3)))


def test_it_is_made_for_evaluation_and_cannot_be_trained(fast):
    assert not any(module.training for module in fast.modules())
    with pytest.raises(UsageError, match=r"optimised for inference and cannot be trained.*optimize=False"):
        fast.train()
    assert fast.eval() is fast
    assert fast.train(False) is fast


def test_the_plain_model_stays_as_it_was(plain, fast, images):
    again = FAMILIES["moat" if hasattr(plain, "stem") else "moganet"]()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name
    with torch.inference_mode():
        expected = fast(images)
        for parameter in plain.parameters():
            parameter.zero_()
        assert torch.equal(fast(images), expected)


def test_its_state_is_its_own_and_its_repr_says_so(plain, fast):
    assert "state_dict loads into no plain model" in repr(fast).splitlines()[1]
    with pytest.raises(RuntimeError, match="Unexpected key"):
        plain.load_state_dict(fast.state_dict())


def test_it_is_copied_pickled_and_restored(fast, images):
    with torch.inference_mode():
        expected = fast(images)
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert torch.equal(other(images), expected)
            other.load_state_dict(fast.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("dtype", "digits"),
    [(torch.float64, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)],
    ids=["float64", "bfloat16", "float16"],
)
def test_other_types(plain, fast, images, dtype, digits):
    """Shares of the logits' spread, as the plain models' own tests have them."""
    with torch.inference_mode():
        expected = plain(images)
        moved = fast.to(dtype)(images.to(dtype))
    assert moved.dtype == dtype
    torch.testing.assert_close(moved.float(), expected, rtol=0, atol=digits * float(expected.std()))


def test_an_optimised_half_model(plain, family, images):
    with torch.inference_mode():
        expected = plain(images)
        made = get_family(family).fast_torch_module().optimised(plain.bfloat16())
        assert {tensor.dtype for tensor in made.state_dict().values()} == {torch.bfloat16}
        torch.testing.assert_close(
            made(images.bfloat16()).float(), expected, rtol=0, atol=0.1 * float(expected.std())
        )


def test_on_another_device(fast, images):
    outputs = fast.to("meta").forward_stages(images.to("meta"))
    assert {tensor.device.type for tensor in outputs.values()} == {"meta"}


def test_gradients_of_the_input_are_the_plain_models(plain, fast, images):
    """Steps that overwrite their input may not spoil a heat map."""
    gradients = []
    for model in (plain, fast):
        x = images.clone().requires_grad_()
        model(x)[:, 3].sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 64, 64, 3), (0, 3, 64, 64)])
def test_what_is_no_batch_of_images_is_refused(fast, shape):
    with pytest.raises(UsageError, match=r"the model takes \(N, 3, H, W\)"):
        fast(torch.zeros(shape))
