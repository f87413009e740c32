# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""recipes/prepare.py as a user runs it: real files, planted identities, kills, a cluster, and training on the result."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from modeling_urfm.data.reading import ultrasound_examples
from tests.data.raw_inputs import bytes_of, dicom_loop, write_raw_inputs
from tests.data.screens import has_tesseract, parts, plain, read_text

from .planted import plant
from .test_pretrain import TINY


ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "prepare.py"
ENVIRONMENT = os.environ | {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "URFM_KEY": "a key for tests, 32 bytes long..",
}
pytestmark = pytest.mark.slow


def prepare(*arguments, check=True, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(RECIPE), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, **options)
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


def contents(folder: Path) -> dict[str, str]:
    """Every file but the timings."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.name == "results.json":
            content = json.dumps({k: v for k, v in json.loads(content).items() if k != "timings"}).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def rows_of(corpus: Path) -> list[dict]:
    return [row for path in sorted((corpus / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def paths_of(corpus: Path) -> dict[str, dict]:
    private = corpus.with_name(corpus.name + "-private")
    return {row["input"]: row for row in pq.read_table(private / "inputs.parquet").to_pylist()}


def test_pydicoms_examples_make_a_corpus_that_trains(tmp_path):
    (tmp_path / "raw").mkdir()
    for path in ultrasound_examples():
        shutil.copy(path, tmp_path / "raw")
    corpus = tmp_path / "corpus"
    regions = ROOT / "tests" / "fixtures" / "scan_regions.json"
    prepare(tmp_path / "raw", "--output_dir", corpus, "--reference_regions", regions)
    paths = paths_of(corpus)
    kept = sorted((Path(paths[row["clip"]]["path"]).name, row["frame"]) for row in rows_of(corpus))
    # examples_rgb_color.dcm is examples_jpeg2k.dcm at half the size; ExplVR_BigEnd.dcm is 60 x 80 pixels, mostly yellow.
    assert {name for name, _ in kept} == {"examples_palette.dcm", "examples_jpeg2k.dcm", "examples_ybr_color.dcm"}
    reasons = {Path(row["path"]).name: row["reasons"] for row in paths.values()}
    assert reasons["examples_rgb_color.dcm"] == ["near-duplicate: 1"]
    review = (tmp_path / "corpus-private" / "review.html").read_text()
    assert "not believed" in review and "IoU" in review and "drawn by hand" in review
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", str(ROOT / "recipes" / "pretrain.py"), *TINY,
         "--dataset", str(corpus), "--output_dir", str(tmp_path / "urfm")],
        capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "urfm" / "model.safetensors").exists()


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    files = [plant(folder / "raw", number) for number in range(200)]
    prepare(folder / "raw", "--output_dir", folder / "corpus")
    return files, folder / "corpus"


def test_no_planted_identity_is_in_any_byte(planted):
    files, corpus = planted
    everything = b"\0".join(p.read_bytes() for p in sorted(corpus.rglob("*")) if p.is_file())
    for path in corpus.rglob("*.parquet"):  # compressed: what is in them is looked at unpacked, too
        for row in pq.read_table(path).to_pylist():
            image = row.pop("image", None)
            everything += repr(row).encode() + (image["bytes"] if image else b"")
    everything = everything.upper()
    assert len(pq.read_table(corpus / "manifest.parquet")) == 200
    for file in files:
        for secret in file.secrets + [file.path.name, file.path.parent.name]:
            assert secret.upper().encode() not in everything, (file.path, secret)
            assert secret.upper().encode("utf-16-le") not in everything, (file.path, secret)


@pytest.mark.skipif(not has_tesseract(), reason="needs tesseract (Debian: tesseract-ocr)")
def test_no_planted_identity_can_be_read_in_the_images(planted):
    files, corpus = planted
    by_path = {str(file.path): file for file in files}
    paths = paths_of(corpus)

    def read(row: dict) -> list[str]:
        file = by_path[paths[row["clip"]]["path"]]
        image = cv2.imdecode(np.frombuffer(row["image"]["bytes"], np.uint8), cv2.IMREAD_COLOR)
        text = read_text(image[..., ::-1], zoom=2)
        return [part for part in parts(file.drawn) + [plain(s) for s in file.secrets] if part in text]

    rows = rows_of(corpus)
    assert len(rows) >= 150  # not by leaving everything out
    with ThreadPoolExecutor(2) as pool:
        found = [(row["clip"], text) for row, text in zip(rows, pool.map(read, rows)) if text]
    assert not found


def test_ten_kills_and_the_result_is_that_of_an_uninterrupted_run(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_raw_inputs(raw)
    for patient in range(100, 240):  # several batches
        (raw / f"{patient}.dcm").write_bytes(bytes_of(dicom_loop(patient, 4)))
    started = time.monotonic()
    prepare(raw, "--output_dir", tmp_path / "whole")
    work_s = json.loads((tmp_path / "whole" / "results.json").read_text())["timings"]["total_s"]
    start_s = time.monotonic() - started - work_s
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, str(RECIPE), str(raw), "--output_dir", str(killed)]
    chance, kills = random.Random(0), 0
    while kills < 10:
        process = subprocess.Popen(
            command, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            # Shortly after it has begun, so that it takes several kills to get to the end.
            process.wait(0.8 * start_s + chance.uniform(0.0, 0.5) * work_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        else:  # it got to its end in spite of them: once more
            assert contents(killed) == contents(whole)
            shutil.rmtree(killed)
            shutil.rmtree(tmp_path / "killed-private")
    prepare(raw, "--output_dir", killed)
    assert contents(killed) == contents(whole)
    private = contents(tmp_path / "killed-private")
    assert private == contents(tmp_path / "whole-private")
    assert not [name for name in private if ".tmp-" in name]


def test_a_local_ray_cluster_of_two_workers_gives_the_same_bytes(tmp_path):
    pytest.importorskip("ray")
    raw = tmp_path / "raw"
    raw.mkdir()
    write_raw_inputs(raw)
    for patient in range(100, 150):
        (raw / f"{patient}.dcm").write_bytes(bytes_of(dicom_loop(patient, 2)))
    prepare(raw, "--output_dir", tmp_path / "local")
    prepare(
        raw, "--output_dir", tmp_path / "ray", "--engine", "ray", "--num_workers", 2, "--key_file", key_file(tmp_path)
    )
    ours, theirs = contents(tmp_path / "local"), contents(tmp_path / "ray")
    for name in ("results.json", "README.md", "corpus.html"):  # tell the command
        ours.pop(name), theirs.pop(name)
    assert ours == theirs


def key_file(folder: Path) -> Path:
    (folder / "key").write_text(ENVIRONMENT["URFM_KEY"])
    return folder / "key"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--output_dir", "x"], "no INPUT"),
        (["/nowhere/at/all"], "no such file or folder"),
        ([".", "--frame_sampling", "evn"], "Did you mean 'even'"),
        ([".", "--quality", "min_sides=3"], "Did you mean 'min_side'"),
        ([".", "--max_size", "3"], "at least 32"),
        ([".", "--exclud", "x"], "Did you mean --exclude"),
    ],
)
def test_wrong_arguments_are_answered_with_the_right_one(tmp_path, arguments, message):
    done = prepare(*arguments, check=False, cwd=tmp_path)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
    assert not os.listdir(tmp_path)
