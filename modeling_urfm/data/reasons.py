# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Why a file or a frame did not enter a corpus: a closed vocabulary.

The manifest is published, so it holds these codes and counts and no other text: what a decoder says of a damaged header
may quote a patient's name. The full text stays in the private folder.
"""

REASONS: dict[str, str] = {
    # ---- of a whole file
    "empty": "the file has no bytes",
    "not-a-file": "a link that leads nowhere, a pipe, or a file without read permission",
    "no-image": "not an image, a video, a volume or a DICOM object of a known kind (text, tables, side files)",
    "no-pixels": "a DICOM object without pixel data (structured report, waveform, presentation state, directory)",
    "other-modality": "DICOM of another modality than ultrasound",
    "damaged": "the content contradicts its format",
    "truncated": "the file ends before what it declares",
    "encrypted": "encrypted",
    "too-large": "declares more pixels or frames than an ultrasound image has, or than the file can hold",
    "unsupported": "a transfer syntax, codec or layout that no decoder here reads",
    "timeout": "took longer than allowed",
    "crashed": "the decoder ended its process or asked for more memory than allowed",
    "label-map": "a mask or label map that belongs to another image",
    "archive-bomb": "expands to far more than an archive of images does",
    "archive-path": "an archive's member whose path climbs out of the archive, or a link or device",
    "archive-nested": "an archive inside an archive; unpack it first",
    # ---- of a frame
    "sampling": "not among the frames sampled from its loop",
    "undecodable": "this frame can't be decoded",
    "no-region": "no scan region was found",
    "spectral": "spectral Doppler without a B-mode view",
    "m-mode": "M-mode without a B-mode view",
    "doppler": "colour over the B-mode picture (--drop_doppler)",
    "marks": "text, calipers or marks inside the scan region (--marks drop)",
    "too-small": "the scan region has too few pixels",
    "blank": "hardly any echoes",
    "saturated": "mostly white or clipped",
    "frozen": "equal to the frame before it",
    "not-ultrasound": "no texture of ultrasound: a photograph, a drawing or a page of text",
    "duplicate": "its pixels are equal to those of another frame",
    "near-duplicate": "looks the same as another frame",
    "excluded": "equal or nearly equal to an image of an excluded set",
}
