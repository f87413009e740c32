# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A teacher's features of every image of a corpus, computed once and read back for any crop of every later epoch.

A folder beside the corpus, made by `recipes/cache_targets.py`:

    meta.json                            whose features these are (`key`), how they were made, what they cost
    codec.safetensors                    `target_codec.TargetCodec`
    targets-00000-of-00012.safetensors   of 512 images: `codes`, bytes of all of them; `offsets`, where each begins;
                                         `cosine`, how near each comes back; in the header a checksum and who is absent

What is read for a crop is the feature map of the whole image, RoI-aligned. An online teacher sees the crop alone, at its
full resolution: the two differ, by how much and at what cost is in recipes/EXPERIMENTS.md.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ..data.reading import UnreadableFile
from ..data.shards import sync_folder, write_atomically
from ..flags import check_choice
from .target_codec import CODEC_VERSION, TargetCodec
from .teacher import NORMALIZATIONS


META, CODEC = "meta.json", "codec.safetensors"
IMAGES_PER_SHARD = 512
MIN_COSINE = 0.985  # between features and what comes back, on average


class TargetCacheError(ValueError):
    """A cache that is missing, unfinished, damaged, or of other images or another teacher; the message says which."""


class TargetMissing(UnreadableFile):
    """An image that could not be read when the cache was made."""


# ---------------------------------------------------------------- whose features these are


def default_folder(datasets: Sequence[str]) -> Path:
    """`corpus` to `corpus-targets`, beside it."""
    first = Path(datasets[0])
    if not first.exists():  # an id on the Hub
        first = Path(str(datasets[0]).replace("/", "--"))
    elif first.name in ("", ".."):
        first = first.resolve()
    names = [first.stem if first.is_file() else first.name, *(Path(name).name for name in datasets[1:])]
    return first.parent / ("+".join(names) + "-targets")


def weights_hash(tower: torch.nn.Module) -> str:
    """Of names, shapes and values as bfloat16: the same whatever the teacher computes in."""
    digest = hashlib.sha256()
    for name, value in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().to(torch.bfloat16).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def cache_key(corpus, teacher_spec: str, teacher_layer: int, teacher=None) -> dict:
    """What must be equal for a cache to be used.

    Args:
        teacher: the loaded `Teacher`; without it its weights can't be compared, and its name is.
    """
    key = {"corpus": corpus.fingerprint, "images": len(corpus), "teacher": teacher_spec, "teacher_layer": teacher_layer}
    if teacher is not None:
        key["teacher_weights"] = weights_hash(teacher.tower)
        key["teacher_input"] = [teacher.image_size, list(teacher.image_mean), list(teacher.image_std)]
    return key | {"codec_version": CODEC_VERSION}


def check_key(folder: Path, held: dict, wanted: dict) -> None:
    """TargetCacheError, naming the first field that differs.

    Where both know the teacher's weights, its name is not compared: a folder that was moved is the same teacher.
    """
    both_know = "teacher_weights" in held and "teacher_weights" in wanted
    for name, value in wanted.items():
        if name == "teacher" and both_know:
            continue
        if held.get(name) != value:
            made = f" (made with {held['teacher']}, this run has {wanted['teacher']})" if "teacher_" in name else ""
            raise TargetCacheError(
                f"{folder} holds targets of {name}={held.get(name)!r}, this run has {name}={value!r}{made}. Make others "
                "with recipes/cache_targets.py in another --output_dir, or delete the folder."
            )


def read_meta(folder: Path) -> dict:
    """`meta.json` of a cache.

    Raises:
        TargetCacheError: there is none, or it can't be read.
    """
    path = Path(folder) / META
    if not path.is_file():
        near = [p.parent.name for p in Path(folder).absolute().parent.glob(f"*-targets/{META}")]
        hint = f" Beside it: {', '.join(sorted(near))}." if near else ""
        raise TargetCacheError(
            f"{folder} is no target cache: no {META} in it.{hint} Make one: recipes/cache_targets.py."
        )
    try:
        meta = json.loads(path.read_text())
        meta["key"], meta["grid"], meta["images_per_shard"]
        return meta
    except (ValueError, KeyError, TypeError) as error:
        raise TargetCacheError(f"{path} is damaged ({type(error).__name__}: {error}).") from error


# ---------------------------------------------------------------- shards


def shard_name(number: int, of: int) -> str:
    return f"targets-{number:05d}-of-{of:05d}.safetensors"


def num_shards(images: int, images_per_shard: int) -> int:
    return -(-images // images_per_shard)


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in ("codes", "offsets", "cosine"):
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def write_shard(path: Path, codes: Sequence[bytes], cosine: Sequence[tuple[float, float]], facts: dict) -> None:
    """Write a shard so that it is there whole or not at all.

    Args:
        codes: of every image; b"" where it is absent.
        cosine: of every image, mean over its patches and lowest; nan where it is absent.
        facts: kept in the header: `unreadable` {id: reason}, `source_bytes`.
    """
    from safetensors.torch import save_file

    tensors = {
        "codes": torch.frombuffer(bytearray(b"".join(codes)) or bytearray(1), dtype=torch.uint8),
        "offsets": torch.tensor([0, *map(len, codes)]).cumsum(0),
        "cosine": torch.tensor(cosine, dtype=torch.float32).view(-1, 2),
    }
    temporary = path.with_name(f".tmp-{path.name}")
    # One entry: safetensors writes several in any order, and the same images are to give the same bytes.
    save_file(tensors, temporary, metadata={"facts": json.dumps(facts | {"sha256": _checksum(tensors)})})
    put_in_place(temporary, path)


def put_in_place(temporary: Path, path: Path) -> None:
    """Force a file to the disk, then give it its name."""
    temporary.chmod(0o644)  # safetensors writes for its owner alone; a cache is for a group
    with temporary.open("r+b") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def read_facts(path: Path, images: int) -> tuple[dict, torch.Tensor] | None:
    """Facts and cosines (images, 2) of a shard, or None where it is missing, cut short or changed."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in ("codes", "offsets", "cosine")}
        if facts["sha256"] != _checksum(tensors) or len(tensors["offsets"]) != images + 1:
            return None
        return facts | {"bytes": int(tensors["offsets"][-1])}, tensors["cosine"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


# ---------------------------------------------------------------- when training


class TargetCache:
    """Targets of a corpus's images for any crop of them. Goes to loader workers: files are opened where they are read.

    Attributes:
        meta: what `meta.json` says. key: whose features these are. bytes: of all codes. hidden_size: width of the features.
    """

    def __init__(self, folder: Path, meta: dict, codec: TargetCodec, grid: tuple[int, int], normalize: str = "none"):
        check_choice("normalize", normalize, NORMALIZATIONS)
        self.folder, self.meta, self.codec = Path(folder), meta, codec
        self.grid, self.normalize = tuple(grid), normalize
        self.key, self.images, self.images_per_shard = meta["key"], meta["key"]["images"], meta["images_per_shard"]
        self.bytes, self.hidden_size = round(meta["bytes_per_image"] * self.images), codec.back.shape[1]
        self._files: dict[int, tuple] = {}

    @classmethod
    def open(cls, folder: str | os.PathLike, key: dict, grid, normalize: str = "none") -> "TargetCache":
        """Open a finished cache.

        Args:
            key: `cache_key` of this run's corpus and teacher. grid: rows and columns of the student's patches.
            normalize: of the decoded features, as `Teacher`'s: "none", "l2" or "layer_norm".

        Raises:
            TargetCacheError: it is missing, not finished, damaged, or another one's; the differing field is named.
        """
        folder, meta = Path(folder), read_meta(folder)
        check_key(folder, meta["key"], key)
        of = num_shards(meta["key"]["images"], meta["images_per_shard"])
        missing = [number for number in range(of) if not (folder / shard_name(number, of)).is_file()]
        if missing or "bytes_per_image" not in meta:
            raise TargetCacheError(
                f"{folder} is not finished: {len(missing)} of {of} shards are missing. The command that began it goes on "
                "with it: recipes/cache_targets.py."
            )
        return cls(folder, meta, load_codec(folder), grid, normalize)

    def __getstate__(self):
        return self.__dict__ | {"_files": {}}

    def _shard(self, index: int) -> tuple:
        if not 0 <= index < self.images:
            raise IndexError(f"image {index} is none of the {self.images} of {self.folder}.")
        number = index // self.images_per_shard
        if number not in self._files:
            from safetensors import SafetensorError, safe_open

            path = self.folder / shard_name(number, num_shards(self.images, self.images_per_shard))
            try:
                # Mapped, not read: pages are shared by all processes of a machine, and given back when memory is short.
                file = safe_open(path, framework="pt")
                self._files[number] = file, file.get_slice("codes"), file.get_slice("offsets"), path
            except (OSError, SafetensorError) as error:
                raise TargetCacheError(f"{path} can't be read: {error}") from error
        return self._files[number]

    def _bytes(self, index: int) -> bytes:
        _, codes, offsets, _ = self._shard(index)
        at = index % self.images_per_shard
        begin, end = offsets[at : at + 2].tolist()
        return codes[begin:end].numpy().tobytes() if end > begin else b""

    def has(self, index: int) -> bool:
        """Whether the image could be read when the cache was made."""
        return bool(self._bytes(index))

    def read(self, index: int, crop, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (M, K + 1), float16, of the student's patches `positions` (M,) of a crop, in raster order of its grid.

        Args:
            index: in the corpus, of the image that was really read: an item's `index`.
            crop: `transforms.Crop`: top, left, height, width in units of the image, and flips, which act on the crop.
            positions: None: all patches.

        Raises:
            TargetMissing: the image could not be read when the cache was made.
            TargetCacheError: the shard is damaged.
        """
        data = self._bytes(index)
        if not data:
            raise TargetMissing(f"image {index}", f"{self.folder} has no targets of it")
        try:
            return self.codec.crop(data, crop, self.grid, positions)
        except (OSError, ValueError) as error:  # what Zstandard and numpy say of bytes that are no code
            path = self._shard(index)[-1]
            raise TargetCacheError(f"{path} is damaged at image {index}: {error}. Delete it, and recipes/cache_targets.py "
                                   "makes it anew.") from error  # fmt: skip

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, M, K + 1) to targets (B, M, T), float32, on the codes' device."""
        features = self.codec.decode(codes)
        if self.normalize == "l2":
            return F.normalize(features, dim=-1)
        return F.layer_norm(features, features.shape[-1:]) if self.normalize == "layer_norm" else features


def load_codec(folder: Path) -> TargetCodec:
    """The codec of a cache.

    Raises:
        TargetCacheError: it is missing or damaged.
    """
    from safetensors import SafetensorError

    try:
        return TargetCodec.load(Path(folder) / CODEC)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise TargetCacheError(f"{Path(folder) / CODEC} can't be read: {error}") from error


# ---------------------------------------------------------------- when it is made


def begin(folder: Path, key: dict, settings: dict) -> dict | None:
    """The meta of a cache that was begun here with the same key and settings; None where there is nothing yet.

    Raises:
        TargetCacheError: it was begun with others (the differing field is named), or holds something else.
    """
    if not (folder / META).is_file():
        there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        others = sorted(name for name in there - {CODEC} if not name.startswith("."))
        if others:
            raise TargetCacheError(
                f"--output_dir {folder} holds {', '.join(others[:3])} and is no target cache. Name a new folder."
            )
        return None
    meta = read_meta(folder)
    check_key(folder, meta["key"], key)
    for name, value in settings.items():
        if meta["settings"].get(name) != value:
            raise TargetCacheError(
                f"{folder} was begun with {name}={meta['settings'].get(name)!r}, this run has {name}={value!r}. Go on "
                "with the same value, or name another --output_dir."
            )
    return meta


def found(folder: Path, key: dict, settings: dict, codec: TargetCodec, report: dict) -> dict:
    """Begin a cache: write the codec, then the meta, by which it counts as begun. Returns the meta."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".tmp-{CODEC}"
    codec.save(temporary)
    put_in_place(temporary, folder / CODEC)
    meta = {"key": key, "settings": settings, "grid": list(codec.grid), "images_per_shard": settings["images_per_shard"],
            "codec": report}  # fmt: skip
    write_meta(folder, meta)
    return meta


def write_meta(folder: Path, meta: dict) -> None:
    write_atomically(folder / META, json.dumps(meta, indent=2) + "\n")
    sync_folder(folder)


def summarize(folder: Path, meta: dict) -> dict:
    """What a cache holds, over all its shards: cosines, sizes, images that are absent.

    Raises:
        TargetCacheError: a shard is missing or damaged.
    """
    images, per_shard = meta["key"]["images"], meta["images_per_shard"]
    of = num_shards(images, per_shard)
    cosines, size, source_bytes, unreadable = [], 0, 0, {}
    for number in range(of):
        path = folder / shard_name(number, of)
        held = read_facts(path, min(per_shard, images - number * per_shard))
        if held is None:
            raise TargetCacheError(f"{path} is missing or damaged. The same command makes it anew.")
        facts, cosine = held
        cosines.append(cosine.numpy())
        size, unreadable = size + facts["bytes"], unreadable | facts["unreadable"]
        source_bytes += facts["source_bytes"]
    cosines = np.concatenate(cosines)
    cosines = cosines[~np.isnan(cosines[:, 0])]
    if not len(cosines):
        raise TargetCacheError(f"no image of the corpus can be read. The first: {next(iter(unreadable.items()))}.")
    means = cosines[:, 0]
    return {
        "images": images, "shards": of, "unreadable": unreadable,
        "cosine_mean": round(float(means.mean()), 4), "cosine_p5": round(float(np.quantile(means, 0.05)), 4),
        "cosine_min": round(float(means.min()), 4), "cosine_lowest_patch": round(float(cosines[:, 1].min()), 4),
        "bytes_per_image": round(size / len(cosines), 1),
        "source_bytes_per_image": round(source_bytes / len(cosines), 1) if source_bytes else None,
        "ratio_to_source": round(size / source_bytes, 4) if source_bytes else None,
    }  # fmt: skip
