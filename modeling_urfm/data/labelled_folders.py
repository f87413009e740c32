# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Labels that folders and file names tell: `train/CLASS/*`, `images/` with `masks/`, and `X.png` with `X_mask.png`."""

import re
from collections import defaultdict
from pathlib import Path

from .corpus import SIDE_FILES, walk_files
from .labelled_found import Found, is_leftover_file, side_of
from .splits import name_some


IMAGE_FOLDERS, MASK_FOLDERS = ("images", "image"), ("masks", "mask")
MASK_END = re.compile(r"[ _-](?:mask|seg|segmentation|gt|label)(?:[ _-]?\d+)?$", re.IGNORECASE)
CLASSES_FILE = "classes.txt"


def image_files(folder: Path) -> list[Path]:
    """Files at any depth that may be images."""
    return [path for path in walk_files(folder) if is_image_file(path)]


def is_image_file(path: Path) -> bool:
    """By its name, it may be an image: not hidden, no leftover of another system, no table or text."""
    return not path.name.startswith(".") and not is_leftover_file(path) and path.suffix.lower() not in SIDE_FILES


def unpacked(folder: Path) -> Path:
    """`folder`, or the only folder in it where nothing else is there: archives are often unpacked a level too deep."""
    while True:
        inside = [p for p in folder.iterdir() if not p.name.startswith(".") and not is_leftover_file(p)]
        if len(inside) != 1 or not inside[0].is_dir() or side_of(inside[0].name) or not _folders(inside[0]):
            return folder
        folder = inside[0]


def _folders(folder: Path) -> list[Path]:
    inside = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and not is_leftover_file(p))
    return sorted(inside, key=lambda p: p.name)


def shown(path: Path, root: Path) -> str:
    """The name of a file under `root`, with slashes on every system; bytes that are no UTF-8 as question marks."""
    return path.relative_to(root).as_posix().encode("utf-8", "replace").decode()


def read_class_folders(root: Path, name: str) -> Found:
    """`train/CLASS/*` with `test/` and, where there is one, `validation/`; or `CLASS/*`, the split to be cut.

    Raises:
        ValueError: no folder of a class with an image in it.
    """
    sides = {folder: side_of(folder.name) for folder in _folders(root)}
    split = any(sides.values())
    found = Found(name, [], [], [], splits=[] if split else None)
    if split:
        others = [folder for folder, side in sides.items() if not side]
        found.left_out += [(shown(folder, root) + "/", "a folder beside those of the split") for folder in others]
    for top, side in [(top, side) for top, side in sides.items() if side] if split else [(root, None)]:
        stray = [shown(path, root) for path in sorted(top.iterdir()) if path.is_file() and is_image_file(path)]
        found.left_out += [(file, "an image without label: it lies in no folder of a class") for file in stray]
        for folder in [f for f in _folders(top) if f.name.lower() not in IMAGE_FOLDERS + MASK_FOLDERS]:
            files = image_files(folder)
            masks = _masks_beside_images(files)
            found.left_out += [(shown(path, root), "by its name the mask of another image") for path in sorted(masks)]
            if not files:
                found.left_out.append((shown(folder, root) + "/", "a folder of a class without any file"))
            for path in [path for path in files if path not in masks]:
                found.ids.append(shown(path, root)), found.images.append((None, str(path)))
                found.labels.append(folder.name)
                if split:
                    found.splits.append(side)
    if not found.ids:
        raise ValueError(
            f"{name} holds no images in folders of classes. Wanted: train/CLASS/*, test/CLASS/* (and validation/CLASS/* "
            f"where there is one), or CLASS/*. {_what_is_there(root)}"
        )
    return found


def check_classes_of_sides(found: Found) -> None:
    """ValueError where a side has classes that train lacks; a note where train has classes that a side lacks."""
    from ..configuration_urfm import nearest_name

    of_side = defaultdict(set)
    for label, side in zip(found.labels, found.splits):
        if label is not None:
            of_side[side].add(label)
    for side in ("validation", "test"):
        if side in of_side and "train" in of_side:
            unknown = sorted(of_side[side] - of_side["train"])
            if unknown:
                near = nearest_name(unknown[0], sorted(of_side["train"]))
                raise ValueError(
                    f"{found.name}: {side} has classes that train lacks: {name_some(unknown)}. Did you mean {near!r}? "
                    f"Train has: {name_some(sorted(of_side['train']))}."
                )
            missing = sorted(of_side["train"] - of_side[side])
            if missing:
                found.notes.append(f"{side} has no image of {name_some(missing)}")


def _what_is_there(root: Path) -> str:
    inside = sorted(p.name + "/" * p.is_dir() for p in root.iterdir() if not p.name.startswith("."))
    return f"There is: {name_some(inside)}." if inside else "The folder is empty."


def read_mask_folders(root: Path, name: str) -> Found | None:
    """Images and masks of equal names, in folders `images` and `masks` at any place, or `X.png` beside `X_mask.png`.

    `train/images/a.jpg` goes with `train/masks/a.png`, `images/train/a.jpg` with `masks/train/a.png`; what the file of a
    mask has behind the name of its image may be `_mask`, `_seg`, `_segmentation`, `_gt` or `_label`, with a number where
    an image has several (their union is its mask). The folders above say the side, where one is called like one. A file
    `classes.txt` at the top names the ids, a line each, the background first.

    Returns:
        None where nothing here is a mask by its name.
    """
    files = image_files(root)
    in_folders = any(_without(path.relative_to(root), IMAGE_FOLDERS) for path in files)
    masks, images, others = defaultdict(list), [], []
    for path in files:
        inside = path.relative_to(root)
        of_mask = _without(inside, MASK_FOLDERS) if in_folders else None
        of_image = _without(inside, IMAGE_FOLDERS) if in_folders else inside.with_name(inside.stem)
        bare = MASK_END.sub("", inside.stem)
        if of_mask:
            masks[of_mask].append(path)
            if bare != inside.stem:
                masks[of_mask.with_name(bare)].append(path)
        elif not in_folders and bare != inside.stem:
            masks[inside.with_name(bare)].append(path)
        elif of_image:
            images.append((path, of_image))
        else:
            others.append(path)
    if not masks or not images:
        return None
    if not any(key in masks for _, key in images):
        masks, images = _by_number(masks, images)
    found = Found(name, [], [], [], label_names=read_class_names(root))
    taken, sides = set(), []
    for path, key in images:
        own = sorted(masks.get(key, ()))
        taken.update(own)
        found.ids.append(shown(path, root)), found.images.append((None, str(path)))
        found.labels.append([(None, str(mask)) for mask in own] or None)
        sides.append(next(filter(None, (side_of(part) for part in path.relative_to(root).parts[:-1])), None))
    left = sorted({path for paths in masks.values() for path in paths} - taken)
    found.left_out += [(shown(path, root), "a mask without image") for path in left]
    found.left_out += [(shown(path, root), "it lies neither in a folder of images nor of masks") for path in others]
    if any(sides):
        if not all(sides):
            homeless = [image for image, side in zip(found.ids, sides) if not side]
            raise ValueError(f"{name}: some images lie in folders of a split, these don't: {name_some(homeless)}.")
        found.splits = sides
    return found


def _without(inside: Path, folders: tuple[str, ...]) -> Path | None:
    """The path without suffix and without its folder of one of these names: what an image and its mask have in common."""
    for at, part in enumerate(inside.parts[:-1]):
        if part.lower() in folders:
            return Path(*inside.parts[:at], *inside.parts[at + 1 : -1], inside.stem)
    return None


def _by_number(masks: dict[Path, list[Path]], images: list[tuple[Path, Path]]):
    """Keys without the word at their beginning, for `mask_0001-l.png` that goes with `bus_0001-l.png`."""

    def bare(key: Path) -> Path:
        return key.with_name(re.sub(r"^[A-Za-z]+[ _-]+", "", key.name))

    return {bare(key): paths for key, paths in masks.items()}, [(path, bare(key)) for path, key in images]


def _masks_beside_images(files: list[Path]) -> set[Path]:
    """Files that are masks of others by their names: `X_mask.png` beside `X.png`, `masks/X.png` beside `images/X.png`."""
    bare = {path.with_name(path.stem) for path in files}
    pictures = {key for path in files if (key := _without(path, IMAGE_FOLDERS))}
    return {
        path for path in files
        if (MASK_END.search(path.stem) and path.with_name(MASK_END.sub("", path.stem)) in bare)
        or _without(path, MASK_FOLDERS) in pictures
    }  # fmt: skip


def read_class_names(root: Path) -> tuple[str, ...] | None:
    """The lines of `classes.txt`, the background first."""
    path = root / CLASSES_FILE
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"{path} must name the background and every id once, a line each; it has {len(names)} lines.")
    return names
