"""A page of HTML that needs nothing else: no network, no script, pictures inside; for a screen, a phone and paper."""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Sequence

STYLE = """body{font:16px/1.5 system-ui,sans-serif;color:#333;max-width:60rem;margin:auto;padding:1rem;
overflow-wrap:anywhere}
h2{margin:2.5rem 0 .3rem}h3{margin:1.5rem 0 .3rem}img{max-width:100%;height:auto}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums;margin:.6rem 0;overflow-wrap:normal}
td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
td:first-child,th:first-child,.left{text-align:left}td.words{text-align:left;white-space:normal;min-width:12rem}
.line{margin:.2rem 0;white-space:pre-wrap}figure{margin:.5rem 0;break-inside:avoid}figcaption{font-size:14px}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(24rem,100%),1fr));gap:.5rem 1rem}
.figures .row{grid-column:1/-1;overflow-x:auto}.row img{min-width:36rem}
@media(max-width:40rem){table{font-size:12px}td,th{padding:.2rem .3rem}}
.missed{color:#a50f15}.met{color:#006d2c}
@media print{body{font-size:12px}h2,h3,h4{break-after:avoid}img,tr{break-inside:avoid}.wide{overflow:visible}
table{font-size:11px}td,th{padding:.1rem .3rem}.figures{grid-template-columns:1fr 1fr}
.figures .row{overflow:visible}}"""
LONG = 25
"""A cell of more characters is words, and wraps."""


def document(title: str, parts: Sequence[str]) -> str:
    """The page; the parts are HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def table(lines: Sequence[Sequence[str]], left: Collection[str] = ()) -> str:
    """The first line is the heads. The first column and those in `left` are aligned there, the others right."""
    heads = lines[0]
    rows = []
    for line in lines:
        tag = "th" if line is heads else "td"
        rows.append("".join(_cell(tag, cell, head in left) for head, cell in zip(heads, line, strict=True)))
    return f'<div class="wide"><table>{"".join(f"<tr>{row}</tr>" for row in rows)}</table></div>'


def _cell(tag: str, text: str, left: bool) -> str:
    kind = ' class="words"' if len(text) > LONG else ' class="left"' if left else ""
    return f"<{tag}{kind}>{html.escape(text)}</{tag}>"


def image(png: bytes | None, words: str) -> str:
    """A picture, and what it shows in words; "" where there is none."""
    if png is None:
        return ""
    return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
