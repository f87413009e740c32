# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Mutate DICOM, PNG and MP4 files by the thousand and make a corpus of them: no crash, every file accounted for.

    python tests/fuzz_prepare.py --files 6000 --seed 0

Prints what became of them. tests/recipes/test_prepare.py runs it with fewer.
"""

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modeling_urfm.data.reading import ultrasound_examples  # noqa: E402
from tests.data.raw_inputs import bytes_of, dicom_loop, image_bytes, screen, write_video  # noqa: E402


RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "prepare.py"
PNG = b"\x89PNG\r\n\x1a\n"


def seeds(folder: Path) -> dict[str, list[bytes]]:
    """Whole files of each kind."""
    write_video(folder / "clip.mp4", 1)
    small = [path.read_bytes() for path in ultrasound_examples() if path.stat().st_size < 400_000]
    return {
        "dcm": [bytes_of(dicom_loop(0, 2)), bytes_of(dicom_loop(1, 1)), *small],
        "png": [image_bytes(screen(2, size=96)), image_bytes(screen(3, size=96)[..., None].repeat(3, -1))],
        "mp4": [(folder / "clip.mp4").read_bytes()],
    }


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, bytes replaced, a stretch cut, doubled or moved, the end lost, numbers made extreme."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        if not data:
            break
        # Headers stand at the front: half of the mutations go there.
        at = int(rng.integers(len(data) if rng.random() < 0.5 else min(len(data), 2048)))
        length = int(rng.integers(1, 64))
        match int(rng.integers(7)):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at : at + length] = rng.bytes(min(length, len(data) - at))
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data = data[:at]
            case 5:
                extreme = [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f", b"\x01\x00\x00\x00"]
                data[at : at + 4] = extreme[int(rng.integers(4))]
            case 6:
                other = int(rng.integers(len(data)))
                data[at : at + length] = data[other : other + length]
    # Most decoders stop at a wrong checksum: half of the PNGs get right ones, so that what is behind them is tried.
    return with_checksums(bytes(data)) if content.startswith(PNG) and rng.random() < 0.5 else bytes(data)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what is in them now."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        parts.append(data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + length
    return b"".join(parts) + data[at:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        raw = scratch / "raw"
        raw.mkdir()
        kinds = seeds(scratch)
        for number in range(arguments.files):
            rng = np.random.default_rng([arguments.seed, number])
            kind = list(kinds)[number % len(kinds)]
            whole = kinds[kind][int(rng.integers(len(kinds[kind])))]
            (raw / f"{number:06}.{kind}").write_bytes(mutate(whole, rng))
        (raw / "whole.dcm").write_bytes(kinds["dcm"][0])
        started = time.perf_counter()
        command = [sys.executable, str(RECIPE), str(raw), "--output_dir", str(scratch / "corpus"), "--timeout_s", "30"]
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"prepare.py ended with {done.returncode}:\n{done.stderr[-4000:]}")
        report(scratch, arguments.files + 1, seconds)


def report(scratch: Path, expected: int, seconds: float) -> None:
    manifest = pq.read_table(scratch / "corpus" / "manifest.parquet").to_pylist()
    assert len(manifest) == expected, f"{len(manifest)} files accounted for, of {expected}"
    assert all(row["frames_in"] == row["frames_kept"] + row["frames_dropped"] for row in manifest)
    paths = pq.read_table(scratch / "corpus-private" / "inputs.parquet").to_pylist()
    outcomes: dict[str, Counter] = {}
    for row in paths:
        name = "; ".join(r.split(":")[0] for r in row["reasons"]) or row["status"]
        outcomes.setdefault(Path(row["path"]).suffix, Counter())[name] += 1
    for kind, counts in sorted(outcomes.items()):
        print(kind, sum(counts.values()), dict(counts.most_common()))
    for row in paths:
        if {"crashed", "timeout"} & {reason.split(":")[0] for reason in row["reasons"]}:
            print("a worker was lost over", Path(row["path"]).name, row["detail"])
            shutil.copy(row["path"], ".")  # to look at; the seed makes it again
    metrics = json.loads((scratch / "corpus" / "results.json").read_text())["metrics"]
    print(
        f"{expected} files in {seconds:.0f} s: {metrics['files']}, {metrics['frames_in']} frames in, {metrics['frames_kept']} kept"
    )


if __name__ == "__main__":
    main()
