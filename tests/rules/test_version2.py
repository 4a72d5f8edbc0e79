"""Version 2 of the rules: what each construct does, its faults with their lines, and what it may cost."""

from __future__ import annotations

import runpy
import time
from pathlib import Path

import numpy as np
import pytest

from ckptkit import check_rules, diff
from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.convert.pipeline import Options, plan
from ckptkit.formats.detect import open_reader, writer_for
from tests.rules.test_file import assert_same, convert, held, random, rules_of, write
from tests.support.tensors import OPAQUE, raw_safetensors, specs_of, write_all

REFERENCE = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "reference.py"))


def there(tmp_path, text, arrays, **options):
    """Convert in memory's shape: arrays in, arrays and plan out."""
    for old in tmp_path.iterdir():
        old.unlink()
    source = write(tmp_path / "there.safetensors", "safetensors", arrays)
    decided = convert(source, tmp_path / "made.npz", "npz", rules_of(tmp_path, text), **options)
    return held(tmp_path / "made.npz"), decided


def back(tmp_path, text, arrays):
    for old in tmp_path.glob("back.*"):
        old.unlink()
    source = write(tmp_path / "back.safetensors", "safetensors", arrays)
    decided = convert(source, tmp_path / "back.npz", "npz", rules_of(tmp_path, text, reverse=True))
    return held(tmp_path / "back.npz"), decided


@pytest.mark.parametrize("example", REFERENCE["rules_examples"](), ids=lambda one: one["title"])
def test_what_the_reference_shows_runs_there_and_back(tmp_path, example):
    arrays = {
        name: np.arange(spec.size, dtype=spec.dtype.name).reshape(spec.shape)
        for name, spec in example["source"].items()
    }
    made, decided = there(tmp_path, example["rules"], arrays)
    shown = REFERENCE["_rules_examples"]()
    for name, array in made.items():
        assert f"`{name}` {list(array.shape)}" in shown
    returned, _ = back(tmp_path, example["rules"], made)
    wanted = {name.removeprefix("module."): array for name, array in arrays.items()}
    assert list(map(str, returned)) and set(returned) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(returned[name], array)
    without = set(made) - {move.target.name for move in decided.moves if move.sources}
    assert set(decided.filled) == without


HEAD = "version: 2\nrules:\n"


class TestNames:
    @pytest.mark.parametrize(
        ("source", "target", "names"),
        [
            ("l{i+1}", "m.{i}", {"l1": "m.0", "l10": "m.9"}),
            ("l{i-2}", "m.{i}", {"l0": "m.2", "l8": "m.10"}),
            ("l{i}", "m.{i+3}", {"l0": "m.3", "l7": "m.10"}),
            ("l{i}/{i+1}", "m{i}", {"l0/1": "m0", "l9/10": "m9"}),
            ("b{i:02}_{j:02}", "s.{i}.{j}", {"b00_07": "s.0.7", "b10_123": "s.10.123"}),
            ("b{i+1:02}", "s.{i}", {"b01": "s.0", "b10": "s.9", "b100": "s.99"}),
            ("b{i}", "s.{i}", {"b00": "s.00", "b7": "s.7"}),  # digits are text where nothing counts
            ("e/{x...}", "{x...}", {"e/a/b.c": "a/b.c", "e/\n": "\n"}),
            ("e/{x...}/b{i}", "{x...}.{i}", {"e/1/2/b3": "1/2.3", "e/b1/b2": "b1.2"}),
            ("{{i}}{i}", "a{i}", {"{i}4": "a4"}),
        ],
    )
    def test_there_and_back(self, tmp_path, source, target, names):
        text = f"{HEAD} - {{source: '{source}', target: '{target}'}}\n"
        arrays = {name: random(2) for name in names}
        made, _ = there(tmp_path, text, arrays)
        assert_same(made, {names[name]: array for name, array in arrays.items()})
        assert_same(back(tmp_path, text, made)[0], arrays)

    @pytest.mark.parametrize(
        ("source", "target", "name"),
        [
            ("l{i+1}", "m.{i}", "l0"),
            ("l{i}", "m.{i-1}", "l0"),
            ("l{i+1}", "m.{i}", "l01"),
            ("l{i:02}", "m.{i}", "l7"),
            ("l{i:02}", "m.{i}", "l007"),
            ("l{i}/{i+1}", "m{i}", "l0/2"),
            ("l{i+1}", "m{i}", "l" + "9" * 5000),
            ("e/{x...}", "{x...}", "e/"),
        ],
    )
    def test_numbers_that_would_not_come_back_are_not_taken(self, tmp_path, source, target, name):
        text = f"{HEAD} - {{source: '{source}', target: '{target}', optional: true}}\n"
        with pytest.raises(ConversionError, match=r"1 tensor fits no rule"):
            there(tmp_path, text, {name: random(1)})

    def test_one_that_matches_anything_takes_what_is_left(self, tmp_path):
        text = HEAD + (
            " - {source: '{all...}', target: 'rest.{all...}'}\n"
            " - {source: 'a.{some...}', target: 'b.{some...}'}\n"
            " - {source: 'a.w', target: w}\n"
            "ignore:\n - {name: step, pattern: '.*step', reason: counts}\n"
        )
        arrays = {name: random(1) for name in ("x.y", "a.v.w", "a.w", "a.step")}
        made, decided = there(tmp_path, text, arrays)
        assert set(made) == {"rest.x.y", "b.v.w", "w"} and list(decided.left_out) == ["a.step"]
        assert_same(back(tmp_path, text, made)[0], {n: a for n, a in arrays.items() if n != "a.step"})

    def test_a_name_that_another_rule_would_take_on_the_way_back(self, tmp_path):
        text = HEAD + (
            " - {source: 'e/{x...}', target: '{x...}'}\n - {source: 'block_{i}', target: 'b.{i}'}\n"
        )
        arrays = {"e/b.7": random(1), "block_0": random(1)}
        with pytest.raises(
            ConversionError, match=r"'e/b.7'.*'b.7', which the rule on line 4 \(b.\{i\}\) takes"
        ):
            there(tmp_path, text, arrays)

    def test_prefixes_of_wrappers(self, tmp_path):
        text = "version: 2\nstrip: [module., _orig_mod.]\nrules:\n - {source: 'w{i}', target: 'v{i}'}\n"
        text += "ignore:\n - {name: step, pattern: step, reason: counts}\n"
        arrays = {"module._orig_mod.module.w1": random(1), "w2": random(1), "module.step": random(1)}
        made, decided = there(tmp_path, text, arrays)
        assert set(made) == {"v1", "v2"} and list(decided.left_out) == ["module.step"]
        assert set(back(tmp_path, text, made)[0]) == {"w1", "w2"}
        arrays["module.w2"] = random(1)
        with pytest.raises(ConversionError, match=r"'module\.w2', 'w2' would all be called 'v2'"):
            there(tmp_path, text, arrays)


class TestPrefixesOnTheWayBack:
    """A round trip gives the names that there were, or a note says which prefixes may be missing."""

    RULES = "rules:\n - {source: 'w{i}', target: 'v{i}'}\n - {source: 'x.{x...}', target: 'y.{x...}'}\n"

    def round_trip(self, tmp_path, strip, arrays, format="safetensors", ending="safetensors"):
        text = f"version: 2\nstrip: {strip}\n{self.RULES}"
        source = write(tmp_path / "source.npz", "npz", arrays)
        made = tmp_path / f"made.{ending}"
        convert(source, made, format, rules_of(tmp_path, text))
        decided = convert(made, tmp_path / "back.npz", "npz", rules_of(tmp_path, text, reverse=True))
        return held(tmp_path / "back.npz"), decided.notes

    @pytest.mark.parametrize("format", ["safetensors", "npz", "torch"])
    @pytest.mark.parametrize(
        "names",
        [
            ["module.w1", "module.x.y"],
            ["module._orig_mod.w1", "module._orig_mod.x.a"],
            ["w1", "x.y"],
            ["module.module.w1", "w2", "_orig_mod.x.y", "module.x.z"],
        ],
    )
    def test_the_converted_file_tells(self, tmp_path, names, format):
        arrays = {name: random(2) for name in names}
        ending = {"torch": "pth"}.get(format, format)
        returned, notes = self.round_trip(tmp_path, "[module., _orig_mod.]", arrays, format, ending)
        assert_same(returned, arrays)
        assert not any("strip" in note for note in notes)

    def test_where_nothing_tells_one_prefix_is_put_back_and_of_several_none(self, tmp_path):
        arrays = {"v1": random(1), "y.z": random(1)}
        for strip, wanted, note in (
            ("[module.]", ["module.w1", "module.x.z"], "every name begins with 'module.'"),
            ("[a., b.]", ["w1", "x.z"], "names are without the prefixes that 'strip' lists ('a.', 'b.')"),
        ):
            made, decided = back(tmp_path, f"version: 2\nstrip: {strip}\n{self.RULES}", arrays)
            assert sorted(made) == wanted
            assert any(note in one for one in decided.notes)

    @pytest.mark.parametrize(
        "told",
        ["", "[", "[" * 100_000, "{}", '{"usual": "evil.", "others": {}}', '{"usual": 7, "others": {}}',
         '{"usual": "a.", "others": {"w1": "/etc/"}}', '{"usual": "a.", "others": []}'],
    )  # fmt: skip
    def test_metadata_that_cannot_be_are_not_believed(self, tmp_path, told):
        arrays = {"v1": random(1)}
        metadata = {"rules_direction": "forward", "rules_stripped": told}
        source = tmp_path / "m.safetensors"
        write_all(writer_for("safetensors")(source, specs_of(arrays), metadata), arrays)
        text = "version: 2\nstrip: [a., b.]\nrules:\n - {source: 'w{i}', target: 'v{i}'}\n"
        decided = convert(source, tmp_path / "b.npz", "npz", rules_of(tmp_path, text, reverse=True))
        assert list(held(tmp_path / "b.npz")) == ["w1"]
        assert any("without the prefixes" in one for one in decided.notes)

    def test_check_and_diff_go_by_the_other_file(self, tmp_path):
        arrays = {"a.w1": random(1), "b.w2": random(1), "a.b.x.y": random(1)}
        text = f"version: 2\nstrip: [a., b.]\n{self.RULES}"
        source = write(tmp_path / "source.npz", "npz", arrays)
        made = write(
            tmp_path / "made.npz", "npz",
            {"v1": arrays["a.w1"], "v2": arrays["b.w2"], "y.y": arrays["a.b.x.y"]},
        )  # fmt: skip
        rules = rules_of(tmp_path, text, reverse=True)
        assert check_rules(rules.path, made, source, reverse=True).ok
        assert diff(made, source, rules=rules.path, reverse=True).same


class TestParts:
    def test_fused_with_heads_between_them(self, tmp_path):
        fused = random(2 * 3 * 4, 5)
        text = HEAD + (
            " - {source: qkv, target: [q, k, v], op: split, over: three,"
            " axes: '(h three d) i -> i (h d)', sizes: {h: 2}}\n"
        )
        made, _ = there(tmp_path, text, {"qkv": fused})
        assert_same(made, {
            name: np.einsum("hdi->ihd", fused.reshape(2, 3, 4, 5)[:, n]).reshape(5, 8)
            for n, name in enumerate("qkv")
        })  # fmt: skip
        assert_same(back(tmp_path, text, made)[0], {"qkv": fused})

    def test_unequal_parts_want_their_lengths_there_too(self, tmp_path):
        text = HEAD + " - {source: [a, b], target: ab, op: concat, axis: -1}\n"
        arrays = {"a": random(2, 6), "b": random(2, 2)}
        with pytest.raises(ConversionError, match=r"different lengths: write 'parts: \[6, 2\]'"):
            there(tmp_path, text, arrays)
        text = text.replace("axis: -1", "axis: -1, parts: [6, 2]")
        made, _ = there(tmp_path, text, arrays)
        assert_same(made, {"ab": np.concatenate([arrays["a"], arrays["b"]], -1)})
        assert_same(back(tmp_path, text, made)[0], arrays)

    def test_a_large_one_by_strips(self, tmp_path):
        """Beyond one piece of memory, on every axis, from transposed parts."""
        parts = {name: random(900, 1100) for name in "ab"}
        for axis in (0, 1):
            text = f"{HEAD} - {{source: [a, b], target: ab, op: concat, axis: {axis}, axes: 'i o -> o i'}}\n"
            made, _ = there(tmp_path, text, parts)
            assert_same(made, {"ab": np.concatenate([parts["a"].T, parts["b"].T], axis)})
            assert_same(back(tmp_path, text, made)[0], parts)

    @pytest.mark.parametrize(
        ("rule", "arrays", "told"),
        [
            (
                "source: [q, k, v], target: qkv, op: concat",
                {"q": (2,), "v": (2,)},
                "'k' missing beside 'q': the rule on line 3 (q)",
            ),
            (
                "source: 'e{e}', target: e, op: stack, over: e",
                {"e0": (2,), "e2": (2,), "e9": (2,)},
                "'e1', 'e3', 'e4' and 4 more missing beside 'e0'",
            ),
            (
                "source: 'e{e}', target: e, op: stack, over: e",
                {"e0": (2,), "e1": (3,)},
                "'e0' … 'e1' does not fit the rule on line 3 (e{e}): parts of shapes [2] and [3]",
            ),
            (
                "source: [a, b], target: c, op: concat, axis: 1",
                {"a": (2, 2), "b": (3, 2)},
                "parts of shapes [2, 2] and [3, 2] cannot be joined along axis 1",
            ),
            (
                "source: ['{e}.a', '{e}.b'], target: c, op: stack, over: e, axis: 1",
                {"0.a": (2,), "0.b": (2,), "1.b": (2,)},
                "'1.a' missing beside '0.a': the rule on line 3 ({e}.a)",
            ),
            (
                "source: ['{e}.a', '{e}.b'], target: c, op: stack, over: e, axis: 1",
                {"0.a": (2,), "0.b": (3,), "1.a": (3,), "1.b": (3,)},
                "parts of shapes [2] and [3]",
            ),
            (
                "source: ['{e}.a', '{e}.b'], target: c, op: stack, over: e, axis: -1",
                {"0.a": (2,), "0.b": (3,), "1.a": (2,), "1.b": (3,)},
                "parts of different lengths: write 'parts: [2, 3]'",
            ),
            (
                "source: ['{e}.a', '{e}.b'], target: c, op: stack, over: e, axis: 0",
                {"0.a": (2,), "0.b": (2,)},
                "axis 0 is that of 'e': 'axis' is another one",
            ),
            (
                "source: c, target: ['{n}.a', '{n}.b'], op: unstack, over: n, axis: 1",
                {"c": (2, 5)},
                "axis 1 of length 5 is not 2 equal parts: give 'parts'",
            ),
            (
                "source: c, target: ['{n}.a', '{n}.b'], op: unstack, over: n, axis: 1, "
                "axes: 'n (i o) -> o i'",
                {"c": (2, 6)},
                "cannot be split into i × o",
            ),
            (
                "source: [a, b], target: c, op: concat, axis: 2",
                {"a": (2, 2), "b": (2, 2)},
                "axis 2 of a tensor of 2 axes",
            ),
            (
                "source: [a, b], target: c, op: concat, parts: [1, 3]",
                {"a": (2,), "b": (2,)},
                "parts of lengths [2, 2] instead of [1, 3]",
            ),
            (
                "source: c, target: [a, b], op: split",
                {"c": (5,)},
                "'c' does not fit the rule on line 3 (c): axis 0 of length 5 is not 2 equal parts: give",
            ),
            (
                "source: c, target: [a, b], op: split, parts: [1, 3]",
                {"c": (5,)},
                "axis 0 has length 5, 'parts' [1, 3] make 4",
            ),
            (
                "source: c, target: 'a{n}', op: unstack, over: n",
                {"c": ()},
                "1 axis expected, shape [] has 0",
            ),
            (
                "source: c, target: [a, b], op: split, over: t, axes: '(h t) -> h'",
                {"c": (5,)},
                "axis of length 5 cannot be split into h × t",
            ),
            (
                "source: c, target: c, dtype: int8",
                {"c": (5,)},
                "float32 cannot become int8 without loss",
            ),
            (
                "target: c, fill: zeros, shape: [99999999999, 999999999]",
                {},
                "'c' would be 399,999,999,596,000,000,004 bytes of zeros",
            ),
        ],
    )  # fmt: skip
    def test_what_does_not_fit(self, tmp_path, rule, arrays, told):
        text = f"{HEAD} - {{{rule}}}\n - {{source: other, target: other}}\n"
        arrays = {name: random(*shape) for name, shape in {**arrays, "other": (1,)}.items()}
        with pytest.raises(ConversionError) as caught:
            there(tmp_path, text, arrays)
        assert told in str(caught.value) and "\n" not in str(caught.value)

    def test_parts_of_several_element_types(self, tmp_path):
        text = f"{HEAD} - {{source: [a, b], target: c, op: concat}}\n"
        with pytest.raises(ConversionError, match="they are int64 and float32"):
            there(tmp_path, text, {"a": random(2), "b": np.arange(2)})

    @pytest.mark.parametrize(
        ("rule", "told"),
        [
            ("source: [pairs, six], target: p, op: concat", "cannot join it"),
            ("source: pairs, target: [p, q], op: split", "cannot cut it"),
            ("source: pairs, target: p, dtype: float16", "cannot cast it to float16"),
        ],
    )
    def test_opaque_types_are_refused_by_name(self, tmp_path, rule, told):
        source = raw_safetensors(tmp_path / "q.safetensors", OPAQUE)
        text = f"{HEAD} - {{{rule}}}\n"
        with open_reader(source) as reader, pytest.raises(ConversionError) as caught:
            plan(reader, Options("safetensors", rules=rules_of(tmp_path, text)))
        assert "'pairs' is float4_e2m1fn_x2, of which only the bytes are known" in str(caught.value)
        assert told in str(caught.value)


class TestConstants:
    TEXT = HEAD + (
        " - {source: 'bn{n}/g', target: 'bn.{n}.w'}\n"
        " - {target: 'bn.{n}.count', fill: zeros, shape: [], dtype: int64, with: 'bn.{n}.w'}\n"
        " - {target: ids, fill: arange, shape: [2, 3], dtype: int32}\n"
        " - {target: mask, fill: ones, shape: [2], dtype: bool}\n"
    )

    def test_they_are_made_named_and_left_out_again(self, tmp_path):
        arrays = {"bn0/g": random(2), "bn12/g": random(2)}
        made, decided = there(tmp_path, self.TEXT, arrays, dtype="float16")
        assert made["bn.12.count"].dtype == np.int64 and made["bn.12.count"].shape == ()
        assert made["ids"].tolist() == [[0, 1, 2], [3, 4, 5]] and made["ids"].dtype == np.int32
        assert made["mask"].tolist() == [True, True]
        wanted = {"bn.0.count": "zeros", "bn.12.count": "zeros", "ids": "arange", "mask": "ones"}
        assert decided.filled == wanted
        assert "filled with zeros by the rules: bn.0.count, bn.12.count" in decided.notes
        with open_reader(tmp_path / "made.npz") as reader:
            assert '"bn.12.count": "zeros"' in reader.metadata["rules_filled"]
        made["bn.0.count"] = np.array(77)  # whatever they are
        returned, decided = back(tmp_path, self.TEXT, made)
        assert set(returned) == set(arrays)
        assert decided.left_out["bn.0.count"] == "constant: filled with zeros by the rules"

    def test_back_none_is_missed_and_none_too_many_is_taken(self, tmp_path):
        arrays = {"bn.0.w": random(1), "bn.7.count": np.array(1)}
        with pytest.raises(ConversionError, match=r"1 tensor fits no rule: bn.7.count"):
            back(tmp_path, self.TEXT, arrays)
        del arrays["bn.7.count"]
        assert set(back(tmp_path, self.TEXT, arrays)[0]) == {"bn0/g"}


class TestTiedWeights:
    TEXT = HEAD + (
        " - {source: 'emb', target: 'a.w', axes: 'i o -> o i'}\n"
        " - {source: [q, k], target: 'l.0.qk', op: concat}\n"
        " - {target: 'b.w', tied: 'a.w'}\n"
        " - {target: 'm.{i}.qk', tied: 'l.{i}.qk'}\n"
    )

    def test_they_are_written_under_both_names_and_shared_in_a_torch_file(self, tmp_path):
        torch = pytest.importorskip("torch")
        arrays = {name: random(2, 3) for name in ("emb", "q", "k")}
        made, _ = there(tmp_path, self.TEXT, arrays)
        both = np.concatenate([arrays["q"], arrays["k"]])
        assert_same(made, {"a.w": arrays["emb"].T, "b.w": arrays["emb"].T, "l.0.qk": both, "m.0.qk": both})
        returned, decided = back(tmp_path, self.TEXT, made)
        assert_same(returned, arrays)
        assert decided.left_out["b.w"] == "tied: the same as a.w by the rules"
        source = write(tmp_path / "a.npz", "npz", arrays)
        convert(source, tmp_path / "a.pth", "torch", rules_of(tmp_path, self.TEXT))
        loaded = torch.load(tmp_path / "a.pth", weights_only=True)
        assert loaded["a.w"].data_ptr() == loaded["b.w"].data_ptr()
        assert loaded["l.0.qk"].data_ptr() == loaded["m.0.qk"].data_ptr() != loaded["a.w"].data_ptr()

    def test_values_that_differ_are_not_lost(self, tmp_path):
        made, _ = there(tmp_path, self.TEXT, {name: random(2, 3) for name in ("emb", "q", "k")})
        made["b.w"] = made["b.w"] + np.float32(1)
        with pytest.raises(
            ConversionError, match=r"'b.w' and 'a.w' differ, which the rule on line 5 \(b.w\)"
        ):
            back(tmp_path, self.TEXT, made)

    @pytest.mark.parametrize(
        ("rule", "error", "told"),
        [
            ("target: b, tied: c", ConversionError, "no rule makes 'c', to which line 4 ties 'b'"),
            ("target: 'b{i}', tied: 'c{i}'", ConversionError, "no rule makes 'c{i}'"),
            ("target: a, tied: a", ConversionError, "would all be called 'a'"),
            ("target: 'b{i}', tied: a", UsageError, "line 4: the placeholders of 'b{i}': 'tied' has others"),
            ("target: b, source: a, tied: a", UsageError, "'source' has no meaning for a tied tensor"),
            ("target: [b, c], tied: a", UsageError, "a list as target needs 'op: split'"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path, rule, error, told):
        with pytest.raises(error) as caught:
            there(tmp_path, f"{HEAD} - {{source: a, target: a}}\n - {{{rule}}}\n", {"a": random(1)})
        assert told in str(caught.value)


class TestElementTypes:
    TEXT = HEAD + (
        " - {source: norm, target: norm, dtype: float32}\n"
        " - {source: w, target: w}\n"
        " - {source: steps, target: steps, dtype: int64}\n"
    )

    def test_a_rules_own_comes_before_that_of_the_command(self, tmp_path):
        arrays = {"norm": random(2), "w": random(2), "steps": np.arange(3, dtype=np.int32)}
        made, _ = there(tmp_path, self.TEXT, arrays, dtype="float16")
        assert {name: str(array.dtype) for name, array in made.items()} == {
            "norm": "float32",
            "w": "float16",
            "steps": "int64",
        }
        assert {n: str(a.dtype) for n, a in back(tmp_path, self.TEXT, made)[0].items()} == {
            n: str(a.dtype) for n, a in made.items()
        }

    def test_its_other_spellings(self, tmp_path):
        text = f"{HEAD} - {{source: a, target: a, dtype: half}}\n"
        assert there(tmp_path, text, {"a": random(2)})[0]["a"].dtype == np.float16

    def test_what_rounding_loses_is_told(self, tmp_path):
        text = HEAD + " - {source: [a, b], target: c, op: concat, dtype: float16}\n"
        arrays = {"a": np.float32([1e6, 1]), "b": np.float32([1e-9, 2])}
        source = write(tmp_path / "a.npz", "npz", arrays)
        from ckptkit.convert.execution import execute

        with open_reader(source) as reader:
            chosen = Options("npz", rules=rules_of(tmp_path, text))
            done = execute(plan(reader, chosen), reader, chosen.target, tmp_path / "b.npz")
        assert [str(loss) for loss in done.losses] == ["c (1 to infinity, 1 to zero)"]


class TestHowSure:
    TEXT = HEAD + (
        " - {source: a, target: x, sure: proven}\n"
        " - {source: b, target: y, sure: guessed}\n"
        " - {source: c, target: z, sure: ambiguous}\n"
    )

    def test_ambiguous_rules_are_refused_by_their_lines(self, tmp_path):
        arrays = {name: random(1) for name in "abc"}
        with pytest.raises(UsageError, match=r"1 rule is ambiguous: line 5 \(c\)"):
            there(tmp_path, self.TEXT, arrays)

    def test_guessed_ones_are_named_in_a_note_and_in_the_file(self, tmp_path):
        arrays = {name: random(1) for name in "abc"}
        text = self.TEXT.replace(", sure: ambiguous", "")
        _, decided = there(tmp_path, text, arrays)
        assert "1 rule is guessed: the rule on line 4 (b)" in decided.notes
        with open_reader(tmp_path / "made.npz") as reader:
            assert reader.metadata["rules_guessed"] == '["b"]'

    def test_proof_may_be_required(self, tmp_path):
        arrays = {name: random(1) for name in "abc"}
        text = self.TEXT.replace(", sure: ambiguous", "")
        with pytest.raises(UsageError, match=r"2 rules are not proven: line 4 \(b\), line 5 \(c\)"):
            there(tmp_path, text, arrays, require="proven")
        proven = text.replace("guessed", "proven").replace("z}", "z, sure: proven}")
        assert set(there(tmp_path, proven, arrays, require="proven")[0]) == set("xyz")


BROKEN = """\
version: 2
rules:
  - {source: [a, b], target: c}
  - {source: a, target: [b, c]}
  - {source: "e{e}", target: e, op: stack}
  - {source: "e{e}", target: "f{e}", op: stack, over: e}
  - {source: "e{e}", target: f, op: stack, over: n}
  - {source: g, target: [a, b], op: split, parts: [1]}
  - {source: g, target: [a, b], op: split, over: t, axis: 0, axes: "t h -> h"}
  - {source: g, target: [a, b], op: split, over: t, axes: "h -> t h"}
  - {source: g, target: h, axis: 1}
  - {target: h, fill: zeros}
  - {target: "h{n}", fill: zeros, shape: []}
  - {target: "h{n}", fill: zeros, shape: [], with: "nobody{n}"}
  - {source: h, target: h, fill: ones, shape: []}
  - {source: "a{x...}b{y...}", target: "{x...}{y...}"}
  - {source: "{x...}", target: "{x}"}
  - {source: "a{i*2}", target: "b{i}"}
  - {source: a, target: b, dtype: float33}
  - {source: a, target: b, axes: "heads d -> d head"}
  - {source: a, target: b, axes: "a d -> d a", op: linear}
  - {target: b}
  - {source: a, target: b, op: conkat}
  - {source: g, target: [a, b], op: split, over: t, axes: "t h -> h", sizes: {t: 2}}
  - {source: ["{e}a", "{e}b"], target: c, op: stack, over: e}
  - {source: "{e}a", target: c, op: stack, over: e, axis: 1}
  - {source: ["{e}a", "b"], target: c, op: stack, over: e, axis: 1}
  - {source: c, target: ["{e}a", "{e}b"], op: stack, over: e, axis: 1}
"""


def test_every_fault_of_a_file_at_once_with_its_line(tmp_path):
    from ckptkit.base import errors

    token = errors.WHOLE_LISTS.set(True)
    try:
        with pytest.raises(UsageError) as caught:
            rules_of(tmp_path, BROKEN)
    finally:
        errors.WHOLE_LISTS.reset(token)
    told = str(caught.value)
    for line, what in (
        (3, "a list as source needs 'op: concat'"),
        (4, "a list as target needs 'op: split'"),
        (5, "'over' is missing"),
        (6, "{e} is in 'f{e}' too"),
        (7, "{n} is not in 'e{e}'"),
        (8, "1 'parts' of 2 tensors"),
        (9, "'over' is an axis of its own"),
        (10, "t belongs to the left of the arrow alone"),
        (11, "'axis' has no meaning for a rule without op"),
        (12, "'shape' is missing"),
        (13, "the placeholders of 'h{n}': 'with' is missing"),
        (15, "'source' has no meaning for a constant"),
        (16, "more than one placeholder with ..."),
        (17, "{x} is {x...} on one side only"),
        (18, "{i*2} is not a placeholder"),
        (19, "unknown dtype 'float33'"),
        (20, "do not name the same axes"),
        (21, "give either 'op' or 'axes'"),
        (22, "source is missing"),
        (23, "unknown op 'conkat'"),
        (24, "sizes are given for t"),
        (25, "'axis' is missing: of the one tensor, along which those of one number are joined"),
        (26, "'axis' has no meaning for op: stack"),
        (27, "{e} is not in 'b'"),
        (28, "a list as target needs 'op: split'"),
    ):
        fault = next((part for part in told.split("; ") if f"line {line}: " in part), told)
        assert what in fault
    sound = "version: 2\nrules:\n - {source: a, target: b}\n"
    with pytest.raises(UsageError, match="line 4: no rule has the target 'nobody"):
        rules_of(tmp_path, sound + ' - {target: "h{n}", fill: zeros, shape: [], with: "nobody{n}"}\n')


PLAIN = "{source: a, target: b, op: linear}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("version: 3\nrules: []", "line 1: version 3 is not known here: 1 or 2"),
        ("version: '2'\nrules: []", "version 2 is not known here"),
        (f"rules:\n - {PLAIN[:-1]}, dtype: int8}}", "unknown key rules[0].dtype, which needs 'version: 2'"),
        (f"strip: [a]\nrules:\n - {PLAIN}", "unknown key strip, which needs 'version: 2'"),
        ("rules:\n - {source: 'a{i+1}', target: 'b{i}', op: linear}", "write 'version: 2' for others"),
        ("version: 1\nrules:\n - {source: a, target: b}", "give either 'op' or 'axes'"),
        ("version: 2\nrules:\n - {source: 'a{i}', target: b, op: stack, over: '{i}'}", "a name alone"),
        ("version: 2\nrules:\n - {source: a, target: b, op: glue}", "one of concat, split, stack, unstack"),
        (f"version: 2\nrules:\n - {PLAIN[:-1]}, with: c}}", "'with' has no meaning for a rule without op"),
        ("version: 2\nrules:\n - {source: [], target: b, op: concat}", "rules[0].source"),
    ],
)
def test_versions(tmp_path, text, told):
    with pytest.raises(UsageError) as caught:
        rules_of(tmp_path, text)
    assert told in str(caught.value) and "\n" not in str(caught.value)


class TestWhatItMayCost:
    """Hostile files and checkpoints end in one line, in little time and memory."""

    def refused(self, tmp_path, text, arrays, kind=(UsageError, ConversionError)):
        source = write(tmp_path / "m.safetensors", "safetensors", arrays)
        started = time.process_time()
        with open_reader(source) as reader, pytest.raises(kind) as caught:
            plan(reader, Options("npz", rules=rules_of(tmp_path, text)))
        assert time.process_time() - started < 2
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 3000
        return str(caught.value)

    def test_a_tensor_of_a_million_parts(self, tmp_path):
        text = f"{HEAD} - {{source: w, target: 'w{{n}}', op: unstack, over: n}}\n"
        told = self.refused(tmp_path, text, {"w": np.zeros(1_000_000, np.uint8)})
        assert "too many rules for its tensors: more than" in told

    def test_a_list_of_a_million_parts(self, tmp_path):
        text = f"{HEAD} - {{source: w, target: [a, b], op: split, parts: [{'1, ' * 1_000_000}]}}\n"
        assert "more than 50,000 values" in self.refused(tmp_path, text, {"w": random(1)})

    def test_a_stack_with_a_gap_of_a_quintillion(self, tmp_path):
        text = f"{HEAD} - {{source: 'w{{n}}', target: w, op: stack, over: n}}\n"
        told = self.refused(tmp_path, text, {"w0": random(1), f"w{10**17}": random(1)})
        assert "more missing beside 'w0'" in told

    def test_thousands_of_rules_that_each_might_fit(self, tmp_path):
        rules = "".join(
            f" - {{source: 'a{{x...}}_{n}_{{i}}b', target: '{n}{{x...}}_{{i}}'}}\n" for n in range(6_000)
        )
        arrays = {f"a{'b' * 50}_{n}_x_1b": random(1) for n in range(300)}
        assert "too many rules for its tensors" in self.refused(tmp_path, HEAD + rules, arrays)

    def test_thousands_of_rules_that_all_fit_every_name(self, tmp_path):
        rules = "".join(f" - {{source: 't{{i}}', target: 'y{n}.{{i}}'}}\n" for n in range(3_000))
        arrays = {f"t{i}": np.zeros(1, np.uint8) for i in range(2_000)}
        assert "too many rules for its tensors" in self.refused(tmp_path, HEAD + rules, arrays)

    def test_a_list_of_numbered_parts_beyond_measure(self, tmp_path):
        text = f"{HEAD} - {{source: w, target: ['{{n}}a', '{{n}}b'], op: unstack, over: n, axis: 1}}\n"
        told = self.refused(tmp_path, text, {"w": np.zeros((1_000_000, 2), np.uint8)})
        assert "too many rules for its tensors" in told
        text = f"{HEAD} - {{source: ['{{n}}a', '{{n}}b'], target: w, op: stack, over: n, axis: 1}}\n"
        (tmp_path / "stack").mkdir()
        arrays = {"0a": random(1), "0b": random(1), f"{10**17}a": random(1)}
        told = self.refused(tmp_path / "stack", text, arrays)
        assert "more missing beside '0a'" in told

    def test_aliases_that_multiply(self, tmp_path):
        rows = ["a: &a {source: x, target: y}"]
        rows += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdef", "bcdefg", strict=True)]
        assert "values" in self.refused(tmp_path, "version: 2\n" + "\n".join(rows), {"x": random(1)})

    @pytest.mark.parametrize("key", ["source", "target", "over", "axes", "dtype", "fill", "op", "with"])
    def test_a_value_of_a_megabyte(self, tmp_path, key):
        row = {"source": "a", "target": "b", "op": "split", "axes": "a -> a", key: "({x" * 300_000}
        text = HEAD + " - {" + ", ".join(f"{k}: '{v}'" for k, v in row.items()) + "}\n"
        self.refused(tmp_path, text, {"a": random(1)})

    def test_constants_beyond_measure(self, tmp_path):
        rules = "".join(f" - {{target: 'c{n}', fill: ones, shape: [1000000]}}\n" for n in range(100))
        told = self.refused(tmp_path, HEAD + rules + " - {source: w, target: w}\n", {"w": random(1)})
        assert "bytes of ones" in told

    @pytest.mark.parametrize("turned", ["", ", axes: 'i o -> o i'"])
    @pytest.mark.parametrize("to", ["safetensors", "npz"])
    def test_a_conversion_takes_the_memory_of_a_few_tensors(self, tmp_path, turned, to):
        """What Python and numpy allocate; the source is mapped, and its pages are given back."""
        import tracemalloc

        from ckptkit.convert.execution import execute

        part = 300 * 700 * 4
        arrays = {f"l{n}.{name}": random(300, 700) for n in range(16) for name in "qk"}
        arrays |= {f"s{n}": random(600, 700) for n in range(16)}
        arrays |= {f"m{n}.{e}.{name}": random(300, 700) for n in range(4) for e in range(2) for name in "gu"}
        text = HEAD + (
            f" - {{source: ['l{{n}}.q', 'l{{n}}.k'], target: 'l{{n}}.qk', op: concat{turned}}}\n"
            f" - {{source: 's{{n}}', target: ['s{{n}}.q', 's{{n}}.k'], op: split{turned}}}\n"
            " - {source: ['m{n}.{e}.g', 'm{n}.{e}.u'], target: 'm{n}', op: stack, over: e, axis: 1"
            f"{turned.replace('> ', '> e ')}}}\n"
        )
        source = write(tmp_path / "a.safetensors", "safetensors", arrays)
        rules = rules_of(tmp_path, text)
        with open_reader(source) as reader:
            chosen = Options(to, rules=rules)
            decided = plan(reader, chosen)
            tracemalloc.start()
            try:
                execute(decided, reader, chosen.target, tmp_path / "b")
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert 32 * part < sum(array.nbytes for array in arrays.values())
        assert peak < 12 * part, f"{peak / part:.1f} parts of {len(arrays) + 16}"
