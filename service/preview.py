"""A preview for the eye: three orthogonal planes through the result, with its outline, the prompts and a warning.

What enters: a series, its mask, the prompts. What leaves: PNG bytes, or one slice's picture for a secondary capture.
Only the slices of a slab around the result are decoded. Planes keep their proportions in mm; letters at the edges say
where the patient's sides are. Not for measuring.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from service.domain.geometry import Geometry
from service.domain.mask import Mask
from service.domain.prompts import Prompts
from service.domain.volume import SourceImage

RESEARCH_USE = "Research use only. Not for diagnosis or treatment."
SOFT_TISSUE_HU = (-160.0, 240.0)  # window 400, level 40
MR_PERCENTILES = (1.0, 99.0)
PANEL_PIXELS = 512  # longer side of the source plane
SLAB_MM = 80.0  # least height of the reformatted planes: some anatomy around a small finding
SLAB_MARGIN = 0.5  # of the mask's own height, above and below
OUTLINE, FILL_ALPHA = (255, 64, 64), 70
FOREGROUND, BACKGROUND, BOX = (64, 255, 96), (64, 160, 255), (255, 220, 64)
BAR_PIXELS = 26
KEY_IMAGE_WIDTH = 512  # pixels at least, so that the warning fits
# Ends of the L, P and S axes, for a plane's edge letters: (towards +, towards -).
SIDES = (("L", "R"), ("P", "A"), ("S", "I"))
_TO_DICOM = str.maketrans("SI", "HF")  # head and foot: PS3.3 C.7.6.1.1.1


@dataclass(frozen=True)
class _Plane:
    """One plane of the slab: the axis it cuts, and the axes that run down and across the picture."""

    cut: int
    down: int
    across: int


PLANES = (_Plane(0, 1, 2), _Plane(1, 0, 2), _Plane(2, 0, 1))


def overlay_png(series: SourceImage, mask: Mask, prompts: Prompts) -> bytes:
    """The source plane with most of the mask, and the two planes across it; the click's planes when nothing was found.

    Raises: what `series.read` raises.
    """
    geometry = series.geometry
    centre_zyx = _centre(mask, prompts)
    start, stop = _slab(mask, centre_zyx, geometry)
    grey = _grey(series.read(start, stop).voxels, series.modality)
    slab = geometry.crop((start, 0, 0), (stop, *geometry.shape_zyx[1:]))
    centre_zyx = centre_zyx - (start, 0, 0)
    scale = PANEL_PIXELS / float(np.max(slab.spacing_zyx_mm[1:] * slab.shape_zyx[1:]))
    panels = [
        _panel(plane, grey, mask.voxels[start:stop], slab, prompts, centre_zyx, scale) for plane in PLANES
    ]  # fmt: skip
    return _compose(panels, _caption(mask))


def key_slices(mask: Mask, prompts: Prompts, count: int) -> list[int]:
    """The slice of the largest area first, then others spread evenly over the finding; without one, the click's."""
    slices = np.flatnonzero(mask.voxels.any(axis=(1, 2)))
    largest = int(_centre(mask, prompts)[0])
    if not slices.size or count == 1:
        return [largest]
    spread = slices[np.linspace(0, len(slices) - 1, count).round().astype(int)].tolist()
    return [largest, *dict.fromkeys(number for number in spread if number != largest)][:count]


def key_image(series: SourceImage, mask: Mask, prompts: Prompts, number: int) -> np.ndarray:
    """One source slice with the outline, the patient's sides and the warning burned in. Returns: (H, W, 3) uint8.

    Raises: what `series.read` raises.
    """
    plane, depth = PLANES[0], series.geometry.shape_zyx[0]
    slab = series.geometry.crop((number, 0, 0), (number + 1, *series.geometry.shape_zyx[1:]))
    grey = _grey(series.read(number, number + 1).voxels, series.modality)
    scale = PANEL_PIXELS / float(np.max(slab.spacing_zyx_mm[1:] * slab.shape_zyx[1:]))
    panel = _panel(plane, grey, mask.voxels[number : number + 1], slab, prompts, np.zeros(3, int), scale)
    sheet = Image.new("RGB", (max(panel.width, KEY_IMAGE_WIDTH), panel.height + 2 * BAR_PIXELS))
    sheet.paste(panel, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for line, words in enumerate((RESEARCH_USE, f"Slice {number + 1} of {depth}. {_caption(mask)}")):
        place = (6, panel.height + line * BAR_PIXELS + 5)
        draw.text(place, words, fill=(255, 200, 80), font=ImageFont.load_default(14))
    return np.asarray(sheet)


def _grey(voxels: np.ndarray, modality: str) -> np.ndarray:
    """uint8 of the same shape, windowed."""
    low, high = SOFT_TISSUE_HU if modality == "CT" else np.percentile(voxels, MR_PERCENTILES)
    return np.asarray(np.clip((voxels - low) / max(float(high - low), 1e-6) * 255, 0, 255).astype(np.uint8))


def _centre(mask: Mask, prompts: Prompts) -> np.ndarray:
    """(3,) int z, y, x of the planes to show."""
    shape = np.array(mask.geometry.shape_zyx)
    if mask.voxels.any():
        return np.array([int(mask.voxels.sum(axis=other).argmax()) for other in ((1, 2), (0, 2), (0, 1))])
    if len(prompts.foreground_lps_mm):
        place = mask.geometry.to_index(prompts.foreground_lps_mm[:1])[0]
    elif len(prompts.boxes_lps_mm):
        place = mask.geometry.to_index(prompts.boxes_lps_mm[0]).mean(axis=0)
    else:
        place = (shape - 1) / 2
    return np.asarray(np.clip(np.rint(place), 0, shape - 1), int)


def _slab(mask: Mask, centre_zyx: np.ndarray, geometry: Geometry) -> tuple[int, int]:
    """[start, stop) of the slices to decode."""
    slices = np.flatnonzero(mask.voxels.any(axis=(1, 2)))
    first, last = (int(slices[0]), int(slices[-1])) if len(slices) else (int(centre_zyx[0]), int(centre_zyx[0]))
    spacing_mm = float(geometry.spacing_zyx_mm[0])
    margin = max(SLAB_MARGIN * (last - first + 1), (SLAB_MM / spacing_mm - (last - first + 1)) / 2)
    return max(0, int(first - margin)), min(geometry.shape_zyx[0], int(last + margin) + 1)


def _panel(
    plane: _Plane,
    grey: np.ndarray,  # (D, H, W) uint8, the slab
    voxels: np.ndarray,  # (D, H, W) bool, the slab
    slab: Geometry,
    prompts: Prompts,
    centre_zyx: np.ndarray,
    scale: float,
) -> Image.Image:
    """One plane as a picture, `scale` pixels per mm."""
    picture = np.take(grey, centre_zyx[plane.cut], axis=plane.cut)
    found = np.take(voxels, centre_zyx[plane.cut], axis=plane.cut)
    # The slice axis is drawn upwards when it runs towards the head, as radiologists expect.
    upwards = plane.down == 0 and slab.affine[2, 0] > 0
    if upwards:
        picture, found = picture[::-1], found[::-1]
    spacing = slab.spacing_zyx_mm
    rows, columns = slab.shape_zyx[plane.down], slab.shape_zyx[plane.across]
    pixels_per_voxel = scale * np.array([spacing[plane.down], spacing[plane.across]])
    size = (max(1, round(columns * pixels_per_voxel[1])), max(1, round(rows * pixels_per_voxel[0])))
    image = Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BILINEAR).convert("RGB")
    area = Image.fromarray(found.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    image.paste(OUTLINE, mask=area.point(lambda value: FILL_ALPHA if value else 0))
    inner = np.asarray(area.filter(ImageFilter.MinFilter(3)))
    image.paste(OUTLINE, mask=Image.fromarray(np.asarray(area) - inner))

    def pixel(points_lps_mm: np.ndarray) -> np.ndarray:
        """(N, 3) LPS mm to (N, 2) picture x, y."""
        index = slab.to_index(points_lps_mm)[:, [plane.across, plane.down]]
        if upwards:
            index[:, 1] = rows - 1 - index[:, 1]
        return np.asarray((index + 0.5) * pixels_per_voxel[::-1])

    draw = ImageDraw.Draw(image)
    for corners in prompts.boxes_lps_mm:
        drawn = pixel(corners)
        draw.rectangle([*drawn.min(axis=0), *drawn.max(axis=0)], outline=BOX)
    for (x, y), label in zip(pixel(prompts.points_lps_mm), prompts.labels, strict=True):
        colour = FOREGROUND if label == 1 else BACKGROUND
        draw.line([x - 6, y, x + 6, y], fill=colour)
        draw.line([x, y - 6, x, y + 6], fill=colour)
    _letters(draw, size, slab, plane, upwards)
    return image


def _letters(draw: ImageDraw.ImageDraw, size: tuple[int, int], slab: Geometry, plane: _Plane, upwards: bool) -> None:
    """The patient's sides at the left, right, top and bottom edges."""
    left, right = _sides(slab, plane.across)
    top, bottom = _sides(slab, plane.down)[:: -1 if upwards else 1]
    width, height = size
    places = {
        left: (3, height / 2),
        right: (width - 12, height / 2),
        top: (width / 2, 2),
        bottom: (width / 2, height - 16),
    }
    for letter, place in places.items():
        draw.text(place, letter, fill=(230, 230, 230), font=ImageFont.load_default(12))


def patient_orientation(geometry: Geometry) -> tuple[str, str]:
    """Where rows and columns run to, as DICOM's Patient Orientation has it: ("L", "P") of an axial image."""
    right, bottom = _sides(geometry, 2)[1], _sides(geometry, 1)[1]
    return right.translate(_TO_DICOM), bottom.translate(_TO_DICOM)


def _sides(geometry: Geometry, axis: int) -> tuple[str, str]:
    """The patient's sides at the start and at the end of a voxel axis."""
    direction = geometry.affine[:3, axis]
    lps = int(np.abs(direction).argmax())
    end, start = SIDES[lps] if direction[lps] > 0 else SIDES[lps][::-1]
    return start, end


def _caption(mask: Mask) -> str:
    if not mask.voxels.any():
        return "Nothing found."
    return f"Volume {mask.volume_ml:.2f} ml, score {mask.score:.2f}."


def _compose(panels: list[Image.Image], caption: str) -> bytes:
    """The source plane left, the other two stacked on its right, a bar with the warning below."""
    source, *others = panels
    width = source.width + max(panel.width for panel in others) + 4
    height = max(source.height, sum(panel.height for panel in others) + 4)
    sheet = Image.new("RGB", (max(width, 620), height + BAR_PIXELS))
    sheet.paste(source, (0, 0))
    top = 0
    for panel in others:
        sheet.paste(panel, (source.width + 4, top))
        top += panel.height + 4
    ImageDraw.Draw(sheet).text(
        (6, height + 5), f"{RESEARCH_USE} {caption}", fill=(255, 200, 80), font=ImageFont.load_default(14)
    )
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()
