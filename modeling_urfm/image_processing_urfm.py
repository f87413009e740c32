# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Image processors for URFM: `URFMImageProcessor` (torchvision) and `URFMImageProcessorPil` (Pillow).

Both turn ultrasound images of any usual kind into `pixel_values` of shape (batch, 3, 224, 224), float32, normalised
with ImageNet's mean and standard deviation. They share all that decides what is seen (reading, value range, colour,
scan region, padding, percentiles) and differ only in who resizes. In normalised units their results differ by at most
0.04 (two levels of 8 bits; on average by less than 0.005) for 8-bit images, and by less than 0.001 for all others.

Kinds of image, and the range that their values are taken to have (`rescale_factor` then takes 0..255 to 0..1):

- uint8, and Pillow's "L", "RGB", palette and other 8-bit modes: 0..255
- bool, and Pillow's "1": False is black, True is white
- uint16, and Pillow's "I;16" and "I" (16-bit PNG and TIFF): 0..65535. A 12-bit DICOM image in a 16-bit array is
  therefore dark: window it first, or set `do_percentile_rescale`
- other integers: 0..255, else an error
- float with all values in [0, 1]: 0..1, and not rescaled a second time, whatever `do_rescale` is
- other float with all values in [0, 255]: 0..255
- float with other values: an error, unless `do_percentile_rescale` is on, or `do_rescale` is off (they are kept then)

Grey images are repeated to three channels; an alpha channel is composited over black, the ground of an ultrasound
image. Not for clinical use.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    load_image,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import logging


logger = logging.get_logger(__name__)

IGNORE_INDEX = 255  # of segmentation labels: padding, where there is nothing to predict
UNIT_TOLERANCE = 1e-3  # floats this far outside of [0, 1] come from interpolation and still count as [0, 1]


class URFMImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_crop_scan_region (`bool`, *optional*, defaults to `self.do_crop_scan_region`):
        Whether to crop to the scan region: the lit fan or rectangle, found from the pixels by `find_scan_region`. Text,
        rulers and logos apart from it are cut off. The whole image is kept where no region is found.
    do_pad_square (`bool`, *optional*, defaults to `self.do_pad_square`):
        Whether to pad with black to a centred square before resizing, instead of squeezing. After the crop.
    do_percentile_rescale (`bool`, *optional*, defaults to `self.do_percentile_rescale`):
        Whether to map the intensities between two percentiles of each image (over all its channels, after the crop and
        before the padding) to [0, 1], clipping what lies outside. Any finite range of values is accepted then. Where
        the two percentiles coincide, minimum and maximum are used; a constant image becomes black.
    lower_percentile (`float`, *optional*, defaults to `self.lower_percentile`):
        In [0, 100), the percentile that becomes 0 (nearest rank).
    upper_percentile (`float`, *optional*, defaults to `self.upper_percentile`):
        In (0, 100], the percentile that becomes 1 (nearest rank).
    """

    do_crop_scan_region: bool | None
    do_pad_square: bool | None
    do_percentile_rescale: bool | None
    lower_percentile: float | int | None
    upper_percentile: float | int | None


class ImageRegion(NamedTuple):
    """What the model sees of an image, in its pixels: the box that was cut out, then the padding around that box."""

    image_height: int
    image_width: int
    top: int
    left: int
    height: int
    width: int
    pad_top: int = 0
    pad_bottom: int = 0
    pad_left: int = 0
    pad_right: int = 0

    def cut(self, image: torch.Tensor) -> torch.Tensor:
        """The box of a (channels, image_height, image_width) tensor."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width].contiguous()

    def pad(self, box: torch.Tensor) -> torch.Tensor:
        """The box with zeros around it, (channels, height + pad_top + pad_bottom, width + pad_left + pad_right)."""
        padding = (self.pad_left, self.pad_right, self.pad_top, self.pad_bottom)
        return F.pad(box, padding) if any(padding) else box

    def give_back(self, values: torch.Tensor, outside: float) -> torch.Tensor:
        """(channels, any height, any width) over the region -> over the image, `outside` around the box."""
        padded = (self.height + self.pad_top + self.pad_bottom, self.width + self.pad_left + self.pad_right)
        values = F.interpolate(values[None], size=padded, mode="bilinear", align_corners=False)[0]
        canvas = values.new_full((values.shape[0], self.image_height, self.image_width), outside)
        canvas[:, self.top : self.top + self.height, self.left : self.left + self.width] = values[
            :, self.pad_top : self.pad_top + self.height, self.pad_left : self.pad_left + self.width
        ]
        return canvas


def find_scan_region(
    image: torch.Tensor, *, grid: int = 128, min_share: float = 0.05
) -> tuple[int, int, int, int] | None:
    """Find the box around the lit fan or rectangle of an ultrasound image.

    A pixel is lit where it differs from the ground (the commonest value along the border) by more than a twentieth of
    the image's contrast. The image is divided into at most `grid` cells a side, and of these the ones that are lit
    unevenly, as speckle is (bars of the user interface are even), are smoothed over five cells, which removes text,
    rulers and frames. The largest connected group that is left is the region, without the blocks of text that have grown
    together with it. Without any speckle, even cells count. A letter that touches the picture may stay: this is a crop, no
    de-identification.

    Args:
        image: (channels, height, width) or (height, width), any real dtype and range, finite.
        grid: cells along the longer side; the box is exact to one cell.
        min_share: a region smaller than this share of the image is not believed.

    Returns:
        `(top, left, height, width)` in pixels, or None where nothing is found.
    """
    light = image.detach()
    light = (light.amax(0) if light.ndim == 3 else light).float()  # brightest channel: colour Doppler is lit too
    height, width = light.shape
    border = torch.cat([light[0], light[-1], light[:, 0], light[:, -1]])
    low, high = light.amin(), light.amax()
    if not high > low:
        return None
    # The ground: the commonest of 64 levels on the border, if common at all; black otherwise (a full-frame image).
    levels = ((border - low) / (high - low) * 63).round().long()
    counts = torch.bincount(levels, minlength=64)
    ground = border[levels == counts.argmax()].median() if counts.max() >= 0.1 * len(border) else low
    contrast = (light - ground).abs()
    strong = _percentile(contrast.flatten()[:: 1 + contrast.numel() // 50_000], 99.5)
    lit = (contrast > 0.05 * strong).float()

    step = max(1, -(-max(height, width) // grid))
    coverage = F.avg_pool2d(lit[None, None], step, ceil_mode=True, count_include_pad=False).cpu()
    # Tissue speckles: what is lit evenly is a bar of the user interface, or an image without speckle.
    span = F.max_pool2d(torch.stack([light, -light])[:, None], step, ceil_mode=True).cpu()
    speckled = F.max_pool2d(span, 3, stride=1, padding=1).sum(0, keepdim=True) > 0.04 * float(strong)
    coverage = coverage * speckled if (coverage * speckled > 0.5).float().mean() > min_share else coverage
    core = _core(coverage)
    if core is None:
        return None
    bright = F.max_pool2d(contrast[None, None], step, ceil_mode=True).cpu()[0, 0] > 0.75 * float(strong)
    core = _without_text(core, coverage, bright)
    region = _dilate(core, 1) & (coverage[0, 0] > 0.25)
    rows, columns = region.any(1).nonzero()[:, 0], region.any(0).nonzero()[:, 0]
    top, left = int(rows[0]) * step, int(columns[0]) * step
    bottom, right = min(height, (int(rows[-1]) + 1) * step), min(width, (int(columns[-1]) + 1) * step)
    if bottom - top < 2 or right - left < 2 or (bottom - top) * (right - left) < min_share * height * width:
        return None
    return top, left, bottom - top, right - left


def _dilate(mask: torch.Tensor, cells: int) -> torch.Tensor:
    """(rows, columns) bool -> the same with True spread by `cells`; the outside counts as False."""
    return F.max_pool2d(mask[None, None].float(), 2 * cells + 1, stride=1, padding=cells)[0, 0] > 0


def _core(coverage: torch.Tensor) -> torch.Tensor | None:
    """(1, 1, rows, columns) lit share of each cell -> the largest group that is lit over five cells' breadth."""
    return _largest_component(_smooth(coverage) > 0.5)


def _without_text(core: torch.Tensor, coverage: torch.Tensor, bright: torch.Tensor) -> torch.Tensor:
    """Cut off a header that has grown together with the picture: blocks of letters, half of whose pixels are unlit and
    whose strokes are bright. What is half lit but not bright is the dark part of a picture and stays."""
    dense = _largest_component(core & (_smooth(coverage) > 0.8))
    if dense is None or dense.sum() < 0.5 * core.sum():
        return core
    picture = _dilate(dense, 2) & core
    rest = core & ~picture
    is_text = rest.any() and bright[rest].float().mean() > 0.3
    return picture if is_text else core


def _smooth(coverage: torch.Tensor) -> torch.Tensor:
    """(1, 1, rows, columns) -> (rows, columns), the mean over five cells' breadth."""
    return F.avg_pool2d(coverage, 5, stride=1, padding=2, count_include_pad=False)[0, 0]


def _largest_component(mask: torch.Tensor) -> torch.Tensor | None:
    """(rows, columns) bool -> the largest 8-connected group of True cells, None where there is none."""
    cells = np.pad(mask.numpy(), ((0, 0), (1, 1))).astype(np.int8)
    rows, starts = np.nonzero(np.diff(cells, axis=1) == 1)  # runs of True, row by row
    ends = np.nonzero(np.diff(cells, axis=1) == -1)[1]
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    first = np.searchsorted(rows, np.arange(mask.shape[0] + 1))
    for run, row in enumerate(rows.tolist()):
        if row:
            for above in range(first[row - 1], first[row]):
                if starts[above] <= ends[run] and starts[run] <= ends[above]:
                    parent[root(above)] = root(run)
    if not parent:
        return None
    groups = np.array([root(run) for run in range(len(parent))])
    largest = np.bincount(groups, weights=ends - starts).argmax()
    component = torch.zeros_like(mask)
    for run in np.nonzero(groups == largest)[0]:
        component[rows[run], starts[run] : ends[run]] = True
    return component


def _percentile(values: torch.Tensor, percent: float) -> torch.Tensor:
    """Nearest-rank percentile of all values; `torch.quantile` sorts, and refuses more than 16 million."""
    values = values.flatten()
    return values.kthvalue(1 + round(percent / 100 * (values.numel() - 1))).values


def _clamp_like(resized: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Cut off what bicubic resizing adds beyond the range of the image, [0, 1] or [0, 255], as it is for uint8."""
    axes = (-3, -2, -1)
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    high = torch.where(high <= 1, high.clamp(min=1), high.clamp(min=255))
    return torch.minimum(torch.maximum(resized, low.clamp(max=0)), high)


class _URFMPreprocessing:
    """What both backends share: all but resizing and normalising. Images are tensors (channels, height, width) here."""

    valid_kwargs = URFMImageProcessorKwargs

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_crop_scan_region = False
    do_pad_square = False
    do_percentile_rescale = False
    lower_percentile = 1.0
    upper_percentile = 99.0

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[URFMImageProcessorKwargs],
    ) -> BatchFeature:
        r"""
        Args:
            images: One image or any nesting of lists of them, of mixed sizes and kinds: PIL image, array or tensor of
                (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 channels, an
                array or tensor of four dimensions (a batch), or a path or URL. For value ranges see the module's
                docstring.
            segmentation_maps: One label map an image, (height, width) integers of the image's own size (a palette PNG
                keeps its indices). Cropped, padded and resized (nearest) as the image is; padding gets 255, the ignore
                index. They are returned as `labels`, (batch, height, width) int64.
            **kwargs: Any option of `URFMImageProcessorKwargs` or `ImagesKwargs`, for this call.

        Returns:
            `BatchFeature` with `pixel_values`, (batch, 3, height, width) float32, and `labels` if maps were given.

        Raises:
            ValueError: naming the image by its position, if it is empty, has a side of one pixel, holds NaN or infinite
                values, has another number of channels, values out of range, or is no image at all.

        Example:

        >>> import numpy as np
        >>> from modeling_urfm import URFMImageProcessor

        >>> processor = URFMImageProcessor(do_crop_scan_region=True, do_pad_square=True)
        >>> frame = np.random.default_rng(0).integers(0, 256, (480, 640), dtype=np.uint8)
        >>> processor(frame, return_tensors="pt").pixel_values.shape
        torch.Size([1, 3, 224, 224])
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def __call__(self, images: ImageInput, *args, **kwargs: Unpack[URFMImageProcessorKwargs]) -> BatchFeature:
        return self.preprocess(images, *args, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; this file is saved too where the processor was loaded from a folder that holds it."""
        if getattr(self, "auto_map", None):
            self._auto_class = "AutoImageProcessor"
        return super().save_pretrained(save_directory, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        content.pop("_auto_class", None)
        if content.get("auto_map"):  # transformers names the one backend that is saved, and loads no other then
            content["auto_map"] = {
                "AutoImageProcessor": [f"image_processing_urfm.{name}" for name in reversed(__all__)]
            }
        return content

    def _validate_preprocess_kwargs(self, lower_percentile=None, upper_percentile=None, **kwargs):
        super()._validate_preprocess_kwargs(**kwargs)
        if kwargs.get("do_percentile_rescale") and not 0 <= lower_percentile < upper_percentile <= 100:
            raise ValueError(
                "lower_percentile and upper_percentile must satisfy 0 <= lower < upper <= 100, "
                f"got {lower_percentile} and {upper_percentile}; the usual pair is 1 and 99"
            )

    def _preprocess_image_like_inputs(
        self, images: ImageInput, segmentation_maps: ImageInput | None = None, return_tensors=None, **kwargs
    ) -> BatchFeature:
        prepared, regions = self._prepare(images, **kwargs)
        boxes = [region.cut(image) for image, region in zip(prepared, regions)]
        if kwargs["do_percentile_rescale"]:
            percentiles = kwargs["lower_percentile"], kwargs["upper_percentile"]
            top = 255.0 if kwargs["do_rescale"] else 1.0
            boxes = [_percentile_rescale(box, *percentiles) * top for box in boxes]
        prepared = [region.pad(box) for box, region in zip(boxes, regions)]
        data = {"pixel_values": self._preprocess(prepared, return_tensors=None, **kwargs)["pixel_values"]}
        if segmentation_maps is not None:
            maps = _flatten(segmentation_maps, image_ndim=2, what="segmentation map")
            if len(maps) != len(regions):
                raise ValueError(f"{len(regions)} images but {len(maps)} segmentation maps: one an image is needed")
            labels = [_read(_read_map, "segmentation map", i, maps, regions[i]) for i in range(len(maps))]
            # Every padding on the way fills with zeros: shifted by the ignore index, zero is that index.
            labels = [region.pad(region.cut(label - IGNORE_INDEX)) for label, region in zip(labels, regions)]
            options = {"do_rescale": False, "do_normalize": False, "resample": PILImageResampling.NEAREST}
            labels = self._preprocess(labels, return_tensors=None, **{**kwargs, **options})["pixel_values"]
            labels = [torch.as_tensor(label)[0].round().long() + IGNORE_INDEX for label in labels]
            data["labels"] = labels if self.backend == "torchvision" else [label.numpy() for label in labels]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _prepare(self, images: ImageInput, **kwargs) -> tuple[list[torch.Tensor], list[ImageRegion]]:
        """Read and check every image, and decide which part of it is seen."""
        images = _flatten(images, image_ndim=3)
        prepared = [_read(self.process_image, "image", i, images, **kwargs) for i in range(len(images))]
        if kwargs.get("do_normalize"):
            for key in ("image_mean", "image_std"):
                for i, image in enumerate(prepared):
                    if np.ndim(kwargs[key]) and len(kwargs[key]) != image.shape[0]:
                        raise ValueError(
                            f"image {i} (of {len(images)}) has {image.shape[0]} channels but {key} has "
                            f"{len(kwargs[key])} values; do_convert_rgb=True makes 3 of 1 or 4 channels"
                        )
        regions = [_find_region(image, kwargs["do_crop_scan_region"], kwargs["do_pad_square"]) for image in prepared]
        return prepared, regions

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: "str | torch.device | None" = None,
        do_rescale: bool | None = True,
        do_percentile_rescale: bool | None = False,
        **kwargs,
    ) -> torch.Tensor:
        """One image of any kind -> (channels, height, width): uint8, or float32 in 0..255 (without `do_rescale`, floats
        keep their own range). Raises ValueError with the reason, without the position, which only the caller knows."""
        image = _open(image)
        if isinstance(image, PIL.Image.Image):
            input_data_format = ChannelDimension.LAST
        tensor, is_16_bit = _to_tensor(image, keep_palette=False)
        tensor = _channels_first(tensor, input_data_format, any_count=not do_convert_rgb)
        tensor = tensor.to(device) if device is not None else tensor
        tensor = _to_known_range(tensor, is_16_bit, do_rescale, any_range=bool(do_percentile_rescale))
        return _to_rgb(tensor) if do_convert_rgb else tensor.contiguous()

    def get_regions(self, images: ImageInput, **kwargs: Unpack[URFMImageProcessorKwargs]) -> list[ImageRegion]:
        """What the model sees of each image under this processor's options, for `post_process_semantic_segmentation`.

        Args:
            images: the same as given to the processor, with the same options in `kwargs`.
        """
        options = {key: getattr(self, key, None) for key in self._valid_kwargs_names} | kwargs
        if options["do_center_crop"]:
            raise ValueError("regions are not known under do_center_crop=True; use do_crop_scan_region instead")
        return self._prepare(images, **options)[1]

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: "list[tuple[int, int]] | torch.Tensor | None" = None,
        return_segmentation_scores: bool = False,
        regions: list[ImageRegion] | None = None,
        outside_label: int = 0,
    ) -> "list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]":
        """Turn the logits of `URFMForSemanticSegmentation` into label maps.

        Without `do_crop_scan_region` pass `target_sizes=[(height, width), ...]` of the original images; padding by the
        processor's own `do_pad_square` is taken off. With it, or with options that were changed for a call, the logits are
        of a part of the image, and `target_sizes` would stretch them over the whole: pass
        `regions=processor.get_regions(images)` instead. The maps are then of the original images' sizes too, with
        `outside_label` where the model saw nothing.

        Args:
            outputs: the model's output, with `logits` (batch, labels, height, width).
            target_sizes: one (height, width) an image, to which the logits are resized (bilinear) before the argmax.
                None: the logits' own size.
            return_segmentation_scores: also return the resized logits, (labels, height, width); 0 outside of a region.
            regions: one an image, from `get_regions`; not together with `target_sizes`.
            outside_label: the label outside of a region.

        Returns:
            A list of (height, width) int64 tensors, or of `SemanticSegmentationPostProcessorOutput`.

        Raises:
            ValueError: if the number of sizes or regions isn't the batch size, or both are given.
        """
        logits = outputs.logits
        if target_sizes is not None and regions is not None:
            raise ValueError("pass target_sizes or regions, not both: regions hold the original sizes")
        if target_sizes is not None and self.do_crop_scan_region:
            logger.warning_once(
                "This processor crops images to their scan region, which target_sizes can't tell: the maps are stretched over "
                "the whole images. Pass regions=processor.get_regions(images) instead; a pipeline can't."
            )
        elif target_sizes is not None and self.do_pad_square:  # which part was padding follows from the size
            sizes = [(int(height), int(width)) for height, width in target_sizes]
            target_sizes, regions = None, [_find_region(torch.empty(1, *size), False, True) for size in sizes]
        given = regions if regions is not None else target_sizes
        if given is not None and len(given) != len(logits):
            name = "regions" if regions is not None else "target_sizes"
            raise ValueError(f"{len(given)} {name} for logits of a batch of {len(logits)}: one an image is needed")
        results = []
        for i, scores in enumerate(logits):
            if regions is not None:
                inside = regions[i].give_back(torch.ones_like(scores[:1]), outside=0.0)[0] > 0
                scores = regions[i].give_back(scores, outside=0.0)
                segmentation = _decide(scores).masked_fill(~inside, outside_label)
            else:
                if target_sizes is not None:
                    size = tuple(int(side) for side in target_sizes[i])
                    scores = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
                segmentation = _decide(scores)
            results.append({"segmentation": segmentation, "segmentation_scores": scores})
        if return_segmentation_scores:
            return [SemanticSegmentationPostProcessorOutput(data=result) for result in results]
        return [result["segmentation"] for result in results]


class URFMImageProcessor(_URFMPreprocessing, TorchvisionBackend):
    """Prepares ultrasound images for URFM with torchvision, on the CPU or with `device="cuda"`; the default backend."""

    def resize(self, image: torch.Tensor, size, resample=None, antialias: bool = True, **kwargs) -> torch.Tensor:
        resized = super().resize(image, size, resample, antialias, **kwargs)
        return _clamp_like(resized, image) if image.is_floating_point() else resized


class URFMImageProcessorPil(_URFMPreprocessing, PilBackend):
    """Prepares ultrasound images for URFM with Pillow, on the CPU."""

    def _preprocess(self, images: list[torch.Tensor], **kwargs) -> BatchFeature:
        return super()._preprocess([image.cpu().numpy() for image in images], **kwargs)

    def resize(self, image: np.ndarray, size, resample=None, reducing_gap: int | None = None, **kwargs) -> np.ndarray:
        if image.dtype == np.uint8 and image.shape[0] in (1, 3, 4):
            return super().resize(image, size, resample, reducing_gap, **kwargs)
        # transformers' resize goes through 8 bits; Pillow's mode "F" keeps floats, one channel at a time.
        plane = np.zeros((1, *image.shape[1:]), np.uint8)
        height, width = super().resize(plane, size, PILImageResampling.NEAREST).shape[1:]
        if resample == PILImageResampling.NEAREST:  # torch's, so that label maps are equal between the backends
            return F.interpolate(torch.from_numpy(image)[None], (height, width), mode="nearest-exact")[0].numpy()
        channels = [PIL.Image.fromarray(np.ascontiguousarray(channel)) for channel in image]
        resized = np.stack([np.array(channel.resize((width, height), resample)) for channel in channels])
        if image.dtype == np.uint8:
            return resized
        return _clamp_like(torch.from_numpy(resized), torch.from_numpy(image)).numpy()


def _decide(scores: torch.Tensor) -> torch.Tensor:
    """(labels, height, width) logits -> (height, width) labels; a single one is a sigmoid's, for 0 and 1."""
    return (scores[0] > 0).long() if len(scores) == 1 else scores.argmax(0)


def _read(reader, what: str, index: int, inputs: list, *args, **kwargs):
    """Read one of a batch; errors say which one it was and why."""
    try:
        return reader(inputs[index], *args, **kwargs)
    except (ValueError, OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise ValueError(f"{what} {index} (of {len(inputs)}): {error}") from error


def _flatten(images: Any, image_ndim: int, what: str = "image") -> list:
    """Any nesting of lists and batches -> a flat list; arrays of more dimensions than `image_ndim` are batches.
    A label map of (1, height, width) or (height, width, 1) is one map still."""
    flat: list = []

    def visit(item):
        is_batch = isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim > image_ndim
        if is_batch and image_ndim == 2 and item.ndim == 3 and 1 in (item.shape[0], item.shape[2]):
            flat.append(item)
        elif is_batch or isinstance(item, (list, tuple)):
            if len(item) == 0:  # left out, it would shift all that follow
                shape = f"shape {tuple(item.shape)}" if is_batch else f"an empty {type(item).__name__}"
                raise ValueError(f"{what} {len(flat)}: empty: {shape}")
            for part in item:
                visit(part)
        else:
            flat.append(item)

    visit(images)
    return flat


def _open(image: Any) -> Any:
    """A path or URL -> a PIL image; anything else as it is."""
    if not isinstance(image, (str, Path)):
        return image
    if os.path.isfile(image):  # transformers' own readers turn 16-bit files into 8 bits, most of it white
        with PIL.Image.open(image) as file:
            return PIL.ImageOps.exif_transpose(file)
    if str(image).startswith(("http://", "https://", "data:")):
        return load_image(str(image))
    raise ValueError(f"there is no file {str(image)!r}")


def _to_tensor(image: Any, keep_palette: bool) -> tuple[torch.Tensor, bool]:
    """-> (bool, integer or float tensor with the channels where they were, whether 65535 is white)."""
    is_16_bit = False
    if isinstance(image, PIL.Image.Image):
        is_16_bit = image.mode.startswith("I")
        if not keep_palette:
            has_alpha = "transparency" in image.info or image.mode in ("PA", "LA", "La", "RGBa")
            image = image.convert("LA") if image.mode == "La" else image  # Pillow takes it nowhere else
            if has_alpha and image.mode not in ("RGBA", "F") and not is_16_bit:
                image = image.convert("RGBA")
            elif image.mode == "1":
                image = image.convert("L")
            elif image.mode not in ("L", "RGB", "RGBA", "F") and not is_16_bit:
                image = image.convert("RGB")
        image = np.array(image)
    if isinstance(image, np.ndarray):
        if image.dtype.kind not in "buif":
            raise ValueError(f"array of dtype {image.dtype}; bool, integer or float is needed")
        is_16_bit = is_16_bit or (image.dtype.kind, image.dtype.itemsize) == ("u", 2)  # in either byte order
        if image.dtype.kind == "f":
            image = image.astype(np.float32)
        elif image.dtype.kind in "ui" and image.dtype != np.uint8:
            image = image.astype(np.int64)
        # a copy also rids of negative strides and foreign byte order, which torch can't take
        return torch.from_numpy(np.array(image, order="C")), is_16_bit
    if isinstance(image, torch.Tensor):
        if image.is_complex() or image.is_quantized:
            raise ValueError(f"tensor of dtype {image.dtype}; bool, integer or float is needed")
        is_16_bit = image.dtype == torch.uint16
        if image.is_floating_point():
            image = image.float()
        elif image.dtype not in (torch.uint8, torch.bool):
            image = image.long()
        return image.detach(), is_16_bit
    raise ValueError(f"{type(image).__name__} is no image; a PIL image, an array, a tensor or a path is needed")


def _channels_first(image: torch.Tensor, data_format: "str | ChannelDimension | None", any_count: bool) -> torch.Tensor:
    """(height, width), (height, width, channels) or (channels, height, width) -> the last of these; not empty."""
    shape = tuple(image.shape)
    if image.ndim == 2:
        image = image[None]
    elif image.ndim != 3:
        raise ValueError(
            f"shape {shape}; (height, width), (height, width, channels) or (channels, height, width) is needed"
        )
    elif 0 in shape:
        raise ValueError(f"empty: shape {shape}")
    elif data_format is not None:
        image = image.movedim(-1, 0) if ChannelDimension(data_format) == ChannelDimension.LAST else image
    elif shape[2] in (1, 3, 4) and (shape[0] not in (1, 3, 4) or (shape[0] == 1 and shape[2] > 1)):
        # Also a single row of RGB pixels, which is refused below, rather than a grey image three pixels wide.
        image = image.movedim(-1, 0)
    elif shape[0] in (1, 3, 4) and shape[2] in (1, 3, 4):
        logger.warning_once(
            f"shape {shape} may be channels first or last; taken as first. Pass input_data_format to say."
        )
    channels, height, width = image.shape
    if 0 in image.shape:
        raise ValueError(f"empty: shape {shape}")
    if channels not in (1, 3, 4) and not (any_count and data_format is not None):
        hint = "; a batch of grey images is (batch, 1, height, width)" if channels > 4 and data_format is None else ""
        raise ValueError(f"shape {shape} has neither 1, 3 nor 4 channels, first or last{hint}")
    if min(height, width) < 2:
        raise ValueError(f"{height} x {width} pixels (shape {shape}); at least 2 x 2 are needed")
    return image


def _to_known_range(image: torch.Tensor, is_16_bit: bool, do_rescale: bool | None, any_range: bool) -> torch.Tensor:
    """-> uint8, or float32 in 0..255; floats as they are without `do_rescale`; any finite float with `any_range`."""
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    if image.is_floating_point():
        if not torch.isfinite(image).all():
            bad = int((~torch.isfinite(image)).sum())
            raise ValueError(f"{bad} of {image.numel()} values are NaN or infinite")
        low, high = float(image.min()), float(image.max())
        if low >= -UNIT_TOLERANCE and high <= 1 + UNIT_TOLERANCE:
            return image.clamp(0, 1) * 255 if do_rescale else image
        if (low < 0 or high > 255) and do_rescale and not any_range:
            raise ValueError(
                f"float values from {low:.6g} to {high:.6g}; [0, 1] or [0, 255] is needed, "
                "or do_percentile_rescale=True, or do_rescale=False to take them as they are"
            )
        return image
    low, high, limit = int(image.min()), int(image.max()), 65535 if is_16_bit else 255
    if (low < 0 or high > limit) and not any_range:
        hint = "" if is_16_bit else "convert to uint16 if 65535 is white, or "
        raise ValueError(
            f"integer values from {low} to {high}; 0 to {limit} is needed; {hint}set do_percentile_rescale=True"
        )
    if is_16_bit:
        return image.float() / 257  # 65535 / 255
    return image.to(torch.uint8) if low >= 0 and high <= 255 else image.float()


def _to_rgb(image: torch.Tensor) -> torch.Tensor:
    """1, 3 or 4 channels -> 3: grey is repeated, alpha composited over black. Keeps dtype and range."""
    if image.shape[0] == 1:
        return image.expand(3, -1, -1).contiguous()
    if image.shape[0] == 3:
        return image.contiguous()
    colour, alpha = image[:3].float(), image[3:].float()
    opaque = 1.0 if image.is_floating_point() and float(image.max()) <= 1 + UNIT_TOLERANCE else 255.0
    if float(alpha.min()) < 0 or float(alpha.max()) > opaque * (1 + UNIT_TOLERANCE):
        raise ValueError(f"alpha from {float(alpha.min()):.6g} to {float(alpha.max()):.6g}; 0 to {opaque:g} is needed")
    colour = colour * (alpha / opaque)
    return (colour.round() if image.dtype == torch.uint8 else colour).to(image.dtype).contiguous()


def _percentile_rescale(image: torch.Tensor, lower: float, upper: float) -> torch.Tensor:
    """The values between two percentiles -> [0, 1], float32. A constant image -> 0."""
    image = image.float()
    low, high = _percentile(image, lower), _percentile(image, upper)
    if not high > low:  # nearly all is black: the rest is what there is to see
        low, high = image.min(), image.max()
    if not high > low:
        return torch.zeros_like(image)
    return ((image - low) / (high - low)).clamp(0, 1)


def _find_region(image: torch.Tensor, crop: bool | None, pad_square: bool | None) -> ImageRegion:
    image_height, image_width = image.shape[-2:]
    box = (find_scan_region(image) if crop else None) or (0, 0, image_height, image_width)
    height, width = box[2:]
    rows, columns = (max(0, width - height), max(0, height - width)) if pad_square else (0, 0)
    padding = (rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)
    return ImageRegion(image_height, image_width, *box, *padding)


def _read_map(segmentation_map: Any, region: ImageRegion) -> torch.Tensor:
    """-> (1, height, width) float32 of whole numbers from 0 to 255."""
    labels, _ = _to_tensor(_open(segmentation_map), keep_palette=True)
    labels = labels.squeeze(0 if labels.shape[0] == 1 else -1) if labels.ndim == 3 else labels
    if tuple(labels.shape) != (region.image_height, region.image_width):
        raise ValueError(f"shape {tuple(labels.shape)}, but its image is {region.image_height} x {region.image_width}")
    labels = labels.float()
    low, high = float(labels.min()), float(labels.max())
    if not (low >= 0 and torch.equal(labels, labels.round())):
        raise ValueError(f"labels from {low:.6g} to {high:.6g}; whole numbers of 0 and more are needed")
    if high == IGNORE_INDEX and not ((labels > 0) & (labels < IGNORE_INDEX)).any():
        logger.warning_once(
            "A segmentation map holds 0 and 255 alone: 255 is the ignore index, so nothing is left to learn from it. "
            "Divide a black-and-white mask by 255 first."
        )
    return labels[None]


__all__ = ["URFMImageProcessor", "URFMImageProcessorPil"]
