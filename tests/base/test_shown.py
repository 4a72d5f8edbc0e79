"""Results for people: as text, and in a notebook with everything escaped."""

from __future__ import annotations

from ckptkit.base.shown import Column, Gap, Note, Shown, Table


class Report(Shown):
    headline = "a\x1b[2J"

    def pieces(self):
        yield ""
        yield "first <b>"
        yield Table(
            [Column("name"), Column("size", numeric=True)],
            [["<i>&\u202e", "5"], ["b", "1,000"]],
            ["red", None],
        )
        yield "… and 3 more; --verbose shows all"
        yield Gap()
        yield Note("note: \x1b[2J")


def test_text():
    assert str(Report()).splitlines() == [
        "first <b>",
        "name         size",
        "<i>&\\u202e      5",
        "b           1,000",
        "… and 3 more",
        "",
        "note: \\x1b[2J",
    ]
    assert repr(Report()) == "<Report a\\x1b[2J>"


def test_html():
    left, right = ' style="text-align: left"', ' style="text-align: right"'
    assert Report()._repr_html_().splitlines() == [
        "<pre>first &lt;b&gt;</pre>",
        f"<table><thead><tr><th{left}>name</th><th{right}>size</th></tr></thead><tbody>"
        f"<tr><td{left}>&lt;i&gt;&amp;\\u202e</td><td{right}>5</td></tr>"
        f"<tr><td{left}>b</td><td{right}>1,000</td></tr></tbody></table>",
        "<pre>… and 3 more",
        "",
        "note: \\x1b[2J</pre>",
    ]
