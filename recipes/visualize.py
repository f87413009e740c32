# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Look at what the model looks at: attention rollout, patch tokens as colours, similarity to a patch, masked prediction.

    python recipes/visualize.py                                           # the demo's model on phantoms and real examples
    python recipes/visualize.py scan.png --model_name_or_path urfm --output_dir seen
    python recipes/visualize.py loop.dcm --click 120,90                   # a cine loop: a GIF, and a sheet of its frames
    python recipes/visualize.py folder --kinds pca similarity --html      # colours mean the same in all its images
    python recipes/visualize.py scan.png --kinds prediction --teacher demo --dpi 300
    python recipes/visualize.py scan.png --crop_scan_region --pad_square --image_size 256

Inputs stand first: files (DICOM, images, videos, volumes), folders, Parquet files of a corpus. OUTPUT_DIR gets sheet.png
(a row an image, a column a view), prediction.png, a GIF and a sheet for every cine loop, with `--html` viewer.html in which
one clicks on a patch, and results.json. `--click X,Y` names a pixel of the first image, and of the first frame of a loop;
its patch is then looked for in all the others. Without it, the middle of what the model sees is taken.
The pictures show their originals, with all that is burned into them: share what comes of your own files only after a look.
Attention and similarity say what the model uses, not what is true. Not for clinical use.
"""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoConfig

from modeling_urfm import URFMForPreTraining, URFMImageProcessor
from modeling_urfm.data.corpus import FileCorpus, load_corpus
from modeling_urfm.data.demo import PHANTOM_SIZE
from modeling_urfm.data.listing import parse_inputs
from modeling_urfm.data.phantoms import ORGANS, phantom_frame
from modeling_urfm.data.reading import open_source, short, ultrasound_examples
from modeling_urfm.evaluation import visual_sheets as sheets
from modeling_urfm.evaluation import visuals
from modeling_urfm.evaluation.organ_knn import EVALUATION_SEED
from modeling_urfm.evaluation.viewer import write_viewer
from modeling_urfm.flags import check_choice, flag, helps_of, parse_sections
from modeling_urfm.hub.results import run_facts, write_json
from modeling_urfm.pretraining.startup import check_writable
from modeling_urfm.pretraining.teacher import TeacherError, load_teacher


logger = logging.getLogger("visualize")
ASSUMED_FRAME_RATE = 20.0
FRAMES_ON_A_SHEET = 6
IMAGES_IN_A_PAGE = 24
FRAMES_FOR_COLOURS = 8
DEMO_FILES = ("examples_ybr_color.dcm",)  # of pydicom's ultrasound files the echocardiogram, which names nobody


@dataclass
class VisualizeArguments:
    """The `visualize` section of a config file."""

    model_name_or_path: str = flag(
        "Folder or Hub id of a URFM model; for `prediction`, one that was pre-trained.", "urfm"
    )
    output_dir: str = flag("Folder of the pictures and results.json.", "seen")
    kinds: list[str] | None = flag(f"What to show: {', '.join(visuals.KINDS)}. [all that the checkpoint can]")
    click: list[str] | None = flag("Pixels X,Y of the first image whose patches are looked for. [the middle]")
    teacher: str | None = flag("Teacher whose features a prediction is compared with, as in pretrain.py; `demo`.")
    image_size: int | None = flag("Side at which the model sees an image: more patches, above what it was trained at.")
    crop_scan_region: bool | None = flag("Have the model see the scan region alone. [as its processor says]")
    pad_square: bool | None = flag("Pad to a square instead of squeezing. [as its processor says]")
    max_images: int = flag("Stills, and loops, that are shown; evenly chosen where there are more.", 24)
    max_frames: int = flag("Frames shown of a cine loop, evenly chosen where there are more.", 60)
    html: bool = flag("Also write a page in which one clicks on patches; no network is asked.", False)
    dpi: int = flag("Dots per inch of the sheets; 300 for print.", 150)
    seed: int = flag("Draws which patches are hidden.", 0)

    def __post_init__(self):
        for kind in self.kinds or ():
            check_choice("--kinds", kind, visuals.KINDS)
        for name, least, most in (("max_images", 1, 1000), ("max_frames", 2, 1000), ("dpi", 30, 1200)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(
                    f"--{name} {value}: from {least} to {most}. The nearest: {min(max(value, least), most)}."
                )


@dataclass(frozen=True)
class Group:
    """Images that are shown together: all stills, or the frames of one cine loop.

    Attributes:
        stem: of the files. names: one an image. read: from a number to that image, (height, width, 3) uint8.
        frame_rate: of these frames; None for stills. facts: of a loop, for results.json.
    """

    stem: str
    names: list[str]
    read: Callable[[int], np.ndarray]
    frame_rate: float | None = None
    facts: dict | None = None


def main():
    started = time.perf_counter()
    values = parse_sections(
        {"visualize": (VisualizeArguments, helps_of(VisualizeArguments))},
        "Look at what a URFM model looks at.",
        positional=("inputs", "Files or folders; before the flags. [phantoms and pydicom's real examples]"),
    )
    args = VisualizeArguments(**values["visualize"])
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    output_dir = Path(args.output_dir)
    check_writable(output_dir)
    clicks = [parse_click(text) for text in args.click or ()]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor, has_decoder = load_model(args.model_name_or_path, device)
    kinds = chosen_kinds(args, model.config, has_decoder)
    teacher = load_teacher(args.teacher, device=device) if args.teacher else None
    groups = read_groups(values[""], args)

    def look(group: Group, numbers: list[int]) -> list[visuals.Sight]:
        return visuals.look(
            model.urfm, processor, [group.names[i] for i in numbers], [group.read(i) for i in numbers],
            image_size=args.image_size, crop_scan_region=args.crop_scan_region, pad_square=args.pad_square,
            steady=bool(group.frame_rate),
        )  # fmt: skip

    # First all stills and a few frames of each loop: one set of colours for all, in which no long loop has the say. A click
    # beside an image is known before anything is drawn. Loops are read again, whole, one after the other: memory is that
    # of one.
    first = []
    for group in groups:
        everything = list(range(len(group.names)))
        first.append(look(group, evenly(everything, FRAMES_FOR_COLOURS) if group.frame_rate else everything))
        clicked_patches(group, first[-1], clicks)
    fitted = [sight for sights in first for sight in sights]
    colours = visuals.PatchColours([s.tokens for s in fitted], [s.lit for s in fitted]) if "pca" in kinds else None

    output_dir.mkdir(parents=True, exist_ok=True)
    metrics, files = [], []
    for group, seen in zip(groups, first):
        sights = look(group, list(range(len(group.names)))) if group.frame_rate else seen
        patches = clicked_patches(group, sights, clicks)
        predictions = None
        if "prediction" in kinds:
            predictions = visuals.predict(model, processor, sights, teacher=teacher, seed=args.seed)
        files += draw(group, sights, patches, predictions, kinds, colours, processor, model.config, output_dir, args)
        metrics.append(facts_of(group, sights, patches, predictions, kinds))
    results = {
        **run_facts(args.seed),
        "metrics": {
            "model": args.model_name_or_path, "kinds": kinds, "files": [path.name for path in files],
            "pca_explained": colours.explained if colours else None, "groups": metrics,
        },
        "timings": {"total_s": round(time.perf_counter() - started, 1)},
    }  # fmt: skip
    write_json(output_dir / "results.json", results)
    print(f"{sum(len(group.names) for group in groups)} images in {results['timings']['total_s']:.0f} s: "
          + ", ".join(str(path) for path in files))  # fmt: skip


# ---------------------------------------------------------------- what is asked


def parse_click(text: str) -> tuple[int, int]:
    """`"120,90"` to (120, 90)."""
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--click {text!r}: expected X,Y in pixels of the original image, such as 120,90.") from None
    return x, y


def load_model(name: str, device: str) -> tuple[URFMForPreTraining, URFMImageProcessor, bool]:
    """The model, its processor, and whether the checkpoint brought a decoder."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        hint = (
            "an adapter alone: merge it first (merge_and_unload), and save that" if adapter else "no config.json in it"
        )
        raise FileNotFoundError(f"--model_name_or_path {name}: {hint}.")
    try:
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        raise FileNotFoundError(
            f"--model_name_or_path {name}: no such folder, and the Hub gives none of that name "
            f"({short(error).split('. ')[0]}). `accelerate launch recipes/pretrain.py` makes `urfm`."
        ) from error
    if config.model_type != "urfm":
        raise ValueError(
            f"--model_name_or_path {name} is a {config.model_type!r} model; this recipe looks into 'urfm' ones."
        )
    told = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what is missing is told below
    try:
        model, info = URFMForPreTraining.from_pretrained(name, attn_implementation="eager", output_loading_info=True)
    finally:
        transformers.logging.set_verbosity(told)
    missing = sorted(key for key in info["missing_keys"])
    if of_encoder := [key for key in missing if not key.startswith("decoder.")]:
        raise ValueError(
            f"--model_name_or_path {name} lacks weights of the encoder: {of_encoder[0]} and {len(of_encoder) - 1} more."
        )
    try:
        processor = URFMImageProcessor.from_pretrained(name)
    except OSError as error:
        raise FileNotFoundError(
            f"--model_name_or_path {name}: no preprocessor_config.json, so how images must be prepared is unknown. Copy it "
            "from where the model comes from, or write one with URFMImageProcessor(...).save_pretrained."
        ) from error
    return model.eval().to(device), processor, not missing


def chosen_kinds(args: VisualizeArguments, config, has_decoder: bool) -> list[str]:
    """Those asked for, in the order in which they are shown; all that the checkpoint can where none is."""
    kinds = [kind for kind in visuals.KINDS if not args.kinds or kind in args.kinds]
    if "prediction" in kinds and not has_decoder:
        if args.kinds or args.teacher:
            raise ValueError(
                f"{args.model_name_or_path} is an encoder alone: a prediction needs the decoder of the pre-training "
                "checkpoint that it was made from (the folder that recipes/pretrain.py wrote)."
            )
        logger.info("no prediction: %s is an encoder alone.", args.model_name_or_path)
        kinds.remove("prediction")
    if args.teacher and "prediction" not in kinds:
        raise ValueError(f"--teacher {args.teacher} is for --kinds prediction; asked for: {' '.join(kinds)}.")
    if args.teacher and config.target == "pixel":
        raise ValueError(
            f"--teacher {args.teacher}: {args.model_name_or_path} predicts pixels, for which no teacher is."
        )
    if args.image_size and args.image_size % config.patch_size:
        nearest = max(1, round(args.image_size / config.patch_size)) * config.patch_size
        raise ValueError(
            f"--image_size {args.image_size} is no multiple of the patch size {config.patch_size}. The nearest: {nearest}."
        )
    return kinds


# ---------------------------------------------------------------- what is shown


def read_groups(inputs: list[str], args: VisualizeArguments) -> list[Group]:
    """The stills as one group, then each cine loop as one. No image is held, and no file but the loops is kept open."""
    stills = [] if inputs else demo_stills()  # (name, how to read it)
    examples = [path for path in ultrasound_examples() if path.name in DEMO_FILES]
    loops: list[Path] = []
    for given in [given.path for given in parse_inputs(inputs)] or examples:
        corpus = load_corpus(given, progress=given.is_dir())
        for name, reason in corpus.left_out:
            logger.warning("left out: %s: %s", name, reason)
        if not isinstance(corpus, FileCorpus):
            stills += [(corpus.id(i), lambda c=corpus, i=i: as_rgb(c.pixels(i).numpy())) for i in range(len(corpus))]
            continue
        for path, count in corpus.files:
            if count > 1 and open_source(path).is_loop:
                loops.append(Path(path))
                continue
            name = Path(path).name
            stills += [
                (name if count == 1 else f"{name}#{i}", lambda p=path, i=i: open_source(p).frame(i))
                for i in range(count)
            ]
    for what, found in (("stills", stills), ("loops", loops)):
        if len(found) > args.max_images:
            logger.info("%d of %d %s, evenly chosen (--max_images)", args.max_images, len(found), what)
    stills, loops = evenly(stills, args.max_images), evenly(loops, args.max_images)
    groups = []
    if stills:
        groups.append(Group("sheet", [name for name, _ in stills], lambda i: stills[i][1]()))
    taken = {"sheet", "prediction", "viewer"}
    for path in loops:
        stem = path.stem
        while stem in taken:
            stem += "_"
        taken.add(stem)
        groups.append(loop_group(stem, path, args.max_frames))
    return groups


def loop_group(stem: str, path: Path, max_frames: int) -> Group:
    """Every so many-th frame of a loop, at the rate at which it still takes as long as it took."""
    source = open_source(path)
    rate = source.frame_rate or ASSUMED_FRAME_RATE
    stride = sheets.film_stride(rate, source.num_frames, max_frames)
    names = [f"frame {i}" for i in range(0, source.num_frames, stride)]
    facts = {"frames": source.num_frames, "shown_every": stride, "frame_rate": rate,
             "frame_rate_from": "file" if source.frame_rate else "assumed"}  # fmt: skip
    if not source.frame_rate:
        logger.info("%s tells no frame rate: shown at %g a second", path.name, rate)
    return Group(stem, names, lambda i: source.frame(i * stride), rate / stride, facts)


def demo_stills() -> list[tuple[str, Callable[[], np.ndarray]]]:
    """Held-out phantoms; pydicom's real files join them."""

    def phantom(organ: str, lesion: str) -> np.ndarray:
        number = ORGANS.index(organ)
        size = 2 * PHANTOM_SIZE
        frame = phantom_frame(EVALUATION_SEED, number, organ=organ, lesion=lesion, image_size=size, snr_db=15)
        return as_rgb(frame.image[None])

    shown = (("heart", "absent"), ("kidney", "malignant"), ("fetus", "absent"), ("breast", "benign"))
    return [(f"{organ} (phantom)", partial(phantom, organ, lesion)) for organ, lesion in shown]


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """(1 or 3, height, width) uint8 to (height, width, 3)."""
    return np.ascontiguousarray(np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0))


def evenly(items: list, count: int) -> list:
    """At most `count` of the items, evenly chosen, with the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def clicked_patches(group: Group, sights: list, clicks: list[tuple[int, int]]) -> list[int]:
    """The patches of the group's first image that are looked for: those clicked, or the middle one."""
    try:
        return [visuals.patch_at(*click, sights[0]) for click in clicks or [visuals.centre_of(sights[0])]]
    except ValueError as error:
        raise ValueError(f"--click, {group.stem}: {error}") from None


def draw(group: Group, sights, patches, predictions, kinds, colours, processor, config, output_dir: Path, args):
    """Write the pictures of a group; returns their paths."""
    files: list[Path] = []
    views = [sheets.image_panel(sights)]
    if "rollout" in kinds:
        views.append(sheets.rollout_panel(sights))
    if "pca" in kinds:
        views.append(sheets.pca_panel(sights, colours))
    if "similarity" in kinds:
        numbers = range(1, len(patches) + 1) if len(patches) > 1 else [None]
        views += [sheets.similarity_panel(sights, patch, number) for patch, number in zip(patches, numbers)]
    predicted = []
    if predictions:
        predicted = [sheets.hidden_panel(sights, predictions)]
        predicted += (
            [sheets.reconstruction_panel(sights, predictions, processor, config.patch_size)]
            if config.target == "pixel"
            else sheets.prediction_panels(sights, predictions)
        )
    if group.frame_rate:
        shown = views + predicted
        if len(shown) > 1:
            files.append(output_dir / f"{group.stem}.gif")
            sheets.save_film(shown, group.frame_rate, files[-1])
            rows = evenly(list(range(len(sights))), FRAMES_ON_A_SHEET)
            frames = [sheets.Panel(p.title, [p.pictures[i] for i in rows], p.legend) for p in shown]
            files += sheets.save_sheets(
                [group.names[i] for i in rows], frames, output_dir / f"{group.stem}.png", args.dpi
            )
    else:
        if len(views) > 1:
            files += sheets.save_sheets(group.names, views, output_dir / "sheet.png", args.dpi)
        if predicted:
            shown = [views[0], *predicted]
            files += sheets.save_sheets(group.names, shown, output_dir / "prediction.png", args.dpi)
    if args.html:
        files.append(output_dir / ("viewer.html" if not group.frame_rate else f"{group.stem}.html"))
        write_viewer(files[-1], evenly(sights, IMAGES_IN_A_PAGE), patches[0])
    return files


def facts_of(group: Group, sights, patches: list[int], predictions, kinds) -> dict:
    """What a machine can read of the pictures."""
    rows, maps = [], [visuals.similarities(sights, sights[0].tokens[patch]) for patch in patches]
    for i, sight in enumerate(sights):
        row = {"name": sight.name, "size": list(sight.image.shape[:2]), "grid": list(sight.grid),
               "region": list(sight.region), "patches_lit": int(sight.lit.sum())}  # fmt: skip
        if "rollout" in kinds:
            share = sight.rollout / sight.rollout.sum()
            most = visuals.patch_box(int(share.argmax()), sight)
            row |= {"rollout_on_scan": round(float(share[sight.lit].sum()), 4),
                    "rollout_peak_box": [round(side, 1) for side in most]}  # fmt: skip
        if "similarity" in kinds:
            row["similarity_mean"] = [round(float(values[i].mean()), 4) for values in maps]
        if predictions:
            row["patches_hidden"] = int(predictions[i].hidden.sum())
            if predictions[i].cosine is not None:
                row["prediction_cosine"] = round(float(predictions[i].cosine.nanmean()), 4)
        rows.append(row)
    boxes = [[round(side, 1) for side in visuals.patch_box(patch, sights[0])] for patch in patches]
    facts = {"name": group.stem, **(group.facts or {})}
    return facts | ({"clicked_boxes": boxes} if "similarity" in kinds else {}) | {"images": rows}


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, TeacherError) as error:
        sys.exit(f"visualize.py: {error}")
