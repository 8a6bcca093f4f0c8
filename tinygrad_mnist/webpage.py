"""A page of HTML that needs nothing else: no network, no script, pictures inside; for a screen, a phone and paper."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

STYLE = """body{font:16px/1.5 system-ui,sans-serif;color:#333;max-width:60rem;margin:auto;padding:1rem;
overflow-wrap:anywhere}
h2{margin:2.5rem 0 .3rem}h3{margin:1.5rem 0 .3rem}img{max-width:100%;height:auto}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums;margin:.6rem 0;overflow-wrap:normal}
td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}td.words{text-align:left;white-space:normal;min-width:12rem}
.line{margin:.2rem 0;white-space:pre-wrap}figure{margin:.5rem 0;break-inside:avoid}figcaption{font-size:14px}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(24rem,100%),1fr));gap:.5rem 1rem}
.figures .row{grid-column:1/-1}
.missed{color:#a50f15}.met{color:#006d2c}
@media print{h2,h3{break-after:avoid}img,tr{break-inside:avoid}.wide{overflow:visible}table{font-size:11px}
td,th{padding:.1rem .3rem}}"""
LONG = 25
"""A cell of more characters is words, and wraps."""


def document(title: str, parts: Sequence[str]) -> str:
    """The page; the parts are HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def table(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the heads."""
    rows = []
    for tag, line in zip(("th", *["td"] * len(lines)), lines, strict=False):
        tags = (f'{tag} class="words"' if len(cell) > LONG else tag for cell in line)
        rows.append("".join(f"<{opened}>{html.escape(cell)}</{tag}>" for opened, cell in zip(tags, line, strict=True)))
    return f'<div class="wide"><table>{"".join(f"<tr>{row}</tr>" for row in rows)}</table></div>'


def image(png: bytes | None, words: str) -> str:
    """A picture, and what it shows in words; "" where there is none."""
    if png is None:
        return ""
    return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
