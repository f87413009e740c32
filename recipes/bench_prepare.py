# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Measure the making of a corpus: its speed beside a loop that cleans nothing, and its memory at two sizes.

    python recipes/bench_prepare.py                          # frames a second of a core, in turns with pydicom + Pillow
    python recipes/bench_prepare.py --memory 10000 100000    # peak memory of all processes together at so many frames

The files are DICOM loops of phantoms, made first. Seconds are those of the processor, of all processes together, so that
the figures are of one core whatever runs beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pydicom
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

from modeling_urfm.data.phantoms import phantom_frame


RECIPE = Path(__file__).resolve().parent / "prepare.py"
FRAMES = 8  # a file


def write_loops(folder: Path, files: int, height: int, width: int) -> None:
    """DICOM loops, no two frames alike: phantoms under smooth random gains."""
    folder.mkdir(parents=True)
    size, rng = min(height, width) - 32, np.random.default_rng(0)
    stock = [
        phantom_frame(0, patient, frame, image_size=size).image for patient in range(15) for frame in range(FRAMES)
    ]
    for number in range(files):
        pixels = np.zeros((FRAMES, height, width), np.uint8)
        for frame in range(FRAMES):
            gain = cv2.resize(
                rng.uniform(0.3, 1.3, (8, 8)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
            )
            picture = stock[(number % 15) * FRAMES + frame]
            pixels[frame, 16 : 16 + size, 16 : 16 + size] = np.clip(picture * gain, 0, 255)
        dicom(pixels, number).save_as(folder / f"{number:06}.dcm", enforce_file_format=True)


def dicom(pixels: np.ndarray, patient: int) -> pydicom.FileDataset:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = pydicom.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PatientID = "US", f"{patient:06}"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelData = 7, pixels.tobytes()
    return dataset


def plain_loop(raw: Path, output: Path) -> float:
    """pydicom and Pillow, nothing cleaned: seconds of the processor."""
    output.mkdir()
    started = time.process_time()
    for path in sorted(raw.iterdir()):
        for index, frame in enumerate(pydicom.dcmread(path).pixel_array):
            Image.fromarray(frame).save(output / f"{path.stem}-{index}.jpg", quality=95)
    return time.process_time() - started


def prepared(raw: Path, output: Path, workers: int) -> tuple[float, float]:
    """recipes/prepare.py in processes of its own: seconds of the processor, peak memory of all together in bytes."""
    command = [sys.executable, str(RECIPE), str(raw), "--output_dir", str(output), "--num_workers", str(workers)]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak, seconds, over = [0], {}, threading.Event()

    def watch():
        while not over.wait(0.2):
            total = 0
            for child in [process, *process.children(recursive=True)]:
                try:
                    used = child.cpu_times()
                    seconds[child.pid] = used.user + used.system
                    total += child.memory_full_info().pss  # shared pages once
                except psutil.Error:  # it has just ended
                    continue
            peak[0] = max(peak[0], total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    over.set()
    watcher.join()
    if code:
        sys.exit(f"prepare.py ended with {code}")
    return sum(seconds.values()), peak[0]


def speed(folder: Path, files: int) -> None:
    raw, none = folder / "raw", folder / "none"
    write_loops(raw, files, 480, 640)
    write_loops(none, 1, 480, 640)
    frames, ratios = files * FRAMES, []
    for turn in range(3):
        plain = plain_loop(raw, folder / f"plain{turn}")
        start_up, _ = prepared(none, folder / f"none{turn}", 1)
        ours, _ = prepared(raw, folder / f"ours{turn}", 1)
        ours -= start_up * (1 - 1 / files)  # imports: once a run, whatever its size
        ratios.append(plain / ours)
        print(
            f"prepare {frames / ours:.1f} frames/s a core, pydicom + Pillow {frames / plain:.1f}, ratio {ratios[-1]:.3f}"
        )
    print(f"ratio {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def memory(folder: Path, sizes: list[int], workers: int) -> None:
    for size in sizes:
        raw = folder / f"raw{size}"
        write_loops(raw, size // FRAMES, 128, 160)
        started = time.perf_counter()
        _, peak = prepared(raw, folder / f"corpus{size}", workers)
        metrics = json.loads((folder / f"corpus{size}" / "results.json").read_text())["metrics"]
        print(f"{metrics['frames_in']:,} frames in, {metrics['frames_kept']:,} kept: peak {peak / 2**20:.0f} MiB, "
              f"{time.perf_counter() - started:.0f} s, {workers} workers", flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=40, help="Loops of 8 frames of 480 x 640 for the speed.")
    parser.add_argument("--memory", type=int, nargs="+", help="Measure memory instead, at so many frames of 128 x 160.")
    parser.add_argument("--num_workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.memory:
            memory(Path(scratch), arguments.memory, arguments.num_workers)
        else:
            speed(Path(scratch), arguments.files)
