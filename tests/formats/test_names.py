"""Which format a name says, and what is refused because of its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ckptkit.base.errors import UsageError
from ckptkit.formats.builtin import BUILT_IN, WORDS
from ckptkit.formats.names import (
    FORMATS,
    file_ending,
    format_named,
    format_to_write,
    is_folder,
    without_ending,
)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("m.safetensors", "safetensors"),
        ("m.SafeTensors", "safetensors"),
        ("m.pth", "torch"),
        ("M.PTH", "torch"),
        ("m.pt", "torch"),
        ("pytorch_model.bin", "torch"),
        ("m.pth.tar", "torch"),
        ("m.ckpt", "tf"),
        ("m.weights.h5", "keras"),
        ("m.Weights.H5", "keras"),
        ("m.h5", "keras2"),
        ("m.HDF5", "keras2"),
        ("m.npz", "npz"),
        ("my.npz/m.pth", "torch"),
        ("my.dir.v2/m.npz", "npz"),
        ("s3://bucket/x/m.pth", "torch"),
        ("-m.pth", "torch"),
        ("moat.v2.pth", "torch"),
        (Path("there/m.npz"), "npz"),
    ],
    ids=str,
)
def test_the_ending_decides(name, format):
    assert format_to_write(None, name) == format
    assert format_to_write(format, name) == format


def test_without_a_name_there_is_a_default():
    assert format_to_write(None, None) == "safetensors"
    assert [format_to_write(format, None) for format in FORMATS] == list(FORMATS)


@pytest.mark.parametrize(
    ("to", "name", "format"),
    [
        ("torch", "lightning.ckpt", "torch"),
        ("tf", "model.ckpt-1000", "tf"),
        ("tf", "prefix", "tf"),
        ("torch", "moat.v2", "torch"),
        ("npz", "x.out", "npz"),
        ("pytorch", "m.pt", "torch"),
    ],
)
def test_a_format_that_is_named_takes_names_that_say_nothing_else(to, name, format):
    assert format_to_write(to, name) == format


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("other", FORMATS)
def test_a_contradiction_is_refused_with_both_ways_out(format, other):
    for ending in BUILT_IN[other].endings:
        name = f"there.v2/m{ending}"
        if format == other or (format, ending) == ("torch", ".ckpt"):
            assert format_to_write(format, name) == format
            continue
        says = f"m{re.escape(ending)} is the name of {'an' if other == 'npz' else 'a'} {other} file"
        with pytest.raises(UsageError, match=says) as refused:
            format_to_write(format, name)
        renamed = re.search(r"-o (\S+), or --to (\S+)", refused.value.hint)
        assert format_to_write(format, renamed[1]) == format and renamed[1].startswith("there.v2/m.")
        assert format_to_write(renamed[2], name) == other


@pytest.mark.parametrize(
    ("name", "says", "instead"),
    [
        ("k.keras", "a whole Keras model", "k.weights.h5"),
        ("k.weights.json", "in shards", "k.weights.h5 --max-shard-size 5GB"),
        ("m.ckpt.index", "prefix", "m.ckpt"),
        ("m.index", "prefix", "m.ckpt"),
        ("m.safetensors.index.json", "shards", "m.safetensors --max-shard-size 5GB"),
        ("pytorch_model.bin.index.json", "shards", "pytorch_model.pth --max-shard-size 5GB"),
        ("m.gguf", "GGUF", "m.safetensors"),
        ("m.tflite", "TFLite", "m.safetensors"),
        ("m.npy", "single array", "m.npz"),
        ("m.tar.gz", "archive", "m.safetensors"),
        ("m.zip", "archive", "m.safetensors"),
        ("m.onnx", "a graph", "m.onnx"),
    ],
)
def test_names_that_no_conversion_is_written_under(name, says, instead):
    for to in (None, "keras" if name.startswith("k.") else None):
        with pytest.raises(UsageError, match=says) as refused:
            format_to_write(to, name)
        assert refused.value.hint.endswith(f"-o {instead}")


def test_a_whole_keras_model_is_exported():
    with pytest.raises(UsageError) as refused:
        format_to_write(None, "k.keras", "moat0-224")
    assert refused.value.hint == (
        "'ckptkit export moat0-224 --to keras -o k.keras' writes one; "
        "for the weights alone give -o k.weights.h5"
    )


@pytest.mark.parametrize("name", ["m.foo", "m", "m.ckpt-1000", "m."])
def test_names_that_say_nothing_need_a_format(name):
    with pytest.raises(UsageError, match="cannot tell the format") as refused:
        format_to_write(None, name)
    assert "--to" in refused.value.hint
    offered = re.findall(r"(\.[a-z0-9.]+)[ ,]", refused.value.hint)
    assert [format_to_write(None, f"m{ending}") for ending in offered] == list(FORMATS)


@pytest.mark.parametrize("alias", [*WORDS, *FORMATS])
def test_other_words_for_formats(alias):
    assert format_named(alias.upper()) == WORDS.get(alias, alias)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("pytroch", "did you mean torch? choose from safetensors, torch, tf, keras, keras2, npz, dcp"),
        ("xyz", "choose from safetensors, torch, tf, keras, keras2, npz, dcp"),
        ("onnx", "Run: ckptkit export 'my model.pth' --to onnx"),
    ],
)
def test_words_for_no_format(word, hint):
    with pytest.raises(UsageError) as refused:
        format_named(word, "my model.pth")
    assert refused.value.hint == hint


def test_what_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "m.pth").mkdir()
    (tmp_path / "file").write_text("")
    folders = ["there", "there/", "~/there", ".", "new/", "new.pth/", "m.pth/", "s3://bucket/", "~"]
    assert [is_folder(name) for name in folders] == [True] * len(folders)
    files = ["new", "new.pth", "file", "s3://bucket/there", "there/m"]
    assert [is_folder(name) for name in files] == [False] * len(files)
    assert is_folder("new", results=2) and not is_folder("new.pth", results=2)
    assert not is_folder("file", results=2)
    with pytest.raises(UsageError, match=r"m\.pth is a folder; give -o m\.pth/"):
        is_folder("m.pth")
    with pytest.raises(UsageError, match="is empty"):
        is_folder("")
    with pytest.raises(UsageError, match="is a file"):
        is_folder("file/")


def test_names_without_their_endings():
    names = ["a.tar.gz", "a.pth.tar", "a.ckpt.index", "a.safetensors.index.json", "a.weights.h5", "a.PT", "a"]
    assert [without_ending(name) for name in names] == ["a"] * len(names)
    assert [without_ending(name) for name in (".pth", "a.v2", "a.tar.pth")] == [".pth", "a.v2", "a"]
    assert [file_ending(name) for name in names[:-1]] == [
        ".tar.gz",
        ".pth.tar",
        ".index",
        ".index.json",
        ".weights.h5",
        ".pt",
    ]
