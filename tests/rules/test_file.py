"""A user's own rules: read with every fault at once, applied both ways, checked against numpy's einsum."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import numpy as np
import pytest

from ckptkit.base.errors import ConversionError, NotFoundError, StorageError, UsageError
from ckptkit.convert.execution import execute
from ckptkit.convert.pipeline import Options, plan
from ckptkit.formats.base import bytes_of
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.rules.file import load_rules
from tests.support.tensors import OPAQUE, raw_safetensors, same_bits, specs_of, write_all

EXAMPLE = Path(__file__).parent / "hwio_net.yaml"
"""The example that users are shown."""

_RANDOM = np.random.default_rng(5)


def random(*shape):
    return _RANDOM.standard_normal(shape, dtype=np.float32)


NET = {
    "net/stem/kernel": random(3, 3, 3, 8),
    "net/block_0_0/conv/kernel": random(3, 3, 8, 8),
    "net/block_0_0/conv/bias": random(8),
    "net/block_0_0/depthwise/kernel": random(5, 5, 8, 1),
    "net/block_0_11/conv/kernel": random(3, 3, 8, 8),
    "net/block_0_11/conv/bias": random(8),
    "net/block_0_11/depthwise/kernel": random(5, 5, 8, 1),
    "net/attention/query/kernel": random(8, 2, 4),
    "net/head/kernel": random(8, 8),
    "global_step": np.array(1000, np.int64),
}
"""Square where it can be: a wrong order of axes would not show in the shapes."""

IN_TORCH = {
    "stem.weight": np.einsum("hwio->oihw", NET["net/stem/kernel"]),
    **{
        name: array
        for i in (0, 11)
        for name, array in (
            (f"stages.0.{i}.conv.weight", np.einsum("hwio->oihw", NET[f"net/block_0_{i}/conv/kernel"])),
            (f"stages.0.{i}.conv.bias", NET[f"net/block_0_{i}/conv/bias"]),
            (
                f"stages.0.{i}.depthwise.weight",
                np.einsum("hwcm->cmhw", NET[f"net/block_0_{i}/depthwise/kernel"]),
            ),
        )
    },
    "attention.query.weight": np.einsum("chd->hdc", NET["net/attention/query/kernel"]).reshape(8, 8),
    "head.weight": np.einsum("io->oi", NET["net/head/kernel"]),
}


def write(path, format, arrays):
    write_all(writer_for(format)(path, specs_of(arrays), {}), arrays)
    return path


def convert(source, target, to, rules, **options):
    with open_reader(source) as reader:
        chosen = Options(to, **options, rules=rules)
        decided = plan(reader, chosen)
        execute(decided, reader, chosen.target, target)
    return decided


def held(path):
    with open_reader(path) as reader:
        return {name: np.array(reader.read(name)) for name in reader.specs}


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    assert [name for name in wanted if not same_bits(found[name], wanted[name])] == []


def rules_of(tmp_path, text, **options):
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    return load_rules(path, **options)


class TestForeignModel:
    def test_from_tensorflows_names_to_torchs_and_back(self, tmp_path):
        source = write(tmp_path / "net.ckpt", "tf", NET)
        decided = convert(source, tmp_path / "net.pth", "torch", load_rules(EXAMPLE))
        assert_same(held(tmp_path / "net.pth"), IN_TORCH)
        assert [(one.name, one.rule, one.reason) for one in decided.ignored] == [
            ("global_step", "step counter", "counts training steps")
        ]
        convert(tmp_path / "net.pth", tmp_path / "back.ckpt", "tf", load_rules(EXAMPLE, reverse=True))
        assert_same(held(tmp_path / "back.ckpt"), {k: v for k, v in NET.items() if k != "global_step"})

    def test_the_ops_are_shown_as_axes(self, tmp_path):
        source = write(tmp_path / "net.ckpt", "tf", NET)
        with open_reader(source) as reader:
            decided = plan(reader, Options("torch", rules=load_rules(EXAMPLE)))
        ops = {move.target.name: move.op for move in decided.moves}
        assert ops["stem.weight"] == ops["stages.0.11.conv.weight"] == "h w i o → o i h w"
        assert ops["stages.0.11.conv.bias"] == "identity"

    def test_the_metadata_says_by_which_rules(self, tmp_path):
        import hashlib

        source = write(tmp_path / "net.pth", "torch", IN_TORCH)
        decided = convert(source, tmp_path / "b.npz", "npz", load_rules(EXAMPLE, reverse=True))
        said = dict(decided.metadata)
        assert said["layout"] == "rules" and said["rules"] == "hwio_net.yaml"
        assert said["rules_direction"] == "reverse"
        assert said["rules_sha256"] == hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()

    def test_dtype_casts(self, tmp_path):
        source = write(tmp_path / "net.ckpt", "tf", NET)
        convert(source, tmp_path / "net.npz", "npz", load_rules(EXAMPLE), dtype="float16")
        assert_same(held(tmp_path / "net.npz"), {k: v.astype(np.float16) for k, v in IN_TORCH.items()})

    def test_a_file_that_says_reverse(self, tmp_path):
        text = EXAMPLE.read_text() + "\ndirection: reverse\n"
        source = write(tmp_path / "net.pth", "torch", IN_TORCH)
        convert(source, tmp_path / "a.ckpt", "tf", rules_of(tmp_path, text))
        assert_same(held(tmp_path / "a.ckpt"), {k: v for k, v in NET.items() if k != "global_step"})
        assert rules_of(tmp_path, text, reverse=True).direction == "forward"


@pytest.mark.parametrize(
    ("axes", "sizes", "shape", "expected"),
    [
        ("a b -> b a", "", (3, 3), lambda x: x.T),
        ("(h d) c -> c h d", "{h: 2}", (6, 4), lambda x: x.reshape(2, 3, 4).transpose(2, 0, 1)),
        ("(h d) c -> (d h) c", "{d: 3}", (6, 4), lambda x: x.reshape(2, 3, 4).swapaxes(0, 1).reshape(6, 4)),
        ("1 1 i o -> o i", "", (1, 1, 4, 4), lambda x: x[0, 0].T),
        ("c -> 1 c 1 1", "", (5,), lambda x: x[None, :, None, None]),
        ("a b → a b", "", (2, 3), lambda x: x),
        ("(q h d) c -> q c (h d)", "{q: 3, h: 2}", (12, 4), lambda x: x.reshape(3, 4, 4).swapaxes(1, 2)),
    ],
)
def test_axes_there_and_back(tmp_path, axes, sizes, shape, expected):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    text = f'rules:\n  - {{source: w, target: v, axes: "{axes}", sizes: {sizes or "{}"}}}\n'
    source = write(tmp_path / "a.npz", "npz", {"w": array})
    convert(source, tmp_path / "b.npz", "npz", rules_of(tmp_path, text))
    assert_same(held(tmp_path / "b.npz"), {"v": np.ascontiguousarray(expected(array))})
    if axes.startswith("(q h d)"):
        text = text.replace("{q: 3, h: 2}", "{q: 3, h: 2, d: 2}")
    convert(tmp_path / "b.npz", tmp_path / "c.npz", "npz", rules_of(tmp_path, text, reverse=True))
    assert_same(held(tmp_path / "c.npz"), {"w": array})


BROKEN = """\
rules:
  - {source: "a.{i}", target: "b.{j}", op: identity}
  - {source: "c", target: "d", op: conf}
  - {source: "e", target: "f"}
  - {source: "g.{0}", target: "g", op: identity}
  - {source: "h", target: "h", axes: "hw -> w h"}
  - {source: "k", target: "k", axes: "a b -> a c"}
  - {source: "l", target: "l", axes: "a a -> a"}
  - {source: "m", target: "m", op: linear, sizes: {z: 3}}
  - {source: "n{i}{j}", target: "n{i}.{j}", op: identity}
ignore:
  - {name: x, pattern: "(", reason: "y"}
"""


def test_every_fault_of_a_file_at_once_with_its_line(tmp_path):
    with pytest.raises(UsageError) as caught:
        rules_of(tmp_path, BROKEN)
    told = str(caught.value)
    assert "rules.yaml: 10 faults: " in told
    for line, what in (
        (2, "{i}, {j} is on one side only"),
        (3, "unknown op 'conf'"),
        (4, "give either 'op' or 'axes'"),
        (5, "{0} is not a placeholder"),
        (6, "not two patterns"),
        (7, "the same letters"),
        (8, "a twice on one side"),
        (9, "sizes are given for z"),
        (10, "nothing between {j}"),
        (12, "not a regular expression"),
    ):
        fault = next(part for part in told.split("; ") if f"line {line}: " in part)
        assert what in fault


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rules: []", "line 1: rules"),
        ("[]", "line 1: a file of rules is a mapping"),
        ("rules:\n - {source: a, target: b, op: linear, extra: 1}", "line 2: unknown key rules[0].extra"),
        ("rules:\n - {source: a, op: linear}", "line 2: rules[0].target is missing"),
        ("rules:\n - {source: a, target: 3, op: linear}", "line 2: rules[0].target"),
        ("rules:\n - {source: a, target: b, op: linear, sizes: {i: 0}}", "line 2: rules[0].sizes.i"),
        ("rules:\n - {source: a, source: c, target: b, op: linear}", "key 'source' is given twice"),
        ("rules: {", "not YAML"),
        ("rules:\n - {source: 'a{', target: 'a{', op: linear}", "source 'a{'"),
        ("rules:\n - {source: a, target: b, op: linear}\ndirection: up", "line 3: direction"),
        ("&a [*a]", "line 1"),
    ],
)
def test_faults_of_the_schema(tmp_path, text, told):
    with pytest.raises(UsageError) as caught:
        rules_of(tmp_path, text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(NotFoundError, match=r"gone\.yaml"):
        load_rules(tmp_path / "gone.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"rules:\n\xff")
    with pytest.raises(UsageError, match="line 2: not UTF-8"):
        load_rules(tmp_path / "bytes.yaml")


UNFIT = """\
rules:
  - {source: "a.{i}", target: "b.{i}", op: identity}
  - {source: "a.1", target: "c", op: identity}
  - {source: "flat", target: "flat", op: linear}
  - {source: "merged", target: "merged", axes: "(h d) -> h d"}
  - {source: "p.{i}", target: "q{i}", op: identity}
  - {source: "r{i}", target: "q{i}", op: identity}
  - {source: "nowhere", target: "nowhere", op: identity}
  - {source: "perhaps", target: "perhaps", op: identity, optional: true}
ignore:
  - {name: zeros, pattern: "a[.]0", reason: "none"}
"""


def test_every_misfit_of_a_checkpoint_at_once(tmp_path):
    names = ["a.0", "a.1", "flat", "merged", "p.7", "r7", "stranger", "other"]
    source = write(tmp_path / "a.npz", "npz", {name: np.ones(4, np.float32) for name in names})
    with pytest.raises(ConversionError) as caught:
        convert(source, tmp_path / "b.pth", "torch", rules_of(tmp_path, UNFIT))
    told = str(caught.value)
    for fault in (
        "'a.0' fits 2: the rule on line 2 (a.{i}), the ignore 'zeros'",
        "'a.1' fits 2: the rule on line 3 (a.1), the rule on line 2 (a.{i})",
        "'flat' does not fit the rule on line 4 (flat) (i o → o i): 2 axes expected, shape [4] has 1",
        "'merged' does not fit the rule on line 5",
        "'p.7', 'r7' would all be called 'q7'",
        "2 tensors fit no rule: stranger, other",
        "1 fit nothing: the rule on line 8 (nowhere)",
    ):
        assert fault in told
    assert "perhaps" not in told
    assert not (tmp_path / "b.pth").exists()


class TestOpaqueTypes:
    """Names may change; axes cannot be turned where only bytes are known."""

    def carried(self, tmp_path, rules, to="safetensors", **options):
        source = raw_safetensors(tmp_path / "q.safetensors", OPAQUE)
        (tmp_path / "rules.yaml").write_text(rules)
        with open_reader(source) as reader:
            chosen = Options(to, **options, rules=load_rules(tmp_path / "rules.yaml"))
            decided = plan(reader, chosen)
            execute(decided, reader, chosen.target, tmp_path / f"r.{to}")
        return decided

    def test_they_get_new_names_and_the_same_bytes_whatever_dtype_is_asked_for(self, tmp_path):
        rules = "rules:\n" + "".join(
            f"  - {{source: {name}, target: new.{name}, op: identity}}\n" for name in OPAQUE
        )
        self.carried(tmp_path, rules, dtype="float16")
        with open_reader(tmp_path / "r.safetensors") as reader:
            assert {name: spec.dtype.safetensors for name, spec in reader.specs.items()} == {
                f"new.{name}": "F16" if code == "F32" else code for name, (code, _, _) in OPAQUE.items()
            }
            for name, (_, shape, raw) in OPAQUE.items():
                assert reader.specs[f"new.{name}"].shape == tuple(shape)
                assert name == "w" or bytes(bytes_of(reader, f"new.{name}").data) == raw

    def test_another_op_is_refused_by_name(self, tmp_path):
        rules = "rules:\n  - {source: pairs, target: p, axes: 'a b -> b a'}\n"
        rules += "".join(
            f"  - {{source: {name}, target: {name}, op: identity}}\n" for name in OPAQUE if name != "pairs"
        )
        with pytest.raises(ConversionError, match=r"'pairs' is float4_e2m1fn_x2, .* cannot turn its axes"):
            self.carried(tmp_path, rules)

    def test_an_ignore_leaves_out_what_the_target_cannot_hold(self, tmp_path):
        rules = "rules:\n  - {source: w, target: w, op: identity}\n"
        rules += "  - {source: scale, target: scale, op: identity}\n"
        rules += "ignore:\n  - {name: odd, pattern: 'pairs|six|unheard', reason: not wanted}\n"
        decided = self.carried(tmp_path, rules, "torch")
        assert decided.left_out == dict.fromkeys(["pairs", "six", "unheard"], "odd: not wanted")

    def test_so_does_it_with_what_cannot_be_read(self, tmp_path):
        np.savez(tmp_path / "o.npz", w=np.ones(2), evil=np.array([None]))
        (tmp_path / "rules.yaml").write_text("rules:\n  - {source: w, target: w, op: identity}\n")
        with open_reader(tmp_path / "o.npz") as reader:
            with pytest.raises(
                ConversionError, match=r"'evil' cannot be read \(Python objects.*\): 'ignore' leaves"
            ):
                plan(reader, Options("torch", rules=load_rules(tmp_path / "rules.yaml")))
            with (tmp_path / "rules.yaml").open("a") as file:
                file.write("ignore:\n  - {name: extra, pattern: evil, reason: a list of names}\n")
            decided = plan(reader, Options("torch", rules=load_rules(tmp_path / "rules.yaml")))
        assert decided.left_out == {"evil": "extra: a list of names"}


def test_tied_weights_stay_tied_under_their_new_names(tmp_path):
    torch = pytest.importorskip("torch")
    weight = torch.arange(12, dtype=torch.float32).reshape(4, 3)
    torch.save({"emb": weight, "head": weight, "turned": weight}, tmp_path / "a.pth")
    text = """
        rules:
          - {source: emb, target: "0.emb", op: linear}
          - {source: head, target: "9.head", op: linear}
          - {source: turned, target: "5", op: identity}
    """
    convert(tmp_path / "a.pth", tmp_path / "b.pth", "torch", rules_of(tmp_path, text))
    loaded = torch.load(tmp_path / "b.pth", weights_only=True)
    assert loaded["0.emb"].data_ptr() == loaded["9.head"].data_ptr() != loaded["5"].data_ptr()
    assert torch.equal(loaded["9.head"], weight.T) and torch.equal(loaded["5"], weight)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"layout": "torch"}, "--layout torch"),
        ({"layout": "as-is"}, "--layout as-is"),
        ({"head": False}, "--no-head"),
    ],
)
def test_options_that_rules_leave_no_meaning_to(tmp_path, options, named):
    source = write(tmp_path / "net.ckpt", "tf", NET)
    with pytest.raises(UsageError, match=named):
        convert(source, tmp_path / "b.pth", "torch", load_rules(EXAMPLE), **options)


class TestWhatItMayCost:
    """A file of rules, and the names of a checkpoint, may both come from somebody else."""

    IDENTITY = "rules:\n  - {source: w, target: w, op: identity, optional: true}\n"

    def refused(self, tmp_path, rules, *names, kind=UsageError):
        source = write(tmp_path / "m.safetensors", "safetensors", dict.fromkeys(["w", *names], random(1)))
        gc.collect()  # what other tests left is not counted, nor are threads of the frameworks
        started = time.thread_time()
        with open_reader(source) as reader, pytest.raises(kind) as caught:
            plan(reader, Options("npz", rules=rules_of(tmp_path, rules)))
        assert time.thread_time() - started < 2
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500
        return str(caught.value)

    @pytest.mark.parametrize(
        ("pattern", "name"),
        [
            ("(a+)+$", "a" * 40 + "!"),
            ("(a|a)*b", "a" * 40 + "!"),
            ("a?" * 40 + "a" * 40 + "[bc]", "a" * 60),
            ("(?=(a+)+b)a", "a" * 40),
        ],
    )
    def test_a_pattern_that_would_run_for_ever(self, tmp_path, pattern, name):
        text = self.IDENTITY + f"ignore:\n  - name: x\n    pattern: {pattern!r}\n    reason: r\n"
        told = self.refused(tmp_path, text, name)
        assert "rules.yaml: line 5: the pattern " in told and "takes too long on the names of" in told

    @pytest.mark.parametrize(
        ("pattern", "what"),
        [
            ("(" * 5000 + ")" * 5000, "nested too deeply"),
            ("a" * 10_001, "longer than 10,000 characters"),
            ("a{1,99999999999}", "not a regular expression"),
            ("(?P<a>x)(?P<a>y)", "not a regular expression"),
        ],
    )
    def test_a_pattern_that_cannot_be_compiled(self, tmp_path, pattern, what):
        text = self.IDENTITY + f"ignore:\n  - {{name: x, pattern: {pattern!r}, reason: r}}\n"
        assert what in self.refused(tmp_path, text)

    @pytest.mark.parametrize(
        ("source", "what"),
        [
            ("{a}0{b}", "only digits between {b}"),
            ("{a}{b}", "nothing between {b}"),
            ("{a}0{a}", "only digits between {a}"),
            (".".join(f"{{p{n}}}" for n in range(51)), "more than 50 placeholders"),
        ],
    )
    def test_placeholders_that_could_be_split_in_several_ways(self, tmp_path, source, what):
        text = f"rules:\n  - {{source: {source!r}, target: {source!r}, op: identity}}\n"
        assert what in self.refused(tmp_path, text)

    def test_what_stays_allowed(self, tmp_path):
        names = ["w", "c2_1/k", "c2_12/k", "l3x0", "opt/m/v", "opt.v", "step", "head.1.w"]
        source = write(tmp_path / "m.safetensors", "safetensors", dict.fromkeys(names, random(1)))
        text = """
            rules:
              - {source: w, target: w, op: identity}
              - {source: "c2_{i}/k", target: "conv.{i}.k", op: identity}
              - {source: "l{i}x0", target: "l.{i}", op: identity}
            ignore:
              - {name: optimizer, pattern: "opt[/.].*", reason: r}
              - {name: step, pattern: "step|epoch", reason: r}
              - {name: others, pattern: '(?!w$|c2_|l[0-9]|opt|step)(head)[.]\\d+[.].*', reason: r}
        """
        with open_reader(source) as reader:
            decided = plan(reader, Options("npz", rules=rules_of(tmp_path, text)))
        assert {move.source: move.target.name for move in decided.moves} == {
            "w": "w",
            "c2_1/k": "conv.1.k",
            "c2_12/k": "conv.12.k",
            "l3x0": "l.3",
        }
        assert {one.name: one.rule for one in decided.ignored} == {
            "opt/m/v": "optimizer",
            "opt.v": "optimizer",
            "step": "step",
            "head.1.w": "others",
        }

    def test_many_rules_for_many_names(self, tmp_path):
        rules = "rules:\n" + "".join(
            f"  - {{source: 'a{{i}}.{n}', target: 'a.{{i}}.{n}', op: identity, optional: true}}\n"
            for n in range(2000)
        )
        told = self.refused(tmp_path, rules, *(f"a{n}.{n}" for n in range(1000)), kind=ConversionError)
        assert "rules.yaml has too many rules for its tensors: more than" in told

    def test_a_target_that_is_the_same_digits_many_times(self, tmp_path):
        many = ".".join(["{i}"] * 50)
        rules = f"rules:\n  - {{source: 'a{{i}}', target: '{many}', op: identity}}\n"
        names = (f"a{n}" + "7" * 2000 for n in range(50))
        told = self.refused(tmp_path, rules, *names, kind=ConversionError)
        assert "bytes of names" in told

    def test_a_thousand_faults_are_one_line(self, tmp_path):
        rules = "rules:\n" + "".join(f"  - {{source: '{{}}', target: {'x' * 300}}}\n" for n in range(1000))
        assert "more, which --verbose lists" in self.refused(tmp_path, rules)

    def test_a_pipe_is_refused_and_one_of_the_shell_is_read(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(StorageError, match="pipe: a named pipe where a regular file is needed"):
            load_rules(tmp_path / "pipe")
        read, write_end = os.pipe()
        os.write(write_end, self.IDENTITY.encode())
        os.close(write_end)
        try:
            assert len(load_rules(f"/dev/fd/{read}").rules) == 1
        finally:
            os.close(read)
