"""The preview: planes through the result in true proportion, few slices decoded, the warning burned in."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from service.domain.geometry import Geometry
from service.domain.mask import Mask
from service.domain.prompts import Prompts
from service.domain.volume import Volume
from service.preview import BAR_PIXELS, OUTLINE, _sides, overlay_png

# 60 slices of 40 rows and 50 columns, 3 x 1 x 1 mm, axial: LPS x along columns, y along rows, z along slices.
GEOMETRY = Geometry((60, 40, 50), np.array([[0, 0, 1, 0], [0, 1, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]], float), "1.2")


@dataclass
class MemorySeries:
    """Grey voxels; remembers which slices were asked for."""

    modality: str = "CT"
    geometry: Geometry = GEOMETRY
    decoded: list[tuple[int, int]] = field(default_factory=list)

    def read(self, start: int, stop: int) -> Volume:
        self.decoded.append((start, stop))
        part = self.geometry.crop((start, 0, 0), (stop, *self.geometry.shape_zyx[1:]))
        return Volume(np.full(part.shape_zyx, 40, np.float32), part)


def mask(*box: slice) -> Mask:
    voxels = np.zeros(GEOMETRY.shape_zyx, bool)
    if box:
        voxels[box] = True
    return Mask(voxels, GEOMETRY, 0.8)


def picture(series: MemorySeries, found: Mask, prompts: Prompts | None = None) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(overlay_png(series, found, prompts or Prompts(text="tumour")))))


def outlined(pixels: np.ndarray) -> np.ndarray:
    return np.argwhere((pixels == OUTLINE).all(axis=2))


def test_the_outline_lies_where_the_mask_is():
    pixels = picture(MemorySeries(), mask(slice(20, 24), slice(5, 10), slice(30, 40)))
    scale = 512 / 50  # pixels per mm: 50 columns of 1 mm are the longer side
    source = outlined(pixels[: round(40 * scale), :512])
    assert source.min(axis=0).tolist() == [round(5 * scale), round(30 * scale)]
    assert source.max(axis=0).tolist() == [round(10 * scale) - 1, round(40 * scale) - 1]


def test_the_other_planes_keep_proportions_and_have_the_head_at_the_top():
    found = mask(slice(20, 24), slice(5, 10), slice(30, 40))
    pixels = picture(MemorySeries(), found)
    scale = 512 / 50
    coronal = outlined(pixels[: round(27 * 3 * scale), 516:1028])
    height, width = coronal.max(axis=0) - coronal.min(axis=0) + 1
    assert abs(height / width - 4 * 3 / (10 * 1)) < 0.02
    upper = mask(slice(24, 28), slice(5, 10), slice(30, 40)).voxels | found.voxels
    top = outlined(picture(MemorySeries(), Mask(upper, GEOMETRY, 0.8))[:, 516:1028]).min(axis=0)[0]
    assert top < coronal.min(axis=0)[0]


def test_only_a_slab_around_the_result_is_decoded():
    series = MemorySeries()
    picture(series, mask(slice(30, 34), slice(5, 10), slice(30, 40)))
    ((start, stop),) = series.decoded
    assert start <= 30 - 10
    assert stop >= 34 + 10
    assert stop - start < 32  # 80 mm of 3 mm slices are 27


def test_nothing_found_shows_the_plane_of_the_click():
    series = MemorySeries()
    click = Prompts(points_lps_mm=np.array([[10.0, 12.0, 3.0]]), labels=np.array([1], np.int32))
    pixels = picture(series, mask(), click)
    ((start, stop),) = series.decoded
    assert (start, stop > 1) == (0, True)
    assert len(outlined(pixels)) == 0
    scale = 512 / 50
    assert pixels[round(12.5 * scale), round(10.5 * scale)].tolist() == [64, 255, 96]


def test_the_warning_stands_in_a_bar_below():
    pixels = picture(MemorySeries(), mask(slice(20, 24), slice(5, 10), slice(30, 40)))
    assert (pixels[-BAR_PIXELS:].max(axis=2) > 200).sum() > 300


def test_edge_letters_follow_the_axes():
    assert _sides(GEOMETRY, 2) == ("R", "L")
    assert _sides(GEOMETRY, 1) == ("A", "P")
    assert _sides(GEOMETRY, 0) == ("I", "S")


def test_an_mr_series_without_contrast_is_drawn_all_the_same():
    assert picture(MemorySeries(modality="MR"), mask()).shape[2] == 3
