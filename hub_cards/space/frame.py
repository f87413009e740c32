# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The page before anything was dropped: header, drop zone, examples, and what will be seen."""

from html import escape

from examples import Example
from page import data_uri
from scans import MAX_UPLOAD_MB


MARK = """<svg class="u-mark" viewBox="0 0 64 64" aria-hidden="true"><rect width="64" height="64" rx="14" fill="#0d2a33"/>
<g fill="none" stroke="#4fd1bd" stroke-width="4.5" stroke-linecap="round"><path d="M24 22a12 12 0 0 0 16 0"/>
<path d="M18.5 30a21 21 0 0 0 27 0" opacity=".8"/><path d="M13 38.5a31 31 0 0 0 38 0" opacity=".6"/>
<path d="M8.5 47a40 40 0 0 0 47 0" opacity=".4"/></g><circle cx="32" cy="14" r="4" fill="#fff"/></svg>"""
ARROW = """<svg viewBox="0 0 24 24" aria-hidden="true">
<path d="M12 16V4m0 0L7 9m5-5 5 5M4 16v3a1 1 0 0 0 1 1h14a1 1 0 0 0 1-1v-3"/></svg>"""
LOCK = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M6 11V8a6 6 0 0 1 12 0v3M5 11h14v9H5z"/></svg>'

HEADER = f"""<a class="u-skip" href="#u-result">To the result</a>
<header class="u-top">{MARK}<div><h1>URFM</h1><p>What an ultrasound model sees</p></div>
<p class="u-badge" role="note">Not for clinical use</p></header>"""

DROP_ZONE = f"""<div class="u-drop" id="u-drop">
<input type="file" id="u-file" aria-describedby="u-formats u-privacy" data-max-mb="{MAX_UPLOAD_MB}">
<label for="u-file">{ARROW}<b>Drop a scan</b><span>or <u>choose a file</u></span></label></div>
<p class="u-faint" id="u-formats">An image, a DICOM file or a cine loop: PNG, JPEG, TIFF, DICOM, MP4, AVI, GIF, NIfTI; 8 or 16
bit, up to {MAX_UPLOAD_MB} MB.</p>
<p class="u-privacy" id="u-privacy">{LOCK}<span>Read in memory and forgotten. No file, name or picture is stored or logged.
{{where}}</span></p>"""
LOCAL = "It all stays on this machine."
REMOTE = (
    "<b>But what you drop travels to the machine that runs this page: use files without names, in the picture too.</b>"
)

RESULT = """<section class="u-result" aria-label="Result">
<p class="u-status" id="u-status" role="status" aria-live="polite"></p>
<div id="u-error" role="alert"></div>
<div id="u-result" tabindex="-1"><div class="u-empty"><h2>Nothing to see yet</h2>
<p>Drop a scan or take an example. You will see:</p><ul>
<li><b>the scan region</b> that was found: what lies outside never reaches the model</li>
<li><b>patch features</b> as colours: where they are alike, the model takes the tissue for alike</li>
<li><b>attention</b>: which parts the picture's feature is mixed from</li>
<li><b>the answer</b> of a head on the features, and <b>the nearest cases</b></li></ul></div></div>
</section>"""

FOOTER = """<footer class="u-foot"><p>Model: <b>{name}</b>. A research tool: it finds no disease, and its answers can be wrong for
reasons that nobody sees. Not for clinical use.</p></footer>"""


def frame_html(model: str, examples: dict[str, Example], local: bool = True) -> str:
    """The whole page. `model`: its name. `local`: what is dropped stays on the reader's machine."""
    drop_zone = DROP_ZONE.format(where=LOCAL if local else REMOTE)
    buttons = "".join(
        f"<li><button type='button' class='u-example' data-example='{escape(e.key)}'><img alt='' src='{data_uri(e.thumbnail, 85)}'>"
        f"<span><b>{escape(e.title)}</b><span class='u-faint'>{escape(e.source)}</span></span></button></li>"
        for e in examples.values()
    )
    return (
        f"<div class='u-page'>{HEADER}<div class='u-main'><section class='u-intake' aria-label='Choose a scan'>{drop_zone}"
        f"<h2 id='u-examples-title'>Examples</h2><ul class='u-examples' aria-labelledby='u-examples-title'>{buttons}</ul></section>"
        f"{RESULT}</div>{FOOTER.format(name=escape(model))}</div>"
    )
