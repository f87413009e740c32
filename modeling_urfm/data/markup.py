# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What `corpus.html` and `review.html` are made of: the document (one file, no script, nothing from the network), tables,
histograms and how they look."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from .card import number


# The browser itself then refuses scripts, and everything that is not inside the file.
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

BASE_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #ffffff; --ink: #1f2933; --quiet: #56626d; --line: #dde1e4;
  --accent: #0b6e99; --soft: #d5e6ee; --warn: #a3261b; --warn-paper: #fdf0ee; }
@media (prefers-color-scheme: dark) { :root { --paper: #11161b; --card: #181f26; --ink: #e3e8ec; --quiet: #9aa7b2;
  --line: #2c363f; --accent: #62bbdf; --soft: #1d3a49; --warn: #ff9d92; --warn-paper: #33191a; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0 auto; max-width: 1120px; padding: 2.5rem 1.5rem 5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 0.3rem; }
h2 { font-size: 1.35rem; letter-spacing: -0.01em; margin: 3.5rem 0 0.8rem; padding-top: 1.4rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.8rem 0 0.6rem; }
p { max-width: 72ch; margin: 0.5rem 0 1rem; }
a { color: var(--accent); }
a:focus-visible, input:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
code { font: 0.88em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); font-weight: 400; font-size: 0.9rem; }
.lead { color: var(--quiet); font-size: 1.08rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 0 0 1.8rem; font-size: 0.92rem; }
caption { text-align: left; font-weight: 600; padding: 0.4rem 0; }
th, td { text-align: left; vertical-align: top; padding: 0.38rem 0.9rem 0.38rem 0; border-bottom: 1px solid var(--line); }
thead th { color: var(--quiet); font-weight: 500; font-size: 0.84rem; }
tbody th { font-weight: 400; overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; }
@media print { :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #000; --quiet: #444; --line: #bbb;
    --accent: #0b6e99; --soft: #d5e6ee; --warn: #a3261b; --warn-paper: #fff; }
  body { max-width: none; padding: 0; font-size: 10.5pt; } nav { display: none; }
  h2, h3 { break-after: avoid; } figure, tr, .row, .sign { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

CORPUS_STYLE = """
.tiles { list-style: none; display: flex; flex-wrap: wrap; gap: 0.7rem 2.6rem; padding: 0; margin: 1.6rem 0; }
.tiles li { color: var(--quiet); font-size: 0.92rem; }
.tiles strong { display: block; color: var(--ink); font-size: 1.75rem; line-height: 1.2; font-weight: 600; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.4rem; margin: 0 0 2rem; font-size: 0.94rem; }
nav a { text-decoration: none; border-bottom: 1px solid var(--soft); }
nav a:hover { border-color: var(--accent); }
figure { margin: 0; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(152px, 1fr)); gap: 0.8rem; }
.frame { background: #000; border-radius: 6px; aspect-ratio: 1; display: grid; place-items: center; overflow: hidden; }
.frame img { display: block; width: 100%; height: 100%; object-fit: contain; }
.sheet figcaption { color: var(--quiet); font-size: 0.78rem; line-height: 1.35; padding: 0.3rem 0.1rem;
  overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 1.6rem 2.2rem; }
.chart figcaption { font-size: 0.92rem; margin-bottom: 0.4rem; color: var(--quiet); }
.chart figcaption b { color: var(--ink); display: block; }
.chart p { margin: 0.2rem 0; font-size: 0.82rem; }
.chart svg { display: block; width: 100%; height: auto; max-width: 420px; }
.chart rect { fill: var(--accent); } .chart rect:hover { fill: var(--ink); }
.chart line { stroke: var(--line); } .chart text { fill: var(--quiet); font-size: 11px; }
.splits { max-width: 560px; }
.columns { columns: 2 400px; column-gap: 3rem; }
.columns .scroll { break-inside: avoid; }
.columns table { table-layout: fixed; } .columns thead th:nth-child(2) { width: 20%; }
.bar { vertical-align: middle; }
.bar span, .whole span { display: block; height: 0.62rem; background: var(--accent); border-radius: 2px; min-width: 1px; }
.whole { background: var(--soft); border-radius: 4px; overflow: hidden; margin: 0 0 1.8rem; }
.whole span { height: 1.1rem; border-radius: 0; }
.sum { font-size: 1.08rem; margin-bottom: 0.5rem; }
@media print { .sheet { grid-template-columns: repeat(6, 1fr); } }
"""

REVIEW_STYLE = """
body { max-width: 1500px; }
.warning { border: 2px solid var(--warn); background: var(--warn-paper); border-radius: 8px; padding: 0.9rem 1.2rem;
  margin: 0 0 1.8rem; } .warning p { margin: 0.2rem 0; max-width: none; }
.warning strong { color: var(--warn); font-size: 1.25rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1rem; margin: 1rem 0; }
.tools { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--line);
  display: flex; flex-wrap: wrap; gap: 0.35rem 1.3rem; padding: 0.7rem 0; margin: 2rem 0 1rem; font-size: 0.92rem; }
.tools fieldset { border: 0; padding: 0; margin: 0; display: flex; flex-wrap: wrap; gap: 0.35rem 1rem; }
.tools legend { float: left; margin-right: 0.8rem; color: var(--quiet); }
.tools label { white-space: nowrap; cursor: pointer; } .tools input { accent-color: var(--accent); margin-right: 0.3rem; }
.key { display: inline-block; width: 1.8rem; height: 0; margin-right: 0.35rem; vertical-align: middle;
  border-top: 3px solid #888; }
.row { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem; margin: 0 0 1.2rem;
  scroll-margin-top: 5rem; content-visibility: auto; contain-intrinsic-size: auto 520px; }
.row header { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; align-items: baseline; margin-bottom: 0.7rem; }
.row h3 { margin: 0; font-size: 1rem; overflow-wrap: anywhere; }
.badge { border-radius: 999px; padding: 0.05rem 0.7rem; font-size: 0.84rem; background: var(--soft); color: var(--ink); }
.badge.out { background: var(--warn-paper); color: var(--warn); box-shadow: inset 0 0 0 1px var(--warn); }
.why { color: var(--warn); margin: 0 0 0.7rem; max-width: none; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; align-items: start; }
.pair figure { margin: 0; min-width: 0; }
.pair figcaption { color: var(--quiet); font-size: 0.86rem; margin-bottom: 0.3rem; }
.picture { position: relative; background: #000; border-radius: 6px; overflow: hidden; margin: 0 auto; }
.picture img { display: block; width: 100%; height: 100%; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.picture polygon { fill: none; stroke-width: 2.5px; vector-effect: non-scaling-stroke; }
.nothing { border: 1px dashed var(--line); border-radius: 6px; color: var(--quiet); display: grid; place-items: center;
  min-height: 8rem; padding: 1rem; text-align: center; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 0.45rem 1.4rem; margin: 0.9rem 0 0;
  font-size: 0.88rem; } .facts div { min-width: 0; } .facts dt { color: var(--quiet); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.detail { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.86rem; margin: 0.8rem 0 0; max-width: none; }
.sign td:last-child { width: 9rem; } .sign td { height: 2.4rem; } .lines { display: grid;
  grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 2.2rem 2rem; margin: 2rem 0; }
.lines div { border-top: 1px solid var(--ink); padding-top: 0.2rem; font-size: 0.86rem; color: var(--quiet); }
body:has(#large:checked) .pair { grid-template-columns: 1fr; }
body:has(#large:checked) .picture { max-width: none !important; }
body:has(#bright:checked) .picture img { filter: brightness(2.6) contrast(1.15); }
@media (max-width: 760px) { .pair { grid-template-columns: 1fr; } .tools { position: static; } }
@media print { .tools { display: none; } .row { border-radius: 0; content-visibility: visible; } }
"""


def document(title: str, body: str, style: str) -> str:
    """A whole HTML page; `body` and `style` are markup, `title` is text."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{escape(title)}</title>
<style>{BASE_STYLE}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """Cells are text and are escaped here; the first of a row is its head."""
    kind = [' class="number"' if index in numeric else "" for index in range(len(heads))]
    top = "".join(f'<th scope="col"{kind[index]}>{escape(head)}</th>' for index, head in enumerate(heads))
    lines = []
    for row in rows:
        cells = "".join(f"<td{kind[index]}>{escape(cell)}</td>" for index, cell in enumerate(row) if index)
        lines.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    empty = f'<tr><td colspan="{len(heads)}">none</td></tr>'
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines) or empty}</tbody></table></div>"
    )


def bar_table(caption: str, head: str, entries: Sequence[tuple[str, int]], total: int) -> str:
    """Counts with their shares of `total` as bars."""
    lines = []
    for name, count in entries:
        share = 100 * count / (total or 1)
        lines.append(
            f'<tr><th scope="row">{escape(str(name))}</th><td class="number">{number(count)}</td>'
            f'<td class="bar"><span style="width:{share:.2f}%"></span></td><td class="number">{share:.1f} %</td></tr>'
        )
    top = (
        f'<th scope="col">{escape(head)}</th><th scope="col" class="number">images</th>'
        '<th scope="col" colspan="2" class="number">share</th>'
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def bin_edges(values: np.ndarray, bins: int = 20) -> np.ndarray:
    """Edges on round numbers; whole numbers of a small range get a bin each. The last bin also holds what lies beyond.

    `values`: at least one. The edges reach to the 99.5th percentile, so that one outlier does not flatten the rest.
    """
    low, high = float(values.min()), float(np.quantile(values, 0.995, method="higher"))
    whole = np.issubdtype(values.dtype, np.integer)
    if whole and high - low < bins:
        return np.arange(low, high + 2) - 0.5
    width = (high - low) / bins or abs(high) / bins or 1.0
    power = 10.0 ** math.floor(math.log10(width))
    # Of whole numbers each bin of 2.5 would hold two or three, and the bars go up and down for nothing.
    factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(factor * power for factor in factors if factor * power >= width * (1 - 1e-9))
    start = math.floor(low / step + 1e-9)
    return step * np.arange(start, max(math.floor(high / step - 1e-9), start) + 2)


def histogram(title: str, values: np.ndarray, unit: str, note: str) -> str:
    """An inline SVG with its caption; without values it says so."""
    if not len(values):
        return f"<figure class='chart'><figcaption><b>{title}</b> not measured. {note}</figcaption></figure>"
    edges = bin_edges(values)
    counts, _ = np.histogram(np.clip(values, edges[0], np.nextafter(edges[-1], edges[0])), edges)
    width, height, base = 320, 150, 122
    whole = bool(np.issubdtype(values.dtype, np.integer) and edges[1] - edges[0] == 1)
    bar = width / len(counts)
    bars = []
    for index, count in enumerate(counts):
        if not count:
            continue
        tall = max(100 * count / counts.max(), 1)
        span = f"{edges[index] + 0.5:g}" if whole else f"{edges[index]:.4g} to {edges[index + 1]:.4g}"
        gap = max(min(2.0, bar / 4), bar - 48)  # a lone bar is not a wall
        bars.append(
            f'<rect x="{index * bar + gap / 2:.1f}" y="{base - tall:.1f}" width="{bar - gap:.1f}" height="{tall:.1f}">'
            f"<title>{span}: {number(int(count))}</title></rect>"
        )
    if whole:
        marks = range(0, len(counts), max(1, math.ceil(len(counts) / 8)))
        ticks = [((index + 0.5) * bar, f"{edges[index] + 0.5:g}", "middle") for index in marks]
    else:
        middle = len(counts) // 2
        ticks = [
            (0, f"{edges[0]:.4g}", "start"),
            (middle * bar, f"{edges[middle]:.4g}", "middle"),
            (width, f"{edges[-1]:.4g}", "end"),
        ]
        ticks = ticks if 0 < middle else [ticks[0], ticks[2]]
    labels = "".join(
        f'<text x="{x:.1f}" y="{base + 16}" text-anchor="{anchor}">{text}</text>' for x, text, anchor in ticks
    )
    middle, most = f"{np.median(values):.4g}", f"{values.max():.4g}"
    spoken = escape(
        f"{title}: histogram of {number(len(values))} values, median {middle}, {values.min():.4g} to {most} {unit}"
    )
    beyond = " The last bar holds all beyond." if values.max() > edges[-1] else ""
    return f"""<figure class="chart"><figcaption><b>{title}</b> {unit}; median {middle}, largest {most}</figcaption>
<svg viewBox="0 0 {width} {height}" role="img" aria-label="{spoken}">
<text x="0" y="10">{number(int(counts.max()))}</text><g>{"".join(bars)}</g>
<line x1="0" y1="{base}" x2="{width}" y2="{base}"/>{labels}</svg>
<p class="quiet">{note}{beyond}</p></figure>"""
