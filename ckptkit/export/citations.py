"""The papers of the families, as they want to be cited."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv."""

    title: str
    authors: tuple[str, ...]
    year: int


PAPERS = {
    "2210.01820": Paper(
        "MOAT: Alternating Mobile Convolution and Attention Brings Strong Vision Models",
        (
            "Chenglin Yang",
            "Siyuan Qiao",
            "Qihang Yu",
            "Xiaoding Yuan",
            "Yukun Zhu",
            "Alan Yuille",
            "Hartwig Adam",
            "Liang-Chieh Chen",
        ),
        2022,
    ),
    "2211.03295": Paper(
        "MogaNet: Multi-order Gated Aggregation Network",
        (
            "Siyuan Li",
            "Zedong Wang",
            "Zicheng Liu",
            "Cheng Tan",
            "Haitao Lin",
            "Di Wu",
            "Zhiyuan Chen",
            "Jiangbin Zheng",
            "Stan Z. Li",
        ),
        2022,
    ),
}
"""By arXiv id. Titles and authors as the published code's own pages give them (google-research/deeplab2,
g3doc/projects/moat_imagenet_pretrained_checkpoints.md; Westlake-AI/MogaNet, README.md)."""


def bibtex(id: str, key: str) -> str:
    """Return an entry for a bibliography; without title and authors for a paper not known here."""
    fields = {"eprint": id, "archivePrefix": "arXiv"}
    paper = PAPERS.get(id)
    if paper is not None:
        known = {
            "title": f"{{{paper.title}}}",
            "author": " and ".join(paper.authors),
            "year": str(paper.year),
        }
        fields = known | fields
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@misc{{{key},\n{lines}\n}}"
