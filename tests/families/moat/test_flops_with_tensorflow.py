"""The elementwise costs of MOAT's convention, against TensorFlow's own profiler."""

from __future__ import annotations

import contextlib
import io
import math

import pytest

from ckptkit.families.flops import Call
from ckptkit.families.moat.published import TENSORFLOW_GRAPH

SHAPE = (1, 4, 6, 10)
"""NHWC: 240 elements, 24 places of 10 channels."""

NCHW = (1, 10, 4, 6)


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


def float_operations(tf, make):
    """What TensorFlow's profiler counts in a graph."""
    with tf.Graph().as_default() as graph:
        make()
        options = tf.compat.v1.profiler.ProfileOptionBuilder(
            tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
        )
        with contextlib.redirect_stdout(io.StringIO()):
            found = tf.compat.v1.profiler.profile(graph, options=options.with_empty_output().build())
    return found.total_float_ops


def constants(tf, *shapes):
    return [tf.compat.v1.placeholder(tf.float32, shape) for shape in shapes]


def batch_norm(tf):
    x, mean, variance, beta, gamma = constants(tf, SHAPE, *[(10,)] * 4)
    tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)


def layer_norm(tf):
    x, beta, gamma = constants(tf, SHAPE, (10,), (10,))
    mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
    tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-5)


def bias(tf):
    tf.nn.bias_add(*constants(tf, SHAPE, (10,)))


def same(operation):
    """An operation of one map that gives a map of the same size."""
    return lambda tf: operation(tf)(*constants(tf, SHAPE))


def pool(tf):
    tf.nn.avg_pool2d(*constants(tf, SHAPE), ksize=2, strides=2, padding="SAME")


# BatchNorm's 6 operations a channel, which the convention spreads over a batch of 8 images.
ONCE_A_BATCH = 6 * 10

CASES = {
    "gelu": (same(lambda tf: tf.nn.gelu), [Call("gelu", (NCHW,), (None,), NCHW)]),
    "silu": (same(lambda tf: tf.nn.silu), [Call("silu", (NCHW,), (None,), NCHW)]),
    "sigmoid": (same(lambda tf: tf.sigmoid), [Call("sigmoid", (NCHW,), (None,), NCHW)]),
    "softmax": (same(lambda tf: tf.nn.softmax), [Call("_softmax", (NCHW,), (None,), NCHW)]),
    "mean": (
        same(lambda tf: lambda x: tf.reduce_mean(x, [1, 2])),
        [Call("mean", (NCHW,), (None,), (1, 10))],
    ),
    "add": (same(lambda tf: lambda x: x + x), [Call("add", (NCHW, NCHW), (None, None), NCHW)]),
    "mul": (same(lambda tf: lambda x: x * x), [Call("mul", (NCHW, NCHW), (None, None), NCHW)]),
    "bias": (bias, [Call("linear", (SHAPE, (10, 10), (10,)), (None,) * 3, SHAPE)]),
    "layer norm": (layer_norm, [Call("native_layer_norm", (SHAPE,), (None,), SHAPE)]),
    "average pool": (
        pool,
        [
            Call("avg_pool2d", (NCHW, None), (None, [2, 2]), (1, 10, 2, 3)),
            Call("div", ((1, 10, 2, 3), (1, 1, 2, 3)), (None, None), (1, 10, 2, 3)),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operation_costs_what_tensorflow_counts(tf, name):
    make, calls = CASES[name]
    counted = float_operations(tf, lambda: make(tf))
    costs = [TENSORFLOW_GRAPH.cost(call) for call in calls]
    assert sum(everything - products for products, everything in costs) == counted / 2


def test_batch_norm_costs_what_tensorflow_counts(tf):
    counted = float_operations(tf, lambda: batch_norm(tf))
    elements = math.prod(NCHW)
    assert counted == 2 * elements + ONCE_A_BATCH
    cost = TENSORFLOW_GRAPH.cost(Call("native_batch_norm", (NCHW,), (None,), NCHW))
    assert cost[1] * 2 == 2 * elements + ONCE_A_BATCH / 8
