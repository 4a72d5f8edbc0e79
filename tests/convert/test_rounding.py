"""Rounding to half precision, bit by bit, and what is said of values that do not fit."""

from __future__ import annotations

import re
import warnings

import ml_dtypes
import numpy as np
import pytest

import ckptkit
from ckptkit.base.tensors import DTYPES, byte_pieces, dtype_of
from ckptkit.convert.execution import RoundingLoss, Target, describe_losses, execute, rounding_loss
from ckptkit.convert.pipeline import Options, plan
from ckptkit.formats.detect import open_reader
from tests.support.commands import runner
from tests.support.moat_files import write_tiny

HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
GAMMA = "moat/stem/norm_0/gamma"
BETA = "moat/stem/norm_0/beta"


def rounded(array, dtype):
    """Bits of an array as the writers round it."""
    with np.errstate(all="ignore"):
        return np.frombuffer(b"".join(bytes(p) for p in byte_pieces(array, DTYPES[dtype])), np.uint16)


def around_every_half(dtype):
    """Every finite value of a half type, and the middle between it and the next one."""
    bits = np.arange(0x7C00 if dtype == "float16" else 0x7F80, dtype=np.uint16)
    values = bits.view(HALVES[dtype]).astype(np.float64)
    above = np.append(values[1:], 2 * values[-1] - values[-2])  # beyond the greatest: where the next would be
    middle = (values + above) / 2
    return bits, values, middle


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("source", ["float32", "float64"])
@pytest.mark.parametrize("dtype", HALVES)
def test_nearest_and_ties_to_even_for_every_half(dtype, source, negative):
    """Expected bits are those of the neighbours themselves: no cast is compared with another cast."""
    bits, values, middle = around_every_half(dtype)
    kind = np.dtype(source).type
    below = np.nextafter(middle.astype(kind), kind(0))
    above = np.nextafter(middle.astype(kind), kind(np.inf))
    assert (middle.astype(kind) == middle).all(), "the type of the source holds every middle exactly"
    sign = np.uint16(0x8000) if negative else np.uint16(0)
    factor = kind(-1 if negative else 1)
    cases = {
        "itself": (values.astype(kind), bits),
        "tie": (middle.astype(kind), bits + (bits & 1)),
        "below the tie": (below, bits),
        "above the tie": (above, bits + 1),
    }
    for name, (given, expected) in cases.items():
        found = rounded(given * factor, dtype)
        np.testing.assert_array_equal(found, expected.astype(np.uint16) | sign, err_msg=name)


@pytest.mark.parametrize("source", ["float32", "float64"])
@pytest.mark.parametrize("dtype", HALVES)
def test_special_values(dtype, source):
    values = np.array([np.inf, -np.inf, -0.0, 0.0, 1e-300, -1e-300, 1e38, -1e38], source)
    exponent = 0x7C00 if dtype == "float16" else 0x7F80
    # For bfloat16, 1e38 is 1.1755 · 2^126, of which seven bits of fraction are 22/128.
    great = exponent if dtype == "float16" else (126 + 127) << 7 | 22
    expected = [exponent, exponent | 0x8000, 0x8000, 0, 0, 0x8000, great, great | 0x8000]
    assert rounded(values, dtype).tolist() == expected


@pytest.mark.parametrize(("source", "quiet"), [("float32", 0x7FC00000), ("float64", 0x7FF8 << 48)])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_nan_stays_one_whatever_its_payload(dtype, source, quiet):
    width = np.dtype(source).itemsize
    payloads = np.array([0, 1, 0x1234, (1 << (10 * width // 2)) - 1], f"u{width}")
    nans = (payloads | np.array(quiet, f"u{width}")).view(source)
    found = rounded(np.concatenate([nans, -nans]), dtype)
    assert np.isnan(found.view(HALVES[dtype]).astype(np.float32)).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_same_bits_as_torch(dtype):
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(3).integers(0, 2**32, 200_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[~np.isnan(values)]
    theirs = torch.from_numpy(values.copy()).to(getattr(torch, dtype)).view(torch.int16).numpy()
    np.testing.assert_array_equal(rounded(values, dtype), theirs.view(np.uint16))


@pytest.mark.parametrize("seed", [0, 1])
def test_float64_is_rounded_to_bfloat16_once(seed):
    """Just above a tie: by way of float32 it would become the tie, and round down."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0x0100, 0x7E00, 5000).astype(np.uint16)
    values = bits.view(ml_dtypes.bfloat16).astype(np.float64)
    step = (bits + 1).view(ml_dtypes.bfloat16).astype(np.float64) - values
    near = values + step / 2 * (1 + 2.0**-40)
    np.testing.assert_array_equal(rounded(near, "bfloat16"), bits + 1)
    np.testing.assert_array_equal(rounded(values + step / 2 * (1 - 2.0**-40), "bfloat16"), bits)
    np.testing.assert_array_equal(
        rounded(near.reshape(50, 100).T, "bfloat16"), (bits + 1).reshape(50, 100).T.ravel()
    )


PAIRS = [
    ("float32", "float16"),
    ("float32", "bfloat16"),
    ("float64", "float16"),
    ("float64", "bfloat16"),
    ("float64", "float32"),
    ("bfloat16", "float16"),
]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_counts_are_those_of_the_values_themselves(source, target):
    """Random bits and all neighbours of both limits, against a cast that is looked at."""
    kind = DTYPES[source].numpy
    unsigned = np.dtype(f"u{kind.itemsize}")
    bits = np.random.default_rng(5).integers(0, np.iinfo(unsigned).max, 100_000, unsigned, endpoint=True)
    smallest = ml_dtypes.finfo(DTYPES[target].numpy).smallest_subnormal
    largest = ml_dtypes.finfo(DTYPES[target].numpy).max
    with np.errstate(all="ignore"):
        edges = np.array(
            [f * float(x) for x in (smallest, largest) for f in (0.25, 0.5, 0.75, 1, 1.5)], "float64"
        ).astype(kind)
        near = (edges.view(unsigned)[:, None] + np.arange(-300, 301).astype(unsigned)).ravel().view(kind)
        values = np.concatenate([bits.view(kind), near, -near, np.zeros(7, kind)])
        wide = values.astype(np.float64)
        cast = np.frombuffer(
            b"".join(bytes(p) for p in byte_pieces(values, DTYPES[target])), DTYPES[target].numpy
        ).astype(np.float64)
    overflowed = int((np.isfinite(wide) & np.isinf(cast)).sum())
    flushed = int(((wide != 0) & (cast == 0)).sum())
    assert overflowed and flushed
    found = rounding_loss("w", values, DTYPES[source], DTYPES[target])
    assert found == RoundingLoss("w", target, overflowed, flushed)


@pytest.mark.parametrize(
    ("source", "target"),
    [("float16", "bfloat16"), ("float16", "float32"), ("bfloat16", "float32"), ("float32", "float64")],
)
def test_nothing_is_lost_where_the_range_is_wide_enough(source, target):
    everything = np.arange(65536, dtype=np.uint16).view(HALVES.get(source, np.float16))
    assert rounding_loss("w", everything.astype(DTYPES[source].numpy), DTYPES[source], DTYPES[target]) is None


def test_empty_0d_and_strided_tensors():
    def loss(array):
        return rounding_loss("w", array, dtype_of(array), DTYPES["float16"])

    assert loss(np.zeros((0, 3), np.float32)) is None
    assert loss(np.array(7e4, np.float32)) == RoundingLoss("w", "float16", 1, 0)
    values = np.ones((60, 70), np.float32)
    values[3, 4], values[5, 6] = 1e9, 1e-9
    assert loss(values.T) == loss(values[::-1]) == RoundingLoss("w", "float16", 1, 1)


def plant(tensors):
    tensors[GAMMA][:3] = [7e4, -1e6, np.inf]
    tensors[BETA][:2] = [1e-9, 0.0]
    for block in range(3):
        tensors[f"moat/block_01_{block:02d}/pre_norm/beta"][0] = -1e-20


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("planted") / "model.ckpt", plant)


@pytest.mark.parametrize("to", ["safetensors", "torch", "tf", "npz"])
def test_a_conversion_says_what_it_lost(planted, tmp_path, to):
    with warnings.catch_warnings(), open_reader(planted) as reader:
        warnings.simplefilter("error")  # numpy's own warnings name no tensor
        conversion = plan(reader, Options(to, layout="deeplab2", dtype="float16"))
        done = execute(conversion, reader, Target(to, "float16"), tmp_path / "out")
    assert done.losses[:2] == (RoundingLoss(GAMMA, "float16", 2, 0), RoundingLoss(BETA, "float16", 0, 1))
    assert [(loss.overflowed, loss.flushed) for loss in done.losses[2:]] == [(0, 1)] * 3


def test_nothing_is_said_of_what_bfloat16_holds(planted, tmp_path):
    with open_reader(planted) as reader:
        conversion = plan(reader, Options("safetensors", dtype="bfloat16"))
        target = Target("safetensors", "bfloat16")
        assert execute(conversion, reader, target, tmp_path / "out").losses == ()


@pytest.mark.parametrize("flags", [(), ("--verbose",)])
def test_the_command_warns(planted, tmp_path, capsys, flags):
    run = runner(capsys)(
        *flags, "convert", planted, "--dtype", "float16", "-o", tmp_path / "half.safetensors"
    )
    assert run.code == 0, run.err
    said = " ".join(run.err.split())
    assert "2 finite values became infinite and 4 values became zero, in 5 tensors: " in said
    assert "stem.norm_0.weight (2 to infinity)" in said
    named = re.findall(r"\([\d,]+ to (?:zero|infinity)", said)
    assert len(named) == (5 if flags else 3)


def test_the_library_logs_a_warning(planted, tmp_path, caplog):
    ckptkit.convert(planted, "safetensors", tmp_path / "half.safetensors", dtype="float16")
    assert "stem.norm_0.weight (2 to infinity)" in caplog.text


def test_words():
    losses = [RoundingLoss(f"t{n}", "float16", n % 2, 1) for n in range(5)]
    said = describe_losses(losses)
    assert said.startswith("float16 cannot hold every value: 2 finite values became infinite and 5 values")
    assert said.endswith("in 5 tensors: t0 (1 to zero), t1 (1 to infinity, 1 to zero), t2 (1 to zero) …")
    assert describe_losses(losses, shown=None).endswith("t4 (1 to zero)")
