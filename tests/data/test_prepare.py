# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""From raw files to a corpus, in this process (the recipe itself: tests/recipes/test_prepare.py)."""

import hashlib
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from modeling_urfm.data import prepare as prepare_module
from modeling_urfm.data.assemble import Staged, decide
from modeling_urfm.data.card import data_card
from modeling_urfm.data.duplicates import EXCLUSION_BITS
from modeling_urfm.data.listing import parse_inputs
from modeling_urfm.data.pages import write_corpus_page
from modeling_urfm.data.prepare import MARKER, Corpus, Engine, prepare
from modeling_urfm.data.process import Settings
from modeling_urfm.data.reasons import REASONS
from modeling_urfm.data.shards import COLUMNS, write_atomically

from .raw_inputs import bytes_of, dicom_loop, image_bytes, screen, write_raw_inputs


CARD = Path(__file__).resolve().parents[2] / "hub_cards" / "dataset_card.md"


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text("k" * 40)
    return str(path)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("raw")
    return folder, write_raw_inputs(folder)


def run(inputs, output_dir: Path, key: str, settings=Settings(), exclude=(), workers=2, **cut) -> dict:  # noqa: B008
    corpus = Corpus(output_dir, output_dir.with_name(output_dir.name + "-private"), **cut)
    given = parse_inputs([str(i) for i in inputs]) + parse_inputs([str(e) for e in exclude], "--exclude ", 1)

    def write_pages(metrics: dict, timings: dict) -> dict:
        results = {"command": "", "versions": {}, "settings": {}, "metrics": metrics, "timings": timings}
        write_atomically(output_dir / "README.md", data_card(CARD, results))
        write_corpus_page(output_dir, results)
        return results

    return prepare(given, corpus, settings, Engine(workers=workers, timeout_s=60), write_pages, key, progress=False)[0]


def table(path: Path):
    return pq.read_table(path).to_pylist()


def rows_of(output_dir: Path) -> list[dict]:
    return [row for path in sorted((output_dir / "data").glob("*.parquet")) for row in table(path)]


def contents(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "results.json")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def made(raw, key, tmp_path_factory) -> tuple[Path, dict]:
    output_dir = tmp_path_factory.mktemp("made") / "corpus"
    return output_dir, run([raw[0]], output_dir, key)


def by_path(output_dir: Path) -> dict[str, dict]:
    """The manifest's rows by the end of the path, through the private map."""
    paths = {row["input"]: row for row in table(output_dir.with_name("corpus-private") / "inputs.parquet")}
    found = {}
    for row in table(output_dir / "manifest.parquet"):
        private = paths[row["input"]]
        found[private["member"] or Path(private["path"]).name] = row | {"detail": private["detail"]}
    return found


def test_every_file_and_frame_is_accounted_for(raw, made):
    output_dir, metrics = made
    manifest = table(output_dir / "manifest.parquet")
    assert len(manifest) == raw[1] == metrics["inputs"] == len({row["input"] for row in manifest})
    for row in manifest:
        assert row["frames_in"] == row["frames_kept"] + row["frames_dropped"]
        codes = [reason.split(":")[0] for reason in row["reasons"]]
        assert set(codes) <= set(REASONS)
        assert sum(int(r.split(": ")[1]) for r in row["reasons"] if ":" in r) == row["frames_dropped"]
        if row["kind"] != "archive":
            expected = "rejected" if not row["frames_kept"] else "partly" if row["frames_dropped"] else "kept"
            assert row["status"] == expected
            assert row["reasons"] or row["status"] == "kept"
    rows = rows_of(output_dir)
    assert len(rows) == metrics["frames_kept"] == sum(row["frames_kept"] for row in manifest)
    for row in manifest:
        assert row["frames_kept"] == sum(r["clip"] == row["input"] for r in rows)


@pytest.mark.parametrize(
    "name, status, reason",
    [
        ("loop0.dcm", "kept", None), ("truncated.dcm", "rejected", "truncated"), ("ct.dcm", "rejected", "other-modality"),
        ("report.txt", "rejected", "no-image"), ("empty.dcm", "rejected", "empty"), (".hidden.png", "kept", None),
        ("renamed.txt", "kept", None), ("screenshot.png", "rejected", "duplicate: 1"),
        ("screenshot resaved.jpg", "rejected", "near-duplicate: 1"), ("gone.png", "rejected", "not-a-file"),
        ("clip.mp4", "partly", "sampling: 4"), ("a/image.png", "kept", None), ("../climbs.png", "rejected", "archive-path"),
        ("a/notes.csv", "rejected", "no-image"), ("export.zip", "partly", None), ("export.tar.gz", "kept", None),
        ("study/12.dcm", "kept", None), ("black.png", "rejected", "no-region: 1|blank: 1"),
    ],
)  # fmt: skip
def test_what_becomes_of_each(made, name, status, reason):
    row = by_path(made[0])[name]
    assert row["status"] == status or (status == "kept" and row["status"] == "partly"), row
    if reason:
        assert set(row["reasons"]) & set(reason.split("|")), row


def test_rows_have_the_schema_and_load_with_datasets(made, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    loaded = datasets.load_dataset(str(made[0]), cache_dir=str(tmp_path))
    assert list(loaded["train"].features) == list(COLUMNS)
    assert sum(map(len, loaded.values())) == made[1]["frames_kept"]
    assert loaded["train"][0]["image"].size[0] >= 48


def test_nothing_that_leaves_names_anything(raw, made):
    everything = b"".join(p.read_bytes() for p in made[0].rglob("*") if p.is_file())
    everything += repr([{**row, "image": None} for row in rows_of(made[0])]).encode()
    everything += repr(table(made[0] / "manifest.parquet")).encode()
    for secret in ("Doe^", "Jane", "1970", "P0001", "clinic/", "screenshot", "loop0", "study/12", str(raw[0])):
        assert secret.encode() not in everything, secret


def test_private_things_are_private(made):
    private = made[0].with_name("corpus-private")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE((private / "review.html").stat().st_mode) == 0o600
    assert stat.S_IMODE((private / "inputs.parquet").stat().st_mode) == 0o600
    assert not (private / "work").exists()  # what was unfinished holds pictures
    assert not (private / "key").exists()  # one was given


def test_a_second_run_does_nothing_and_other_settings_are_refused(raw, made, key):
    before = {p: p.stat().st_mtime_ns for p in made[0].rglob("*")}
    assert run([raw[0]], made[0], key)["frames_kept"] == made[1]["frames_kept"]
    assert before == {p: p.stat().st_mtime_ns for p in made[0].rglob("*")}
    with pytest.raises(FileExistsError, match="other inputs or settings"):
        run([raw[0]], made[0], key, Settings(frames_per_clip=2))
    assert before == {p: p.stat().st_mtime_ns for p in made[0].rglob("*")}


def test_stopped_between_batches_it_goes_on_and_gives_the_same_bytes(raw, made, key, tmp_path, monkeypatch):
    """Stopped after the first batch; after the shards; before the end: each time the rest is done, and no more."""
    output_dir = tmp_path / "corpus"

    class Stop(Exception):
        pass

    def stop(*_, **__):
        raise Stop

    for name in ("write_accounts", "write_review", "decide"):
        with monkeypatch.context() as patch:
            patch.setattr(prepare_module, name, stop)
            with pytest.raises(Stop):
                run([raw[0]], output_dir, key, workers=1)
    prepared = []
    with monkeypatch.context() as patch:
        patch.setattr("modeling_urfm.data.staging.BatchPreparer._prepare", lambda *_: prepared.append(_))
        run([raw[0]], output_dir, key, workers=1)
    assert not prepared
    assert contents(output_dir) == contents(made[0])
    assert contents(output_dir.with_name("corpus-private")) == contents(made[0].with_name("corpus-private"))


@pytest.mark.parametrize("kind", ["frames", "accounts", "reviews"])
def test_what_a_loss_of_power_cut_is_made_again(raw, made, key, tmp_path, monkeypatch, kind):
    output_dir = tmp_path / "corpus"

    def stop(*_, **__):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "write_review", stop)
        with pytest.raises(InterruptedError):
            run([raw[0]], output_dir, key)
    for path in [next((tmp_path / "corpus-private" / "work" / "staging").glob(f"*.{kind}.parquet")),
                 next((output_dir / "data").glob("*.parquet"))]:  # fmt: skip
        os.truncate(path, 200)
    run([raw[0]], output_dir, key)
    assert contents(output_dir) == contents(made[0])


def test_what_an_abandoned_run_left_does_not_leave_with_the_next(raw, made, key, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "write_review", stop)
        with pytest.raises(InterruptedError):
            run([raw[0]], tmp_path / "corpus", key, Settings(frames_per_clip=2), exclude=[raw[0] / "export.zip"])
    assert (tmp_path / "corpus" / "exclusions.parquet").exists()
    run([raw[0]], tmp_path / "corpus", key)
    assert contents(tmp_path / "corpus") == contents(made[0])


def test_folders_of_others_are_refused_and_left_alone(raw, key, tmp_path):
    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    (home / "work" / "thesis.tex").write_text("mine")
    mode = home.stat().st_mode
    given = parse_inputs([str(raw[0])])
    for output_dir, private_dir, message in (
        (tmp_path / "c", home, "holds something else"), (raw[0], tmp_path / "p", "is, or holds, the input"),
        (tmp_path / "c", raw[0], "is, or holds, the input"), (home / "work" / "thesis.tex", tmp_path / "p", "is a file"),
        (tmp_path / "p" / "c", tmp_path / "p", "inside the private folder"),
    ):  # fmt: skip
        with pytest.raises((ValueError, OSError), match=message):
            prepare(given, Corpus(output_dir, private_dir), Settings(), Engine(), dict, key)
    assert (home / "work" / "thesis.tex").read_text() == "mine" and home.stat().st_mode == mode
    assert not (tmp_path / "c").exists() and not (raw[0] / MARKER).exists()


def test_one_run_at_a_time(raw, key, tmp_path):
    (tmp_path / "corpus").mkdir()
    with prepare_module._only_one(tmp_path / "corpus"):
        with pytest.raises(FileExistsError, match="in use by another run"):
            run([raw[0]], tmp_path / "corpus", key)


def test_a_folder_that_cannot_be_read_has_its_line(key, tmp_path, monkeypatch):
    (tmp_path / "raw" / "locked").mkdir(parents=True)
    (tmp_path / "raw" / "a.png").write_bytes(image_bytes(screen(1)))
    real = os.scandir

    def scandir(path="."):  # the super-user, as whom tests may run, reads everything
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    run([tmp_path / "raw"], tmp_path / "corpus", key)
    assert by_path(tmp_path / "corpus")["locked"]["reasons"] == ["not-a-file"]


def test_the_key_decides_the_hashes_and_nothing_else(raw, made, tmp_path):
    (tmp_path / "other").write_text("o" * 40)
    run([raw[0]], tmp_path / "corpus", str(tmp_path / "other"))
    ours, theirs = rows_of(made[0]), rows_of(tmp_path / "corpus")
    hashed = ("patient", "study", "clip")
    assert not {row["patient"] for row in ours} & {row["patient"] for row in theirs}
    for name in set(COLUMNS) - set(hashed):
        assert sorted(map(repr, (r[name] for r in ours))) == sorted(map(repr, (r[name] for r in theirs))), name


def test_excluded_sets_stay_out_and_the_distance_is_told(raw, made, key, tmp_path):
    test_set = tmp_path / "benchmark"
    test_set.mkdir()
    cut = np.flatnonzero(screen(10).any(1)), np.flatnonzero(screen(10).any(0))
    cut = screen(10)[cut[0][0] : cut[0][-1] + 1, cut[1][0] : cut[1][-1] + 1]
    (test_set / "cut to its region.png").write_bytes(image_bytes(cut))  # of export.zip's a/image.png
    (test_set / "same.jpg").write_bytes(image_bytes(screen(7), "JPEG", quality=70))  # of renamed.txt
    (test_set / "other.png").write_bytes(image_bytes(screen(40)))
    (test_set / "broken.png").write_bytes(image_bytes(screen(41))[:500])
    metrics = run([raw[0]], tmp_path / "corpus", key, exclude=[test_set])
    assert by_path(tmp_path / "corpus")["renamed.txt"]["reasons"] == ["excluded: 1"]
    assert by_path(tmp_path / "corpus")["a/image.png"]["reasons"] == ["excluded: 1"]
    assert metrics["reasons"]["excluded"] == 2 and metrics["inputs"] == raw[1]
    (summary,) = metrics["exclusions"]
    assert summary["images"] == 3 and summary["frames_left_out"] == 2 and summary["unreadable"] == 1
    rows = table(tmp_path / "corpus" / "exclusions.parquet")
    compared = [row for row in rows if row["status"] == "compared"]
    assert len(rows) == 4 and len(compared) == 3
    assert min(row["nearest_distance"] for row in compared) == summary["nearest_distance"] > EXCLUSION_BITS


def test_splits_are_by_patient_and_train_is_never_empty(key, tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for patient in range(12):
        for study in range(2):
            dataset = dicom_loop(patient, 1, StudyInstanceUID=f"1.2.{patient}.{study}")
            dataset.PixelData = np.ascontiguousarray(screen(patient, study)).tobytes()
            (folder / f"{patient} {study}.dcm").write_bytes(bytes_of(dataset))
    metrics = run([folder], tmp_path / "corpus", key, validation_share=0.3, test_share=0.3, rows_per_shard=3)
    where: dict[str, set] = {}
    for path in (tmp_path / "corpus" / "data").iterdir():
        split, number, of = path.stem.split("-")[0], path.stem.split("-")[1], path.stem.split("-")[3]
        assert int(number) < int(of) == metrics["splits"][split]["shards"]
        for row in table(path):
            where.setdefault(row["patient"], set()).add(split)
    assert len(where) == 12 and all(len(splits) == 1 for splits in where.values())
    assert len({s for splits in where.values() for s in splits}) == 3
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(folder / "0 0.dcm", one)
    metrics = run([one], tmp_path / "small", key, validation_share=0.49, test_share=0.5)
    assert list(metrics["splits"]) == ["train"]
    assert [p.name for p in (tmp_path / "small" / "data").iterdir()] == ["train-00000-of-00001.parquet"]


def test_split_of_a_patient_does_not_depend_on_the_others():
    rng = np.random.default_rng(0)

    def staged(patients):
        n = len(patients)
        words = rng.integers(0, 2**63, (n, 4)).astype(np.uint64)
        return Staged(np.arange(n), np.zeros(n, int), np.arange(n), words, words, patients)

    patients = rng.integers(0, 2**63, 4000).astype(np.uint64) * np.uint64(2)
    all_of_them = decide(staged(patients), 0.1, 0.2).split
    assert (decide(staged(patients[::3]), 0.1, 0.2).split == all_of_them[::3]).all()
    assert abs((all_of_them == 2).mean() - 0.2) < 0.03 and abs((all_of_them == 1).mean() - 0.1) < 0.02


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_public_data_set_brings_its_labels_and_keeps_its_masks_out(key, tmp_path, form):
    root = tmp_path / "BUSI" / "Dataset_BUSI_with_GT"
    for i, name in enumerate(("benign", "malignant", "normal")):
        (root / name).mkdir(parents=True)
        (root / name / f"{name} (1).png").write_bytes(image_bytes(screen(i + 30)))
        (root / name / f"{name} (1)_mask.png").write_bytes(image_bytes(screen(i + 30) // 255 * 255))
    place = root.parent
    if form == "zip":
        place = Path(shutil.make_archive(str(tmp_path / "busi"), "zip", root.parent))
    metrics = run([f"busi={place}"], tmp_path / "corpus", key)
    rows = rows_of(tmp_path / "corpus")
    assert sorted(row["label"] for row in rows) == ["benign", "malignant", "normal"]
    assert {row["organ"] for row in rows} == {"breast"} and {row["source"] for row in rows} == {"busi"}
    assert metrics["rejected_files"] == {"label-map": 3}
    with pytest.raises(ValueError, match="busi=.*BUSI"):
        run([f"busi={tmp_path / 'corpus'}"], tmp_path / "other", key)


@pytest.mark.parametrize("where", ["private", "key"])
def test_private_things_inside_the_corpus_are_refused(raw, tmp_path, where, key):
    inside = tmp_path / "corpus" / "x"
    private, key_file = (inside, key) if where == "private" else (tmp_path / "p", str(inside))
    with pytest.raises(ValueError, match="lies inside the corpus"):
        prepare(parse_inputs([str(raw[0])]), Corpus(tmp_path / "corpus", private), Settings(), Engine(), dict, key_file)
    assert not (tmp_path / "corpus").exists()


def test_inputs_inside_each_other_are_refused(raw, key, tmp_path):
    with pytest.raises(ValueError, match="lies inside"):
        run([raw[0], raw[0] / "clinic"], tmp_path / "corpus", key)


def test_a_folder_of_something_else_is_left_alone(raw, key, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        run([raw[0] / "export.zip"], tmp_path / "corpus", key)
    assert os.listdir(tmp_path / "corpus") == ["thesis.tex"]


def test_the_corpus_may_lie_inside_its_input(key, tmp_path):
    (tmp_path / "a.png").write_bytes(image_bytes(screen(1)))
    assert run([tmp_path], tmp_path / "corpus", key)["inputs"] == 1


def test_a_wrong_path_names_the_nearest(tmp_path):
    (tmp_path / "clinic").mkdir()
    with pytest.raises(FileNotFoundError, match="Did you mean .*clinic"):
        parse_inputs([str(tmp_path / "clinik")])
    with pytest.raises(ValueError, match="busi"):
        parse_inputs([f"bussi={tmp_path}"])


def test_nothing_left_says_why(key, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="no-image"):
        run([tmp_path / "raw"], tmp_path / "corpus", key)
    assert not (tmp_path / "corpus" / "data").exists()
