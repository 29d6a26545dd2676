"""Maximum intensity projections, along the three axes and turning."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from numpy.typing import NDArray
from PIL import Image

from unoise_monai.atomic import atomic_path
from unoise_monai.checks import check_choice
from unoise_monai.render.canvas import (
    Rgb,
    Spacing,
    Volume,
    Window,
    bar_colours,
    blend,
    check_picture,
    find_window,
    foreground_box,
    grey_levels,
    upright,
)
from unoise_monai.render.panels import LARGEST_PANEL, Panel, View, draw_panels, draw_views, title_width


def project(volume: NDArray[Any], axis: int) -> NDArray[Any]:
    """The highest value of every ray along an axis of a volume ``(X, Y, Z)`` in RAS order, ``(rows, columns)`` as
    ``display_slice`` would show them."""
    return upright(volume.max(axis))


def project_at_brightest(values: NDArray[Any], image: NDArray[Any], axis: int) -> NDArray[Any]:
    """The value, at least 0, of the image's brightest voxel on every ray; of several equally bright ones the highest.

    Both volumes are ``(X, Y, Z)`` in RAS order; the result is as that of ``project``.
    """
    peaks = image.max(axis, keepdims=True)
    found = np.zeros(peaks.shape, values.dtype)
    # Plane by plane as the volume lies in memory: it is read once, in order, and nothing of its size is made.
    over = max(range(3), key=lambda other: abs(image.strides[other]))
    for at in range(image.shape[over]):
        plane = (*(slice(None),) * over, slice(at, at + 1))
        pixels = ... if over == axis else plane
        shown = np.where(image[plane] == peaks[pixels], values[plane], 0).max(axis, keepdims=True)
        np.maximum(found[pixels], shown, out=found[pixels])
    return upright(found.squeeze(axis))


def silhouettes(segmentation: NDArray[Any], axis: int) -> list[NDArray[np.bool_]]:
    """The shadow, as ``project`` gives it, of each class above 0 that is there, in the order of class indices."""
    highest = project(segmentation, axis)
    if highest.max() <= 1:  # the most frequent case, without another look at the volume
        return [highest == 1] if highest.max() == 1 else []
    inside = segmentation[tuple(slice(*ends) for ends in foreground_box(segmentation) or ())]
    classes = sorted(set().union(*(np.unique(plane[plane > 0]).tolist() for plane in inside)))
    return [project(segmentation == value, axis) for value in classes]


def slab(size: int, spacing_mm: float, thickness_mm: float, centre: float) -> slice:
    """The slices, of ``size``, of a slab of about the given thickness, one at least, moved inside the volume.

    It is centred on slice ``centre``, from 0; halves lie between two slices. ``spacing_mm`` is from slice to slice.
    """
    count = min(size, max(1, round(thickness_mm / spacing_mm)))
    start = min(max(0, round(centre - (count - 1) / 2)), size - count)
    return slice(start, start + count)


VIEWS = ("sagittal", "coronal", "axial")
"""By the axis that the rays run along."""
DEPTHS = ("brightest", "any")
SLAB_PANEL = 360
"""Pixels of the longest side of one slab of many."""


def mips(
    image: Volume,
    spacing_mm: Spacing,
    importance: Volume | None = None,
    segmentation: Volume | None = None,
    slab_mm: float | None = None,
    centre: Sequence[float] | None = None,
    window: Window | None = None,
    style: str = "colour",
    threshold: float = 0.1,
    depth: str = "brightest",
    label: str = "importance, 0 to 1",
) -> Rgb:
    """Show a volume along its three axes as maximum intensity projections: axial, coronal and sagittal.

    The volumes are canonical (``to_canonical``), the display convention is that of ``display_slice``, all three views
    have the same scale. The shadows of the segmentation's classes are outlined.

    Args:
        image: intensities, ``(X, Y, Z)`` in RAS order.
        spacing_mm: the voxels' size along X, Y and Z, mm.
        importance: ``(X, Y, Z)``, 0 to 1; laid over in colour.
        segmentation: class indices, ``(X, Y, Z)``; each class above 0 is outlined.
        slab_mm: thickness of the slab that each view projects, mm; the whole volume where it is None.
        centre: voxel (X, Y, Z), from 0, that the slabs are centred on; the middle of the segmentation's extent where
            it is None, or of the volume where nothing is segmented.
        window: intensities that turn black and white; found in the projections where it is None (``find_window``).
        style: one of ``canvas.STYLES``.
        threshold: importance up to which ``style="colour"`` shows the scan alone.
        depth: whose importance colours a pixel. ``brightest``: that of the voxel the pixel shows, the brightest of
            its ray: colour lies on the vessel that one sees, and what lies before or behind it is hidden. ``any``: the
            highest of the ray; nothing is hidden, and a map with some importance everywhere colours everything.
        label: what the colour bar shows, with its unit.

    Raises:
        ValueError: when the volumes differ in shape, are not 3-D, are empty, or hold values that are not finite, when
            the image holds one value only, ``importance`` leaves [0, 1], or another argument is out of range.
    """
    check_picture(spacing_mm, 2, image, importance, segmentation, window, style, threshold)
    parts = {axis: slice(None) for axis in (2, 1, 0)}
    titles = {axis: f"{VIEWS[axis]} MIP" for axis in parts}
    if slab_mm is not None:
        check_slab(slab_mm)
        if centre is None:
            box = None if segmentation is None else foreground_box(segmentation)
            centre = [(first + end - 1) / 2 for first, end in box or [(0, size) for size in image.shape]]
        if len(centre) != 3 or not all(0 <= at < size for at, size in zip(centre, image.shape, strict=True)):
            raise ValueError(f"centre must be a voxel of the volume of shape {image.shape}, got {tuple(centre)}")
        for axis in parts:
            parts[axis] = part = slab(image.shape[axis], spacing_mm[axis], slab_mm, centre[axis])
            titles[axis] += f", {(part.stop - part.start) * spacing_mm[axis]:.3g} mm"
    slabs = [(axis, part, titles[axis]) for axis, part in parts.items()]
    look = {"style": style, "threshold": threshold, "label": label, "longest": LARGEST_PANEL}
    return _draw_slabs(image, spacing_mm, importance, segmentation, slabs, window, depth, **look)


def slab_mips(
    image: Volume,
    spacing_mm: Spacing,
    slab_mm: float,
    importance: Volume | None = None,
    segmentation: Volume | None = None,
    axis: int = 2,
    window: Window | None = None,
    style: str = "colour",
    threshold: float = 0.1,
    depth: str = "brightest",
    label: str = "importance, 0 to 1",
) -> Rgb:
    """Show a volume as consecutive slabs along one axis, each a maximum intensity projection.

    The slabs follow each other without a gap, from the feet to the head (axial), from back to front (coronal), or
    from left to right (sagittal); the last may be thinner. Further arguments and errors are those of ``mips``.

    Args:
        slab_mm: thickness of a slab, mm, rounded to whole slices.
        axis: 0 sagittal, 1 coronal, 2 axial.
    """
    check_picture(spacing_mm, axis, image, importance, segmentation, window, style, threshold)
    check_slab(slab_mm)
    size, count = image.shape[axis], max(1, round(slab_mm / spacing_mm[axis]))
    slabs = []
    for start in range(0, size, count):
        end = min(start + count, size)
        slabs.append((axis, slice(start, end), f"slices {start + 1} to {end} of {size}"))
    look = {"style": style, "threshold": threshold, "label": label, "longest": SLAB_PANEL}
    return _draw_slabs(image, spacing_mm, importance, segmentation, slabs, window, depth, **look)


def check_slab(slab_mm: float) -> None:
    """Refuse, by ValueError, a thickness that is not a finite number of mm above 0."""
    if not (math.isfinite(slab_mm) and slab_mm > 0):
        raise ValueError(f"slab_mm must be a finite number above 0, got {slab_mm}")


def _draw_slabs(
    image: Volume,
    spacing_mm: Spacing,
    importance: Volume | None,
    segmentation: Volume | None,
    slabs: Sequence[tuple[int, slice, str]],
    window: Window | None,
    depth: str,
    **look: Any,
) -> Rgb:
    """A projection for each slab (axis, slices, title); ``look`` is what ``draw_views`` takes."""
    check_choice("depth", depth, DEPTHS)
    views = []
    for axis, part, title in slabs:
        cut = (*(slice(None),) * axis, part)
        scan, shown = image[cut], None
        if importance is not None:
            values = importance[cut]
            shown = project_at_brightest(values, scan, axis) if depth == "brightest" else project(values, axis)
        outlines = [] if segmentation is None else silhouettes(segmentation[cut], axis)
        views.append(View(axis, title, project(scan, axis), shown, outlines))
    window = find_window(np.concatenate([view.pixels.ravel() for view in views]), window)
    return draw_views(views, spacing_mm, window, **look)


TURNS = {0: ("I", "P", "L"), 1: ("L", "S", "P"), 2: ("L", "P", "I")}
"""By the axis of rotation, the directions across the picture and away from the viewer at 0 degrees, and along the
axis; at 90 degrees the second one runs across."""
SIDES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
DIGITS = 6
"""Of positions, in voxels: edges that coincide stay together."""


class Turn(NamedTuple):
    """Projections of one volume from several directions."""

    peaks: NDArray[np.float32]
    """Highest intensity along each ray, ``(N, rows, columns)``; NaN where the ray misses the volume."""
    shares: NDArray[np.float32] | None
    """Importance there, ``(N, rows, columns)``; 0 where the ray misses the volume."""
    pixel_mm: tuple[float, float]
    """Height and width of a pixel, mm."""


def turned_mips(
    image: Volume,
    spacing_mm: Spacing,
    degrees: Sequence[float],
    axis: int = 2,
    importance: Volume | None = None,
    pixel_mm: float = 0,
) -> Turn:
    """Project a canonical volume along parallel rays from several directions around an axis through its centre.

    Voxels are boxes of one intensity, which a ray crosses or not: nothing is interpolated, so that no vessel is dimmer
    from one side than from another, and at multiples of 90 degrees the pictures are the plain projections. Of voxels
    equally bright along a ray, the most important one counts.

    Args:
        image, spacing_mm, axis, importance: as in ``rotating_mip``.
        degrees: where to look from, as ``rotating_mip`` turns.
        pixel_mm: where this is the size of several voxels, pixels are close to it, and each shows the brightest voxel
            of a beam of its width.
    """
    first_mm, second_mm, along_mm = (spacing_mm[SIDES[code]] for code in TURNS[axis])
    columns, rows = (image.shape[SIDES[code]] for code in TURNS[axis][:2])
    finest = min(first_mm, second_mm)
    wide, tall = max(1, round(pixel_mm / finest)), max(1, round(pixel_mm / along_mm))
    # Sizes of a voxel across the rays, in voxels of the finer size: the pixels' size where it is not several of them.
    first, second = first_mm / finest, second_mm / finest
    count = math.ceil(round(math.hypot(columns * first, rows * second) / wide, DIGITS))
    count += (count - round(columns * first / wide)) % 2  # so that rays go through the voxels' centres at 0 degrees
    rays = wide * _centres(count)
    values = _stacks(image, axis, tall, -np.inf)
    weights = None if importance is None else _stacks(importance, axis, tall, 0)
    peaks = np.full((len(degrees), count, values.shape[2]), np.nan, dtype=np.float32)
    shares = None if weights is None else np.zeros_like(peaks)
    for number, angle in enumerate(degrees):
        cosine, sine = _direction(angle)
        places = np.add.outer(cosine * first * _centres(columns), sine * second * _centres(rows)).ravel().round(DIGITS)
        order = np.argsort(places, kind="stable")
        # Half of the shadow of a voxel's box, and of the beam, which is a ray where a pixel is one voxel wide.
        reach = (abs(cosine) * first + abs(sine) * second + wide - 1) / 2
        ends = np.stack([rays - reach, rays + reach]).round(DIGITS)
        starts, stops = np.searchsorted(places[order], ends, side="right")
        for pixel in np.flatnonzero(starts < stops):
            crossed = order[starts[pixel] : stops[pixel]]
            ray = values[crossed].reshape(-1, values.shape[2])
            peaks[number, pixel] = ray.max(axis=0)
            if weights is not None and shares is not None:
                brightest = ray == peaks[number, pixel]
                shares[number, pixel] = np.where(brightest, weights[crossed].reshape(ray.shape), 0).max(axis=0)
    if axis == 0:
        return Turn(peaks, shares, (wide * finest, tall * along_mm))
    # The axis of rotation is upright.
    return Turn(
        peaks.swapaxes(1, 2), None if shares is None else shares.swapaxes(1, 2), (tall * along_mm, wide * finest)
    )


def view_letters(angle: float, axis: int = 2) -> tuple[str, dict[str, str]]:
    """The side that ``rotating_mip`` looks from at an angle, and what lies at each edge of the picture."""
    first, second, along = TURNS[axis]
    cosine, sine = _direction(angle)

    def letters(parts: dict[str, float]) -> str:
        """Of a direction, the main one first, as DICOM's Patient Orientation (0020,0020) writes them."""
        towards = [(abs(part), code if part > 0 else OPPOSITE[code]) for code, part in parts.items() if part]
        return "".join(code for _, code in sorted(towards, key=lambda item: -item[0]))

    end, start = letters({first: cosine, second: sine}), letters({first: -cosine, second: -sine})
    viewer = letters({first: sine, second: -cosine})
    if axis == 0:
        return viewer, {"left": OPPOSITE[along], "right": along, "top": start, "bottom": end}
    return viewer, {"left": start, "right": end, "top": OPPOSITE[along], "bottom": along}


def _direction(angle: float) -> tuple[float, float]:
    """Cosine and sine, exactly 0 and 1 where they should be."""
    return round(math.cos(math.radians(angle)), 12), round(math.sin(math.radians(angle)), 12)


def _centres(count: int) -> NDArray[np.float64]:
    """Of ``count`` cells of size 1 around 0."""
    return np.arange(count, dtype=np.float64) - (count - 1) / 2


def _stacks(volume: Volume, axis: int, tall: int, fill: float) -> NDArray[np.float32]:
    """Columns of voxels along an axis, cut into stacks of one pixel: ``(columns, tall, pixels)``."""
    to_view = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(TURNS[axis]))
    columns = apply_orientation(volume, to_view).astype(np.float32)
    columns = columns.reshape(-1, columns.shape[2])
    padded = np.pad(columns, ((0, 0), (0, -columns.shape[1] % tall)), constant_values=fill)
    return np.ascontiguousarray(padded.reshape(len(columns), -1, tall).swapaxes(1, 2))


def rotating_mip(
    image: Volume,
    spacing_mm: Spacing,
    frames: int = 36,
    axis: int = 2,
    importance: Volume | None = None,
    window: Window | None = None,
    style: str = "colour",
    threshold: float = 0.1,
    label: str = "importance, 0 to 1",
    longest: int = 512,
) -> NDArray[np.uint8]:
    """Turn a volume once around, as maximum intensity projections for ``save_animation``.

    The first frame looks from the front (A): head up, the patient's right on the left. The viewer then walks by the
    patient's left (L, at 90 degrees), back and right. Around axis 0 the viewer goes from the front (A) below the feet
    (I), around axis 1 from below (I, front up) to the left (L). Titles and letters at the edges name the directions,
    the main one first: "AL" is the front, a little from the left. At 0 and 90 degrees pictures are plain projections
    as ``display_slice`` turns them: around axis 2 coronal and sagittal, around axis 0 coronal and axial.

    Importance colours a pixel as ``depth="brightest"`` of ``mips`` does.

    Args:
        image, spacing_mm, importance, window, style, threshold, label: as in ``mips``.
        frames: pictures in one turn.
        axis: the axis of rotation: 2 the patient's long axis, 0 from right to left, 1 from front to back.
        longest: pixels of a picture's longer side. In a volume of more voxels a pixel shows the brightest one of the
            several that it covers, so that thin vessels survive.

    Returns:
        RGB, ``(N, H, W, 3)``.

    Raises:
        ValueError: as ``mips``, when ``axis`` is out of range, ``frames`` below 1, or ``longest`` below 16.
    """
    check_picture(spacing_mm, axis, image, importance, None, window, style, threshold)
    for name, value, lowest in (("frames", frames, 1), ("longest", longest, 16)):
        if value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}")

    degrees = [360 * number / frames for number in range(frames)]
    size_mm = [count * size for count, size in zip(image.shape, spacing_mm, strict=True)]
    extent_mm = max(size_mm.pop(axis), math.hypot(*size_mm))
    turn = turned_mips(image, spacing_mm, degrees, axis, importance, extent_mm / longest)
    grey = np.zeros(turn.peaks.shape)
    inside = np.isfinite(turn.peaks)
    grey[inside] = grey_levels(turn.peaks[inside], window)
    bar = None if importance is None else bar_colours(threshold, style)
    viewers, letters = zip(*(view_letters(angle, axis) for angle in degrees), strict=True)
    titles = [f"from {viewer}, {angle:.0f}°" for viewer, angle in zip(viewers, degrees, strict=True)]
    widest = max(title_width(title) for title in titles)
    pictures = []
    for number, title in enumerate(titles):
        shares = None if turn.shares is None else turn.shares[number]
        panel = Panel(blend(grey[number], shares, threshold, style), title)
        pictures.append(draw_panels([panel], turn.pixel_mm, letters[number], bar, label, longest, widest))
    return np.stack(pictures)


FORMATS = {".gif": "GIF", ".png": "PNG", ".apng": "PNG"}


def save_animation(frames: NDArray[Any], path: str | os.PathLike[str], frame_ms: int = 100) -> None:
    """Write an animated picture that repeats for ever, whole or not at all; missing folders are created.

    A ``.gif`` opens in every slide program; its up to 256 colours are chosen once for all frames, without dithering,
    so that nothing flickers, and up to 256 greys are kept as they are. A ``.png`` or ``.apng`` (animated PNG) keeps
    every colour, at several times the size; programs that do not know it show the first frame. A frame equal to the one
    before is stored as a longer stay.

    Args:
        frames: ``(N, H, W, 3)``, uint8, at least two.
        path: its suffix is the format.
        frame_ms: how long each frame stays, ms: from 20, below which viewers set a time of their own, to 65,530, in
            steps of 10, as GIF counts.

    Raises:
        ValueError: when ``frames``, the suffix or ``frame_ms`` is none of these.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) < 2 or frames.size == 0:
        wanted = "uint8 of shape (N, H, W, 3) with N of at least 2"
        raise ValueError(f"frames must be {wanted}, got {frames.dtype} of shape {frames.shape}")
    suffix = Path(path).suffix.lower()
    check_choice("suffix of the animation", suffix, tuple(FORMATS))
    if not 20 <= frame_ms <= 65530 or frame_ms % 10:
        raise ValueError(f"frame_ms must be a multiple of 10 from 20 to 65530, got {frame_ms}")
    pictures = [Image.fromarray(frame) for frame in frames]
    if suffix == ".gif":
        # Quantised in one piece to one palette, so that a colour is the same in every frame.
        strip = Image.fromarray(frames.reshape(-1, *frames.shape[2:])).quantize(256)
        pictures = [Image.fromarray(indices) for indices in np.asarray(strip).reshape(frames.shape[:3])]
        for picture in pictures:
            picture.putpalette(strip.getpalette() or [])
    with atomic_path(path) as temporary:
        options = {"save_all": True, "append_images": pictures[1:], "duration": frame_ms, "loop": 0}
        pictures[0].save(temporary, format=FORMATS[suffix], **options)
