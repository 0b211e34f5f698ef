"""Tables as text, and as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

Row = Sequence[str]


def as_text(rows: Sequence[Row], aligns: str) -> str:
    """Columns that are as wide as their widest cell; `aligns` has a "<" or a ">" for each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(f"{cell:{align}{width}}" for cell, align, width in zip(row, aligns, widths, strict=True))
        for row in rows
    )
    return "\n".join(map(str.rstrip, lines))


def as_html(head: Row, rows: Iterable[Row], aligns: str, below: str) -> str:
    """A table with this head, and text below it."""
    styles = [f' style="text-align: {"left" if align == "<" else "right"}"' for align in aligns]

    def line(cells: Row, tag: str) -> str:
        filled = (f"<{tag}{style}>{escape(cell)}</{tag}>" for cell, style in zip(cells, styles, strict=True))
        return f"<tr>{''.join(filled)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table><pre>{escape(below)}</pre>"
