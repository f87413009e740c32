# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""`review.html`: every frame before and after de-identification, for the person who must sign the release.

The page holds originals, with all that is burned into them, so it goes to the private folder and nowhere else, readable by
its owner alone. Rows are written as they come. After `PAGE_ROWS` rows or `PAGE_BYTES` of pictures a further page begins
(`review-0002.html` ...): a browser opens each quickly, however large the corpus, and memory is that of two pages. Switches
are plain check boxes and CSS; no script runs, and nothing is asked of a network.
"""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from .card import number
from .markup import REVIEW_STYLE, document
from .reasons import REASONS
from .shards import write_atomically


STATUSES = ("kept", "dropped", "rejected")
PAGE_ROWS = 100
PAGE_BYTES = 24 * 2**20
# Outlines differ by colour and by dash, so that they can be told apart without colour vision: (colour, dashes, what it is).
OUTLINES = {
    "found": ("#2fc4b2", "", "scan region as found"),
    "declared": ("#f5b53d", "10 6", "region that the header declares"),
    "reference": ("#e377d0", "2 5", "region drawn by hand"),
    "marks": ("#ff6a5c", "5 3", "text and marks"),
}
CHECKS = (
    ("Names, dates, numbers, places", "No picture at the right, also with dark pixels brightened, shows any text of a person, "
     "a hospital or a date; faint and handwritten marks included."),
    ("Scan region", "The outline as found holds the ultrasound picture and nothing else."),
    ("Faces", "No picture can be recognised as a person (three-dimensional views of a fetus, photographs)."),
    ("Rejected files", "Each was rejected for a reason that holds; nothing that matters is missing."),
    ("Attributes that leave", "Maker, model, transducer and organ, as listed under each row, point to no person or single site."),
    ("Patients", "Patient hashes differ between patients and agree between files of one patient, as far as the paths tell."),
    ("Permission", "Licence, consent or approval of every source permits this release."),
    ("The private folder", "The key and this folder are kept apart from the corpus, and only by those who may see originals."),
)  # fmt: skip


@dataclass(frozen=True)
class ReviewRow:
    """One frame, or one rejected file.

    Attributes:
        path: of the input; private. input: its keyed hash. frame: from 0.
        status: "kept", "dropped" or "rejected". reasons: codes of REASONS.
        before: JPEG or PNG of the original frame, without outlines; None where nothing could be read.
        after: the image that leaves, None where none does.
        size: (height, width) of the frame in pixels, to which the outlines refer.
        outlines: `{"kind": a key of OUTLINES, "polygon": [[x, y], ...], "label": str}`, in pixels.
        facts: what is known of the frame, name to value. detail: free text, for instance the decoder's words.
    """

    path: str
    input: str
    frame: int
    status: str
    reasons: Sequence[str] = ()
    before: bytes | None = None
    after: bytes | None = None
    size: tuple[int, int] | None = None
    outlines: Sequence[dict] = ()
    facts: dict[str, str] = field(default_factory=dict)
    detail: str = ""


def write_review_page(private_dir: Path, rows: Iterable[ReviewRow], *, every: int = 1) -> None:
    """Write `private_dir/review.html`, and `review-0002.html` ... where one page can't hold all rows; mode 0600.

    Pages of an earlier run are removed first. Each file is written in one step, the first page last: it tells the totals,
    and that it is there says that the others are complete.

    Args:
        every: the rows are of every so many-th input file; who signs must know that the rest is not shown.

    Raises:
        ValueError: a status that is none of STATUSES.
    """
    for stale in (private_dir / "review.html", *private_dir.glob("review-[0-9]*.html")):
        stale.unlink(missing_ok=True)
    total, first, page, items, size = Counter(), [], 1, [], 0
    for row in rows:
        if items and (len(items) == PAGE_ROWS or size > PAGE_BYTES):
            first = _close(private_dir, page, items, first, more=True)
            page, items, size = page + 1, [], 0
        number_of_row = sum(total.values()) + 1
        total[row.status] += 1
        items.append((row.status, _row(row, number_of_row)))
        size += len(items[-1][1])
    first = _close(private_dir, page, items, first, more=False)
    body = _summary(total, page, every) + _sign_off(sum(total.values())) + _rows(first, 1, more=page > 1)
    _write(private_dir / "review.html", document("Review before release", _warning() + body, REVIEW_STYLE))


def _close(private_dir: Path, page: int, items: list, first: list, more: bool) -> list:
    """Write a full page; the first is kept, because it also shows the totals."""
    if page == 1:
        return items
    body = f"{_warning()}<h1>Review before release, page {page}</h1>{_rows(items, page, more)}"
    text = document(f"Review before release, page {page}", body, REVIEW_STYLE)
    _write(private_dir / _file(page), text)
    return first


def _write(path: Path, text: str) -> None:
    # Names of files need not be UTF-8; what is not is shown as an escape.
    write_atomically(path, text.encode("utf-8", "backslashreplace").decode("utf-8"), 0o600)


def _file(page: int) -> str:
    return "review.html" if page == 1 else f"review-{page:04d}.html"


def _warning() -> str:
    return """<div class="warning" role="note"><p><strong>Holds identities: never share.</strong></p>
<p>Originals, paths and all that is burned into the pictures. Look at it on this machine, sign the printed table, and delete
it when the release is decided.</p></div>
"""


def _summary(total: Counter, pages: int, every: int) -> str:
    counts = ", ".join(f"{number(count)} {escape(status)}" for status, count in sorted(total.items())) or "nothing"
    links = "".join(f'<a href="{_file(page)}">{page}</a>' for page in range(2, pages + 1))
    spread = f'<nav aria-label="Pages">Further pages: {links}</nav>' if pages > 1 else ""
    part = (
        ""
        if every == 1
        else f'<p class="why">A sample: one input file of {number(every)} is shown, the others are not.</p>'
    )
    return f"""<h1>Review before release</h1>
<p class="lead">Before at the left, what leaves at the right: {counts}. <a href="#rows">To the pictures.</a></p>{part}{spread}"""


def _sign_off(rows: int) -> str:
    lines = "".join(f'<tr><th scope="row">{title}</th><td>{text}</td><td>☐</td></tr>' for title, text in CHECKS)
    fields = ("Name", "Role", "Date", "Signature")
    blanks = "".join(f"<div>{name}</div>" for name in fields)
    return f"""<section class="sign"><h2>Sign-off</h2>
<table><caption>What to check, over {number(rows)} rows or a part that is written down here: ______________</caption>
<thead><tr><th scope="col">what</th><th scope="col">holds when</th><th scope="col">checked, initials</th></tr></thead>
<tbody>{lines}</tbody></table><div class="lines">{blanks}</div></section>
"""


def _rows(items: list[tuple[str, str]], page: int, more: bool) -> str:
    """The switches and the rows of one page; `more`: another page follows."""
    counts = Counter(status for status, _ in items)
    css = "".join(f"body:has(#only-{status}:checked) .row:not(.is-{status}){{display:none}}" for status in counts)
    css += "".join(f"body:has(#hide-{kind}:not(:checked)) .{kind}{{display:none}}" for kind in OUTLINES)
    css += "".join(
        f".{kind} polygon{{stroke:{colour};stroke-dasharray:{dash or 'none'}}}"
        for kind, (colour, dash, _) in OUTLINES.items()
    )
    choices = {"all": len(items)} | dict(sorted(counts.items()))
    radios = "".join(
        f'<label><input type="radio" name="only" id="only-{key}"{" checked" if key == "all" else ""}>{key} ({count})</label>'
        for key, count in choices.items()
    )
    boxes = "".join(
        f'<label><input type="checkbox" id="hide-{kind}" checked><span class="key" style="border-top-color:{colour};'
        f'border-top-style:{"dashed" if dash else "solid"}"></span>{name}</label>'
        for kind, (colour, dash, name) in OUTLINES.items()
    )
    links = [f'<a href="{_file(page - 1)}">previous page</a>'] if page > 1 else []
    links += ['<a href="review.html">first page</a>'] if page > 2 else []
    links += [f'<a href="{_file(page + 1)}">next page</a>'] if more else []
    nav = f'<nav aria-label="Pages, before and after">{"".join(links)}</nav>' if links else ""
    articles = "\n".join(article for _, article in items)
    return f"""<style>{css}</style><h2 id="rows">Pictures</h2>{nav}
<div class="tools"><fieldset><legend>Show</legend>{radios}</fieldset><fieldset><legend>Outlines</legend>{boxes}</fieldset>
<fieldset><legend>Pictures</legend><label><input type="checkbox" id="bright">brighten dark pixels</label>
<label><input type="checkbox" id="large">large</label></fieldset></div>
<main>{articles or "<p>No frame was read.</p>"}</main>{nav}"""


def _row(row: ReviewRow, number_of_row: int) -> str:
    if row.status not in STATUSES:
        raise ValueError(f"status {row.status!r}: one of {', '.join(STATUSES)}")
    why = "; ".join(f"{escape(code)}: {REASONS.get(code, 'not in the vocabulary')}" for code in row.reasons)
    facts = {**row.facts, "input": row.input}
    listed = "".join(f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    detail = f'<p class="detail">{escape(row.detail)}</p>' if row.detail else ""
    out = "" if row.status == "kept" else " out"
    return f"""<article class="row is-{row.status}" id="row-{number_of_row}"><header><h3><bdi>{escape(row.path)}</bdi></h3>
<span class="quiet">frame {row.frame}, row {number_of_row}</span><span class="badge{out}">{row.status}</span>
<label class="quiet"><input type="checkbox"> looked at</label></header>
{f'<p class="why">{why}</p>' if why else ""}<div class="pair">{_before(row)}{_after(row)}</div>
<dl class="facts">{listed}</dl>{detail}</article>"""


def _before(row: ReviewRow) -> str:
    if row.before is None:
        return '<figure><figcaption>Before</figcaption><div class="nothing">No picture could be read.</div></figure>'
    height, width = row.size or _size(row.before)
    groups = []
    for kind in OUTLINES:
        shapes = []
        for outline in row.outlines:
            if outline["kind"] == kind and len(outline["polygon"]) > 2:
                points = " ".join(f"{float(x):.1f},{float(y):.1f}" for x, y in outline["polygon"])
                shapes.append(
                    f'<polygon points="{points}"><title>{escape(str(outline.get("label", "")))}</title></polygon>'
                )
        groups.append(f'<g class="{kind}">{"".join(shapes)}</g>' if shapes else "")
    drawn = f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{"".join(groups)}</svg>'
    caption = f"Before, {width} × {height} px"
    return _figure(caption, row.before, (height, width), f"the original frame {row.frame}", drawn)


def _after(row: ReviewRow) -> str:
    if row.after is None:
        return '<figure><figcaption>After</figcaption><div class="nothing">Nothing of this leaves.</div></figure>'
    height, width = _size(row.after)
    return _figure(f"After, {width} × {height} px", row.after, (height, width), "what leaves of it", "")


def _figure(caption: str, content: bytes, size: tuple[int, int], alt: str, drawn: str) -> str:
    height, width = size
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(content).decode()
    return (
        f'<figure><figcaption>{caption}</figcaption><div class="picture" style="aspect-ratio:{width}/{height};'
        f'max-width:calc(75vh*{width / height:.4f})"><img src="data:image/{kind};base64,{data}" alt="{escape(alt)}" '
        f'width="{width}" height="{height}" loading="lazy" decoding="async">{drawn}</div></figure>'
    )


def _size(content: bytes) -> tuple[int, int]:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return image.height, image.width
