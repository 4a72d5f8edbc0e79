"""What transformers makes of an exported folder; run by a Python that has it, and no ckptkit.

Takes the folder, an ``.npz`` with images, a picture and what ckptkit makes of them, and where to save the
model again. Prints what was found, as JSON.
"""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy


def main(folder: str, file: str, again: str) -> dict[str, object]:
    """Load the folder in every way that its card names."""
    import torch
    from PIL import Image
    from transformers import (
        AutoBackbone,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageClassification,
        pipeline,
    )
    from transformers.models.auto import auto_factory

    assert importlib.util.find_spec("ckptkit") is None
    given = numpy.load(file)
    pixels, wanted = torch.from_numpy(given["images"]), given["wanted"]
    trust = {"trust_remote_code": True}

    def difference(found):
        return float(numpy.abs(found.numpy() - wanted).max() / numpy.abs(wanted).max())

    def loaded(auto):
        model, report = auto.from_pretrained(folder, output_loading_info=True, **trust)
        return model, [len(report[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")]

    said: dict[str, object] = {}
    backbone, said["backbone"] = loaded(AutoModel)
    maps = backbone(pixels).feature_maps
    said["channels"] = backbone.channels == [one.shape[1] for one in maps]
    last = AutoModel.from_pretrained(folder, out_indices=[-1], **trust)(pixels).feature_maps
    said["last"] = len(last) == 1 and torch.equal(last[0], maps[-1])
    said["by name"] = torch.equal(
        AutoModel.from_pretrained(folder, out_features=["stage2"], **trust)(pixels).feature_maps[0], maps[1]
    )
    try:  # the hub guide says that this cannot be: where it can, it may say so
        AutoBackbone.from_pretrained(folder, **trust)
    except Exception as error:  # of huggingface_hub
        said["AutoBackbone of a folder"] = type(error).__name__ == "HFValidationError"
    type(auto_factory.hf_api()).repo_exists = lambda *_, **__: True  # it asks the hub, of a folder too
    other = AutoBackbone.from_pretrained(folder, **trust)(pixels).feature_maps
    said["AutoBackbone"] = torch.equal(other[-1], maps[-1])

    picture, prepared = Image.fromarray(given["picture"]), given["prepared"]
    found = AutoImageProcessor.from_pretrained(folder, **trust)(picture, return_tensors="np")
    said["pixels"] = bool((found["pixel_values"][0] == prepared).all())
    seen_through = picture.copy()
    seen_through.putalpha(128)
    if not backbone.config.num_classes:
        backbone.save_pretrained(again)
        return {**said, "difference": difference(maps[-1])}
    model, said["classifier"] = loaded(AutoModelForImageClassification)
    guesses = pipeline("image-classification", model=folder, **trust)(picture, top_k=3)
    chances, places = model(torch.from_numpy(prepared)[None]).logits[0].softmax(-1).topk(3)
    said["labels"] = [one["label"] for one in guesses] == [model.config.id2label[int(i)] for i in places]
    said["score"] = abs(guesses[0]["score"] - float(chances[0])) < 1e-6
    classify = pipeline("image-classification", model=folder, **trust)
    said["pipeline drops transparency"] = classify(seen_through, top_k=3) == guesses
    said["an array keeps it"] = classify(numpy.asarray(seen_through), top_k=3) != guesses
    half = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.bfloat16, **trust)
    said["half"] = difference(half(pixels.bfloat16()).logits.float()) < 0.1 and half.dtype == torch.bfloat16
    model.save_pretrained(again)
    return {**said, "difference": difference(model(pixels).logits)}


if __name__ == "__main__":
    import torch

    with torch.inference_mode():
        print(json.dumps(main(*sys.argv[1:])))
