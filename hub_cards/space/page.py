# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A look at a scan as HTML and as what the page's script needs of each frame. Every word is escaped, every picture is inside.

No picture is a file: what was uploaded, and what was made of it, is in one answer to one browser and nowhere else.
"""

import base64
import io
from html import escape

import matplotlib
import numpy as np
from models import Case, Onlooker
from PIL import Image
from scans import Scan
from views import Look

from modeling_urfm.evaluation.visual_sheets import Panel, Scale, component_ramps


SHOWN_ANSWERS = 5
KINDS = {"dicom": "DICOM", "image": "Image", "video": "Video", "volume": "Volume"}
FOUND_BY = {
    "declared": "declared in the header, and true to the pixels",
    "motion": "found from what moves",
    "pixels": "found from the pixels",
    "": "not found: the model saw the whole picture",
}
SHAPES = {"sector": "sector", "curved": "curved array", "linear": "linear array", "unknown": "free form"}


def answer_of(look: Look, onlooker: Onlooker) -> dict:
    """What the server sends: `html`, and for each frame the three pictures, what they are called, and the answers."""
    quality = 90 if len(look.scan.frames) == 1 else 82
    frames = [
        {
            "scan": data_uri(look.scan.frames[i], quality),
            "seen": data_uri(look.scan.seen[i], quality),
            "tokens": data_uri(look.tokens.pictures[i], quality),
            "attention": data_uri(look.attention.pictures[i], quality),
            "name": f"{unit_of(look.scan)} {place_of(look.scan, i)}",
            "place": place_of(look.scan, i),
            "answers": answers(look, i),
        }
        for i in range(len(look.scan.frames))
    ]
    return {
        "html": result_html(look, onlooker, frames[0]),
        "frames": frames,
        "model": onlooker.name,
        "strange": look.strange,
    }


def answers(look: Look, frame: int) -> list[dict]:
    """The likeliest answers to a frame, most likely first; of a regression all of them. `share` is the length of a bar."""
    if look.probabilities is None:
        return []
    row = look.probabilities[frame]
    if look.regression:
        best, shares = range(len(row)), [0.0] * len(row)
        texts = [np.format_float_positional(v, 4, fractional=False, trim="-") for v in row]
    else:
        best, shares = np.argsort(-row, kind="stable")[:SHOWN_ANSWERS], [round(float(v), 4) for v in row]
        texts = [f"{share:.0%}" for share in shares]
    return [{"label": look.labels[i].replace("_", " "), "share": shares[i], "text": texts[i]} for i in best]


def unit_of(scan: Scan) -> str:
    return "frame" if scan.is_loop else "slice" if scan.kind == "volume" else "page"


def place_of(scan: Scan, i: int) -> str:
    return f"{scan.numbers[i] + 1} of {scan.total}"


def data_uri(picture: np.ndarray, quality: int = 90) -> str:
    """(height, width, 3) uint8 as a JPEG inside an address."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


# ---------------------------------------------------------------- the parts


def result_html(look: Look, onlooker: Onlooker, first: dict) -> str:
    several = len(look.scan.frames) > 1
    parts = [summary_html(look, several)]
    if several:
        parts.append(slider_html(look.scan))
    parts += [views_html(look, first), "<div class='u-columns'>", answers_html(look, onlooker, first, several)]
    parts += [facts_html(look.scan), "</div>", cases_html(look.cases, onlooker.cases_note, several)]
    return "\n".join(parts)


def summary_html(look: Look, several: bool) -> str:
    """The heading, which takes the focus, and the button that saves the picture."""
    scan = look.scan
    what = "No scan region was found" if not scan.polygon else f"Scan region: {SHAPES[scan.geometry]}"
    if look.strange:
        what += ". This scan is unlike all that the answers were learnt from: they mean little"
    elif look.probabilities is not None and not look.regression:
        mean = look.probabilities.mean(0)
        best = int(mean.argmax())
        said = f"{look.labels[best].replace('_', ' ')}, {mean[best]:.0%}{' over all frames' if several else ''}"
        what += f". Likeliest: {said}"
    warn = (
        "<p class='u-note'>No ultrasound picture was found in this file. The model looked at all of it, and what it says means "
        "little.</p>"
        if not scan.polygon
        else ""
    )
    return (
        f"<div class='u-head'><h2 id='u-result-title' tabindex='-1'>What the model sees</h2>"
        f"<button type='button' class='u-button' id='u-save'>Save picture <span class='u-faint'>PNG</span></button></div>"
        f"<p class='u-lead'>{escape(what)}.</p>{warn}"
    )


def slider_html(scan: Scan) -> str:
    last = len(scan.frames) - 1
    left_out = f", {len(scan.frames)} of {scan.total} shown" if len(scan.frames) < scan.total else ""
    rate = f" at {scan.frame_rate:.0f} a second" if scan.frame_rate else ""
    play = (
        f"<button type='button' class='u-button u-small' id='u-play' data-rate='{playing_rate(scan):.2f}'>Play</button>"
        if scan.is_loop
        else ""
    )
    return (
        f"<div class='u-loop'>{play}<label for='u-frame'>{unit_of(scan).capitalize()}</label>"
        f"<input type='range' id='u-frame' min='0' max='{last}' step='1' value='0' aria-valuetext='{place_of(scan, 0)}'>"
        f"<output id='u-frame-place' for='u-frame'>{place_of(scan, 0)}</output>"
        f"<span class='u-faint'>{scan.total} {unit_of(scan)}s{rate}{left_out}</span></div>"
    )


def playing_rate(scan: Scan) -> float:
    """Frames a second that make what is shown of a loop last as long as the loop; 10 where the file tells no rate."""
    return min(30.0, max(1.0, (scan.frame_rate or 10.0) * len(scan.frames) / scan.total))


def views_html(look: Look, first: dict) -> str:
    (height, width), (rows, columns) = look.scan.frames.shape[1:3], look.scan.seen.shape[1:3]
    # One shape for the three, so that they stand level; neither a strip nor a tower.
    ratio = min(max(min(width / height, columns / rows), 0.8), 1.6)
    points = " ".join(f"{x + 0.5:.1f},{y + 0.5:.1f}" for x, y in look.scan.polygon)
    outline = (
        f"<svg viewBox='0 0 {width} {height}' aria-hidden='true'><polygon class='u-under' points='{points}'/>"
        f"<polygon points='{points}'/></svg>"
        if points
        else ""
    )
    region = "with the scan region outlined" if points else "as it was read"
    return (
        f"<div class='u-views' style='--u-ratio:{ratio:.3f}'>"
        + figure("scan", "Scan region", f"The picture, {region}", first["scan"], outline,
                 "Only what is inside the outline goes to the model and into the saved picture." if points
                 else "No outline was found; all of it goes to the model.")
        + figure("tokens", "Patch features", "The scan region with each patch coloured by its features", first["tokens"], "",
                 components_html(look.tokens))
        + figure("attention", "Attention", "The scan region with the model's attention over it", first["attention"], "",
                 scale_html(look.attention.legend))
        + "</div>"
    )  # fmt: skip


def figure(key: str, title: str, alt: str, source: str, over: str, below: str) -> str:
    """`below` is HTML."""
    return (
        f"<figure class='u-view'><figcaption>{escape(title)}</figcaption><div class='u-picture'><div class='u-frame'>"
        f"<img data-view='{key}' alt='{escape(alt)}' src='{source}'>{over}</div></div><div class='u-legend'>{below}</div></figure>"
    )


def components_html(panel: Panel) -> str:
    ramp = data_uri(component_ramps(4, 120))
    shares = ", ".join(f"{share:.0%}" for share in panel.legend)
    return f"<img class='u-ramp' alt='' src='{ramp}'><span>Equal colours are equal features. Three components: {shares}.</span>"


def scale_html(scale: Scale) -> str:
    ramp = (
        (matplotlib.colormaps[scale.cmap](np.linspace(0, 1, 120))[None, :, :3] * 255).astype(np.uint8).repeat(8, axis=0)
    )
    return (
        f"<span class='u-scale'>{scale.low:.1f}<img class='u-ramp' alt='' src='{data_uri(ramp)}'>{scale.high:.1f}</span>"
        "<span>1 is an even share. Where attention flows is not what decided.</span>"
    )


def answers_html(look: Look, onlooker: Onlooker, first: dict, several: bool) -> str:
    if look.probabilities is None:
        return (
            "<section class='u-card'><h3>Organ</h3><p class='u-faint'>This model has no head that names what is shown."
            "</p></section>"
        )
    title = onlooker.head.title
    now = f" <span class='u-faint' data-frame-name>{escape(first['name'])}</span>" if several else ""
    rows = "".join(
        f"<li><span class='u-label'>{escape(a['label'])}</span><span class='u-bar'><span style='width:{100 * a['share']:.1f}%'>"
        f"</span></span><span class='u-share'>{escape(a['text'])}</span></li>"
        for a in first["answers"]
    )
    faded = " u-strange" if look.strange else ""
    warn = (
        "<p class='u-note'>Unlike all that this was learnt from: the answers mean little.</p>" if look.strange else ""
    )
    return (
        f"<section class='u-card{faded}' aria-labelledby='u-answers-title'><h3 id='u-answers-title'>{title}{now}</h3>"
        f"<ol class='u-answers{' u-values' if look.regression else ''}' id='u-answers'>{rows}</ol>{warn}"
        f"<p class='u-faint'>{escape(onlooker.head.note)} Not for clinical use.</p></section>"
    )


def facts_html(scan: Scan) -> str:
    facts = {
        "kind": KINDS[scan.kind] + (", cine loop" if scan.is_loop else ""),
        "size": f"{scan.size[1]} x {scan.size[0]} pixels",
        "scan region": FOUND_BY[scan.found_by],
    } | scan.attributes
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    kept = (
        "<p class='u-faint'>Of a DICOM header only these attributes are ever shown. Names, dates and numbers are not read out.</p>"
        if scan.kind == "dicom"
        else ""
    )
    return (
        f"<section class='u-card' aria-labelledby='u-facts-title'><h3 id='u-facts-title'>File</h3><dl class='u-facts'>{rows}</dl>"
        f"{kept}</section>"
    )


def cases_html(cases: list[Case], note: str, several: bool) -> str:
    items = "".join(
        "<li>"
        + (
            f"<img alt='{escape(case.label)}' src='{data_uri(thumbnail(case.picture), 85)}'>"
            if case.picture is not None
            else "<span class='u-nothing' aria-hidden='true'></span>"
        )
        + f"<span class='u-label'>{escape(case.label)}</span><span class='u-faint'>{case.similarity:.2f}</span></li>"
        for case in cases
    )
    whole = " A loop is compared as a whole." if several else ""
    return (
        f"<section class='u-card' aria-labelledby='u-cases-title'><h3 id='u-cases-title'>Nearest cases</h3>"
        f"<ol class='u-cases'>{items}</ol><p class='u-faint'>{escape(note)}{whole} The number is the cosine of the features.</p>"
        "</section>"
    )


def thumbnail(picture: np.ndarray, side: int = 192) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("RGB")
    image.thumbnail((side, side))
    return np.asarray(image)
