# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The model of the Space: an encoder with its own head, or with a linear one that is fitted to simulated organs at the start,
and the cases that a new image is compared with."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForImageClassification

from modeling_urfm import URFMImageProcessor, URFMModel
from modeling_urfm.data.demo import PHANTOM_SIZE, PHANTOM_SNR_DB
from modeling_urfm.data.labelled_found import side_of
from modeling_urfm.data.organs import find_organ
from modeling_urfm.data.phantoms import ORGANS, phantom_frame
from modeling_urfm.evaluation.encoders import FrozenEncoder, load_encoder
from modeling_urfm.evaluation.feature_shards import nearest, open_images, read_meta
from modeling_urfm.evaluation.linear_probe import LinearProbe, ProbeSettings, Scaling, fit_linear_probe


# Phantoms of this seed are in no corpus and in no test.
CASES_SEED = 7_000_001
PATIENTS_PER_ORGAN = 24
NEAREST = 6
SETTINGS = ProbeSettings(learning_rates=(1e-3, 3e-3, 1e-2), weight_decays=(1e-4, 1.0))


@dataclass(frozen=True)
class Case:
    """A case near to an image: its picture, (height, width, 3) uint8 or None where it can't be had, and the cosine."""

    picture: np.ndarray | None
    label: str
    similarity: float


@dataclass(frozen=True)
class Head:
    """What an image shows, by a classifier.

    Attributes:
        labels: its answers. note: where it comes from, for the reader. exclusive: the answers of an image sum to 1.
        probabilities: (images, height, width, 3) uint8 -> (images, labels); of a regression, values.
        strange: whether images are unlike all that the head was fitted to; of a head from elsewhere that isn't known.
        regression: the answers are numbers in units of their own.
    """

    labels: list[str]
    note: str
    exclusive: bool
    probabilities: Callable[[Sequence[np.ndarray]], np.ndarray]
    strange: Callable[[Sequence[np.ndarray]], bool] = lambda images: False
    regression: bool = False

    @property
    def title(self) -> str:
        """What the answers are, as a heading."""
        if self.regression:
            return "Values"
        if not self.exclusive:
            return "Findings"
        return "Organ" if set(self.labels) <= set(ORGANS) else "Class"


@dataclass(frozen=True)
class Onlooker:
    """All that a page needs of a model.

    Attributes:
        name: of the folder or the Hub id. encoder: as everywhere in `evaluation`. model: its transformer, which gives its
            attention. processor: of both. head: None of a model that has none for images.
        cases: (N, height, width, 3) uint8, frames of one scan -> the nearest cases. cases_note: what they are.
    """

    name: str
    encoder: FrozenEncoder
    model: URFMModel
    processor: URFMImageProcessor
    head: Head | None
    cases: Callable[[Sequence[np.ndarray]], list[Case]]
    cases_note: str


def embed(encoder: FrozenEncoder, images: Sequence[np.ndarray], batch_size: int = 16) -> np.ndarray:
    """Pooled features (images, D) float32 of (height, width, 3) uint8 images."""
    found = []
    for start in range(0, len(images), batch_size):
        part = [torch.from_numpy(np.ascontiguousarray(i)).permute(2, 0, 1) for i in images[start : start + batch_size]]
        batch = encoder.prepare.normalize(torch.stack([encoder.prepare.shrink(pixels) for pixels in part]))
        found.append(encoder.features(batch).cpu().numpy())
    return np.concatenate(found)


def load_onlooker(
    place: str, index: str | None = None, *, cache: Path | None = None, progress: bool = True
) -> Onlooker:
    """Load a model, and fit or read what it lacks.

    Args:
        place: folder or Hub id of a URFM encoder, pre-training checkpoint, classifier or adapter.
        index: folder of recipes/embed.py; by default simulated cases are embedded.
        cache: where heads and features of simulated cases are kept; by default the user's cache folder.

    Raises:
        ValueError, OSError: no such model, or an index of another encoder.
    """
    encoder = load_encoder(place)
    model = encoder.module.model
    model.set_attn_implementation("eager")  # the only one that gives its weights
    own = own_head(place)
    cases, note = index_cases(place, encoder, Path(index)) if index else (None, "")
    if own is None or cases is None:
        simulated = simulated_cases(encoder, cache or cache_folder(), progress)
        own = own or simulated_head(simulated, encoder, hidden_head(place))
        note = note or f"Out of {len(simulated.features)} simulated images: none is of a patient."
        cases = cases or (lambda frames: nearest_simulated(simulated, embed(encoder, frames).mean(0)))
    return Onlooker(shown_name(place), encoder, model, processor_of(place), own, cases, note)


def shown_name(place: str) -> str:
    """A Hub id, or a folder's last part: the page is no place for paths."""
    path = Path(place)
    return path.absolute().name if path.exists() or path.is_absolute() else place


def processor_of(place: str) -> URFMImageProcessor:
    """The processor in a folder or repository; of an adapter without one, its base's."""
    try:
        return URFMImageProcessor.from_pretrained(place)
    except OSError:
        settings = Path(place) / "adapter_config.json"
        if not settings.is_file():
            raise
        return URFMImageProcessor.from_pretrained(json.loads(settings.read_text())["base_model_name_or_path"])


# ---------------------------------------------------------------- a head of its own


def own_head(place: str) -> Head | None:
    """The classifier or regression that a checkpoint or adapter brings, None of an encoder alone."""
    config = AutoConfig.from_pretrained(place)
    if not any("ForImageClassification" in name for name in config.architectures or ()):
        return None
    model = AutoModelForImageClassification.from_pretrained(place).eval()
    processor, regression = processor_of(place), config.problem_type == "regression"
    exclusive = config.problem_type not in ("multi_label_classification", "regression")
    labels = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]

    @torch.inference_mode()
    def probabilities(images: Sequence[np.ndarray]) -> np.ndarray:
        found = []
        for start in range(0, len(images), 16):
            batch = processor(list(images[start : start + 16]), return_tensors="pt", input_data_format="channels_last")
            logits = model(**batch).logits.float()
            found.append((logits if regression else logits.softmax(-1) if exclusive else logits.sigmoid()).numpy())
        return np.concatenate(found)

    note = "The regression that this model was published with, in the units that it was trained with."
    note = note if regression else "The classifier that this model was published with."
    return Head(labels, note, exclusive, probabilities, regression=regression)


def hidden_head(place: str) -> str:
    """A sentence on a head that the page has no view for, "" of a model without one."""
    architectures = AutoConfig.from_pretrained(place).architectures or ()
    segments = any("ForSemanticSegmentation" in name for name in architectures)
    return "This model segments; its masks are not shown here. " if segments else ""


# ---------------------------------------------------------------- simulated cases


@dataclass(frozen=True)
class Simulated:
    """Features (images, D) of phantoms, the organ of each, and a linear layer that was fitted to them."""

    features: np.ndarray
    organs: np.ndarray
    probe: LinearProbe

    def cosines(self, features: np.ndarray) -> np.ndarray:
        """(N, D) features -> (N, images) cosines with the phantoms'."""
        return unit(features) @ unit(self.features).T

    def edge(self) -> float:
        """The cosine that 99 % of the phantoms have with their nearest one: what has less is unlike all of them."""
        among = self.cosines(self.features)
        np.fill_diagonal(among, -1)
        return float(np.quantile(among.max(1), 0.01))


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=-1, keepdims=True).clip(1e-12)


def simulated_head(simulated: Simulated, encoder: FrozenEncoder, before: str = "") -> Head:
    """`before`: sentences that stand in front of the note."""
    edge = simulated.edge()
    return Head(
        list(ORGANS),
        f"{before}A linear layer on frozen features, fitted to simulated organs when the app started. It has seen no real image.",
        True,
        lambda images: simulated.probe.predict(embed(encoder, images))[0],
        lambda images: bool(simulated.cosines(embed(encoder, images)).max(1).mean() < edge),
    )


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "urfm" / "space"


def case_image(number: int) -> np.ndarray:
    """(height, width, 3) uint8, the scan region of a simulated case, cut out as that of an upload is; the organs go round.

    Whole frames would be compared with cut-out ones: of 225 other phantoms 75 % had the right organ then, so 89 %.
    """
    frame = phantom_frame(CASES_SEED, number, image_size=PHANTOM_SIZE, snr_db=PHANTOM_SNR_DB)
    rows, columns = np.flatnonzero(frame.scan_mask.any(1)), np.flatnonzero(frame.scan_mask.any(0))
    image = frame.image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return image[..., None].repeat(3, axis=-1)


def simulated_cases(encoder: FrozenEncoder, cache: Path, progress: bool = True) -> Simulated:
    """Read what an earlier start computed for this very encoder, or compute it."""
    settings = (
        encoder.fingerprint,
        CASES_SEED,
        PATIENTS_PER_ORGAN,
        PHANTOM_SIZE,
        PHANTOM_SNR_DB,
        SETTINGS,
        ORGANS,
        "cut out",
    )
    path = cache / f"{hashlib.sha256(repr(settings).encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(path) as kept:
            probe = LinearProbe(
                "classification", Scaling(kept["mean"], kept["scale"]), kept["weights"], kept["biases"], ()
            )
            return Simulated(kept["features"], kept["organs"], probe)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        pass  # none, or a damaged one: it is written anew
    count = PATIENTS_PER_ORGAN * len(ORGANS)
    features = []
    for number in tqdm(range(count), desc="simulated cases", unit="image", disable=not progress):
        features.append(embed(encoder, [case_image(number)]))
    features, organs = np.concatenate(features), np.arange(count) % len(ORGANS)
    held_out = np.arange(count) // len(ORGANS) % 4 == 3
    probe = fit_linear_probe(
        features, organs, [np.flatnonzero(~held_out)], np.flatnonzero(held_out), seeds=(0,), settings=SETTINGS
    )
    kept = {
        "features": features, "organs": organs, "weights": probe.weights, "biases": probe.biases,
        "mean": probe.scaling.mean, "scale": probe.scaling.scale,
    }  # fmt: skip
    try:
        keep(path, kept)
    except OSError:
        pass  # a home that can't be written to: the next start computes it again
    return Simulated(features, organs, probe)


def keep(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write in one step: two starts at once, or a killed one, leave no half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def nearest_simulated(simulated: Simulated, features: np.ndarray, top: int = NEAREST) -> list[Case]:
    """The phantoms whose features have the largest cosine with `features` (D,)."""
    cosine = simulated.cosines(features[None])[0]
    best = np.argsort(-cosine, kind="stable")[:top]
    return [Case(case_image(int(n)), ORGANS[simulated.organs[n]], float(cosine[n])) for n in best]


# ---------------------------------------------------------------- cases of an index


def index_cases(place: str, encoder: FrozenEncoder, folder: Path) -> tuple[Callable, str]:
    """The search in a folder of recipes/embed.py, and what it holds.

    Raises:
        ValueError: features of another encoder. FileNotFoundError: no features there.
    """
    try:
        meta = read_meta(folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"--index {folder}: no features were written there. Make them: "
            f"python recipes/embed.py --encoder {place} --dataset DATA --output_dir {folder}"
        ) from None
    if meta["kind"] != "pooled":
        raise ValueError(f"--index {folder} holds features of kind {meta['kind']!r}; write it with --kind pooled.")
    if meta["encoder_fingerprint"] != encoder.fingerprint:  # in another number format, or at another size
        size = meta["image_size"][0] if list(encoder.size) != meta["image_size"] else None
        encoder = load_encoder(place, image_size=size, dtype=getattr(torch, meta["dtype"]))
    if meta["encoder_fingerprint"] != encoder.fingerprint:
        raise ValueError(
            f"--index {folder} was made by another encoder than {place} is now. Make it again: "
            f"python recipes/embed.py --encoder {place} --dataset DATA --output_dir {folder}"
        )
    try:
        corpus = open_images(**meta["dataset"], progress=False)
        corpus = corpus if corpus.fingerprint == meta["corpus_fingerprint"] else None
    except (ValueError, OSError):
        corpus = None  # its images are elsewhere: the cases have names, and no pictures

    classes = holds_classes(meta["dataset"])

    def search(frames: Sequence[np.ndarray]) -> list[Case]:
        found = []
        for line in nearest(folder, embed(encoder, frames).mean(0), NEAREST):
            picture = None if corpus is None else np.asarray(corpus.pixels(line["row"])).transpose(1, 2, 0)
            found.append(Case(picture, label_of(line, classes), line["similarity"]))
        return found

    return search, f"Out of the {meta['images']:,} images of the index that this app was started with."


def holds_classes(dataset: dict) -> bool:
    """Whether the folders of an index's images are classes. In `train/CLASS/*` they are; others may be called after patients."""
    root = Path(dataset["name"])
    return (root / dataset["split"]).is_dir() or side_of(root.name) is not None


def label_of(line: dict, classes: bool) -> str:
    """What is told of a case: what the corpus says, the class or the organ that its folder is called after, else its number."""
    told = next((line[key] for key in ("label", "organ") if line.get(key) not in (None, "", "unknown")), None)
    path = line["id"].split("/")
    folder = path[0] if len(path) > 1 else ""
    organ = find_organ(folder)
    return str(told or (folder if classes else "" if organ == "unknown" else organ) or f"case {line['row'] + 1}")
