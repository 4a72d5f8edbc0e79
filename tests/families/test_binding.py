"""Used, left out by rule, unexpected; found, missing: nothing falls between."""

from __future__ import annotations

import pytest

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.families.base import Structure, family_of_variant, get_family
from ckptkit.families.binding import FileFacts, match
from ckptkit.families.layouts import whole_model
from ckptkit.families.recognition import require_recognition

TABLE = get_family("moat").table("deeplab2", "tiny-moat0", Structure())
EMA = "/ExponentialMovingAverage"
KERNEL = "moat/block_00_00/expand_conv/kernel"


def spec(name, shape=(), dtype="float32"):
    return TensorSpec(name, DTYPES[dtype], shape)


def plain():
    return {b.external: spec(b.external, b.external_shape) for b in TABLE.bindings}


def with_twins():
    specs = plain()
    specs.update(
        {b.external + EMA: spec(b.external + EMA, b.external_shape) for b in TABLE.bindings if b.trainable}
    )
    return specs


def matched(specs, **options):
    return match(specs, require_recognition("file", specs), **options)


def test_a_whole_file_is_used_wholly():
    found = matched(plain())
    assert (found.missing, found.unexpected, found.ignored, found.wrong_shape) == ((), (), (), ())
    assert found.weights is None
    assert found.sources == {b.canonical: b.external for b in TABLE.bindings}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("global_step", "global_step"),
        ("save_counter", "save_counter"),
        ("beta1_power", "optimizer scalars"),
        ("beta2_power", "optimizer scalars"),
        ("optimizer/learning_rate", "optimizer scalars"),
        (KERNEL + "/AdamWeightDecay", "optimizer slots"),
        (KERNEL + "/AdamWeightDecay_1", "optimizer slots"),
        (KERNEL + "/Momentum", "optimizer slots"),
        (KERNEL + "/m", "optimizer slots"),
        (KERNEL + EMA + "/Momentum", "optimizer slots of moving averages"),
        (KERNEL + "/part_0/Adagrad", "optimizer slots"),
        (f"OptimizeLoss/{KERNEL}/Momentum", "optimizer slots"),
        ("OptimizeLoss/beta1_power_1", "optimizer scalars"),
        ("training/Adam/Variable_7", "optimizer"),
        (f"Adam/m/{KERNEL}", "optimizer slots"),
        (f"v/{KERNEL}", "optimizer slots"),
        (f"Adam/average/{KERNEL}", "moving averages of the optimizer"),
        ("iteration", "optimizer scalars"),
        ("current_learning_rate", "optimizer scalars"),
        ("adam/iteration", "optimizer scalars"),
        ("adam/moat_block_00_00_expand_conv_kernel_momentum", "optimizer slots"),
        ("adam_w/moat_block_00_00_expand_conv_kernel_average", "moving averages of the optimizer"),
        ("loss_scale_optimizer/adam_3/moat_stem_conv_0_kernel_velocity_hat", "optimizer slots"),
        ("loss_scale_optimizer/dynamic_scale", "optimizer scalars"),
        ("model/optimizer/_variables/3", "optimizer"),
        ("optimizer/vars/3", "optimizer"),
        ("keras_api/metrics/0/total", "metrics"),
        ("count", "metrics"),
        ("seed_generator/seed_generator_state", "random state"),
    ],
)
def test_training_leftovers_are_left_out_by_a_named_rule(name, rule):
    found = matched(plain() | {name: spec(name)})
    assert [(i.name, i.rule) for i in found.ignored] == [(name, rule)]
    assert found.unexpected == ()


@pytest.mark.parametrize(
    "name",
    [
        "mystery",
        "moat/block_09_00/expand_conv/kernel",
        "moat/block_09_00/expand_conv/kernel/Adam",
        "nobody" + EMA,
        "Adam/m/moat/block_09_00/expand_conv/kernel",
        "OptimizeLoss/moat/block_09_00/expand_conv/kernel/Adam",
        "momentum/other/kernel",
        "moat/optimizers",
        "counts",
    ],
)
def test_what_no_rule_explains_is_unexpected(name):
    assert matched(plain() | {name: spec(name)}).unexpected == (name,)


@pytest.mark.parametrize("family", ["moat", "moganet"])
def test_every_layout_leaves_out_the_same_leftovers(family):
    family = get_family(family)
    names = ["global_step", "adam/iteration", "optimizer/vars/0", "total_ops", "blocks1.0.norm1.total_params"]
    for layout in family.layouts:
        table = family.table(layout, family.variants[0], Structure(pos_emb=family.has_pos_emb))
        specs = {b.external: spec(b.external, b.external_shape) for b in table.bindings}
        found = matched(
            specs | {name: spec(name) for name in names},
        )
        assert found.recognition.layout == layout
        assert [one.name for one in found.ignored] == names
        assert found.unexpected == ()


def test_what_the_file_says_is_an_optimizers_needs_no_telling_name():
    specs = plain() | {"adafactor/kernel": spec("adafactor/kernel")}
    assert matched(specs).unexpected == ("adafactor/kernel",)
    (one,) = matched(specs, known=FileFacts(optimizer={"adafactor/kernel"})).ignored
    assert (one.name, one.rule) == ("adafactor/kernel", "optimizer")


@pytest.mark.parametrize("weights", ["auto", "ema", "raw"])
def test_the_copy_asked_for_is_taken_and_the_other_left_out(weights):
    found = matched(with_twins(), weights=weights)
    trainable = {b.canonical for b in TABLE.bindings if b.trainable}
    takes_ema = weights != "raw"
    assert found.weights == ("ema" if takes_ema else "raw")
    assert {c for c, source in found.sources.items() if source.endswith(EMA)} == (
        trainable if takes_ema else set()
    )
    assert found.unexpected == ()
    assert {i.rule for i in found.ignored} == {"raw weights" if takes_ema else "moving averages"}
    assert len(found.ignored) == len(trainable)


def test_averages_asked_for_and_not_there():
    with pytest.raises(UsageError, match="no moving averages"):
        matched(plain(), weights="ema")


def test_averages_for_some_parameters_only_are_refused_unless_raw():
    specs = with_twins()
    del specs[KERNEL + EMA]
    with pytest.raises(ConversionError, match=KERNEL):
        matched(specs)
    assert matched(specs, weights="raw").weights == "raw"


def test_a_missing_and_a_misshapen_tensor():
    specs = plain()
    del specs[KERNEL]
    bias = "moat/stem/conv_0/bias"
    specs[bias] = spec(bias, (31,))
    found = matched(specs)
    assert [b.external for b in found.missing] == [KERNEL]
    assert [(b.external, s.shape) for b, s in found.wrong_shape] == [(bias, (31,))]


def test_first_uploads_lack_all_statistics_and_nothing_else():
    specs = {name: s for name, s in plain().items() if "moving_" not in name}
    found = matched(specs)
    assert found.lacks_bn_statistics
    assert {b.part for b in found.missing} == {"bn_statistics"}
    one = plain()
    del one["moat/stem/norm_0/moving_mean"]
    assert not matched(one).lacks_bn_statistics


def test_stem_without_its_scope_is_the_same_stem():
    specs = {name.replace("moat/stem/", ""): s for name, s in plain().items()}
    found = matched(specs)
    assert found.sources["stem.conv_0.weight"] == "conv_0/kernel"
    assert (found.missing, found.unexpected) == ((), ())


MIXUP = get_family("moganet").table("openmixup", "moganet-xt", Structure(pos_emb=False))

LARGER = {
    "detector": {
        "neck.lateral_convs.0.conv.weight": "neck",
        "rpn_head.rpn_cls.bias": "rpn_head",
        "roi_head.bbox_head.0.fc_cls.weight": "roi_head",
        "bbox_head.retina_cls.weight": "bbox_head",
        "mask_head.conv_logits.weight": "mask_head",
        "ema_bbox_head_retina_cls_weight": "bbox_head",
        "data_preprocessor.mean": "data_preprocessor",
    },
    "segmentor": {
        "decode_head.psp_modules.0.1.bn.num_batches_tracked": "decode_head",
        "auxiliary_head.conv_seg.weight": "auxiliary_head",
    },
    "pose model": {
        "keypoint_head.final_layer.weight": "keypoint_head",
        "head.deconv_layers.0.weight": "head",
    },
    "detector of transformers": {
        "transformer.decoder.norm.weight": "transformer",
        "encoder.layers.0.norms.0.weight": "encoder",
        "query_embedding.weight": "query_embedding",
        "reference_points": "reference_points",
        "dn_query_generator.label_embedding.weight": "dn_query_generator",
        "backbone.fpn_lateral2.weight": "backbone.fpn_lateral2",
    },
    "dense-prediction model": {"img_neck.convs.0.weight": "img_neck", "pts_bbox_head.x": "pts_bbox_head"},
}


def backbone_of(layout, variant="moganet-xt"):
    """The tensors of a backbone in one layout."""
    family = family_of_variant(variant)
    table = family.table(layout, variant, Structure(pos_emb=family.has_pos_emb, num_classes=None))
    return {b.external: spec(b.external, b.external_shape) for b in table.bindings}


@pytest.mark.parametrize("layout", ["openmixup", "torch"])
@pytest.mark.parametrize("kind", LARGER)
def test_what_is_built_around_a_backbone_is_left_out_by_the_name_of_its_part(kind, layout):
    parts = LARGER[kind]
    found = matched(backbone_of(layout) | {name: spec(name) for name in parts})
    assert {one.name: one.rule for one in found.ignored} == parts
    assert found.around == tuple(dict.fromkeys(parts.values()))
    assert (found.unexpected, found.missing) == ((), ())
    whole = whole_model(one.reason for one in found.ignored)
    assert whole == kind.partition(" of ")[0]


@pytest.mark.parametrize("variant", ["tiny-moat0", "moganet-xt"])
def test_decoders_of_deeplab2_are_left_out(variant):
    parts = {
        "PanopticDeepLab/semantic_decoder/aspp/conv_bn_act/conv/kernel": "PanopticDeepLab",
        "kMaXDeepLab/kmax_pixel_decoder/kmax_pixel_decoder_skip_connection_1/kernel": "kmax_pixel_decoder",
        "instance_center_head/final_conv/kernel/Momentum": "instance_center_head",
        "MaXDeepLab/pixel_space_head/conv_block/kernel": "MaXDeepLab",
    }
    found = matched(backbone_of("keras", variant) | {name: spec(name) for name in parts})
    assert {one.name: one.rule for one in found.ignored} == parts
    assert whole_model(one.reason for one in found.ignored) == "segmentor"


@pytest.mark.parametrize(
    "name", ["mystery.weight", "necks", "head.fc.weight", "backbone.head.weight", "neck"]
)
def test_what_is_no_part_of_a_larger_model_stays_unexpected(name):
    assert matched(backbone_of("openmixup") | {name: spec(name)}).unexpected == (name,)


def test_a_classifier_keeps_what_is_around_it_unless_the_backbone_is_wanted():
    specs = {b.external: spec(b.external, b.external_shape) for b in MIXUP.bindings}
    specs["neck.convs.0.weight"] = spec("neck.convs.0.weight")
    assert matched(specs).unexpected == ("neck.convs.0.weight",)
    found = matched(specs, head=False)
    assert (found.unexpected, found.around) == ((), ("neck",))


def test_what_cannot_be_read_is_left_out_by_rule_or_told():
    lost = {KERNEL: "torn", KERNEL + "/Adagrad": "torn", KERNEL + EMA: "torn", "mystery": "torn"}
    specs = {name: one for name, one in plain().items() if name != KERNEL}
    found = matched(specs, known=FileFacts(unread=lost))
    assert {one.name: one.rule for one in found.ignored} == {
        KERNEL + "/Adagrad": "optimizer slots",
        KERNEL + EMA: "moving averages",
    }
    assert found.unread == {KERNEL: "torn", "mystery": "torn"}
    assert [b.external for b in found.missing] == [KERNEL]
    assert found.unexpected == ()


def test_averages_that_an_optimizer_keeps_are_not_said_to_be_absent():
    specs = plain() | {"adam/moat_stem_conv_0_kernel_average": spec("average")}
    assert matched(specs, weights="raw").unexpected == ()
    beside = with_twins() | {"adam/moat_stem_conv_0_kernel_average": spec("average")}
    assert matched(beside, weights="ema").weights == "ema"
    assert matched(specs, weights="ema", known=FileFacts(available_copy="ema")).unexpected == ()
    with pytest.raises(UsageError, match=r"the optimizer's own \(adam/moat_stem.*finalize_variable_values"):
        matched(specs, weights="ema")


def averaged(table=MIXUP):
    """An OpenMixup file of a run with moving averages: they have the plain names, the raw ones buffers'."""
    specs = {b.external: spec(b.external, b.external_shape) for b in table.bindings}
    buffers = {"ema_" + b.external.replace(".", "_"): b for b in table.bindings if b.trainable}
    return {name: spec(name, b.external_shape) for name, b in buffers.items()} | specs


@pytest.mark.parametrize(
    ("weights", "known", "taken"),
    [
        ("auto", None, "ema"),
        ("ema", None, "ema"),
        ("raw", None, "raw"),
        ("auto", FileFacts(default_copy="raw"), "raw"),
        ("auto", FileFacts(default_copy="ema"), "ema"),
        ("ema", FileFacts(default_copy="raw"), "ema"),
    ],
)
def test_openmixup_keeps_averages_under_the_plain_names(weights, known, taken):
    found = matched(averaged(), weights=weights, known=known)
    trainable = {b.canonical for b in MIXUP.bindings if b.trainable}
    assert found.weights == taken
    assert (found.missing, found.unexpected) == ((), ())
    raw = {canonical for canonical, name in found.sources.items() if name.startswith("ema_")}
    assert raw == (trainable if taken == "raw" else set())
    assert {i.rule for i in found.ignored} == {"raw weights" if taken == "ema" else "moving averages"}
    assert len(found.ignored) == len(trainable)


def test_raw_buffers_of_some_parameters_only():
    specs = averaged()
    del specs["ema_backbone_blocks1_0_attn_gate_weight"]
    assert matched(specs).weights == "ema", "what is left out need not be whole"
    with pytest.raises(ConversionError, match=r"no raw copy .*backbone\.blocks1\.0\.attn\.gate\.weight"):
        matched(specs, weights="raw")


@pytest.mark.parametrize(
    ("known", "weights", "says"),
    [
        (FileFacts(available_copy="ema"), "raw", r"moving averages \(EMA\) only"),
        (FileFacts(available_copy="raw"), "ema", "raw weights only"),
        (FileFacts(default_copy="ema", available_copy="ema"), "raw", r"moving averages \(EMA\) only"),
        (None, "ema", "no moving averages"),
    ],
)
def test_a_copy_that_is_not_there_is_not_passed_off_as_it(known, weights, says):
    specs = {b.external: spec(b.external, b.external_shape) for b in MIXUP.bindings}
    with pytest.raises(UsageError, match=says):
        matched(specs, weights=weights, known=known)
    assert matched(specs, known=known).weights is None


@pytest.mark.parametrize("copy", ["ema", "raw"])
def test_a_copy_opened_from_a_state_dict_of_its_own_is_named(copy):
    specs = {b.external: spec(b.external, b.external_shape) for b in MIXUP.bindings}
    assert matched(specs, weights="auto", known=FileFacts(selected_copy=copy)).weights == copy


def test_step_counters_may_be_absent_and_are_used_when_there():
    specs = averaged()
    counter = "backbone.norm1.num_batches_tracked"
    assert matched(specs).sources["norm1.num_batches_tracked"] == counter
    del specs[counter]
    found = matched(specs)
    assert (found.missing, "norm1.num_batches_tracked" in found.sources) == ((), False)
