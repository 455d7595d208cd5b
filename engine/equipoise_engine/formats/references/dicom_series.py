"""Image volumes in DICOM files: single ones, series of files, frames of one file, and mosaics.

Rows and columns stay as the files have them, which is how they are displayed. Slices are ordered along the normal of
their plane, the cross product of the directions of rows and of columns.

Source: DICOM PS3.3, C.7.6.2.1.1 (position and orientation).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.references.dicom_header import (
    DicomFile,
    Frame,
    frames_of,
    is_ours,
    normal_of,
    opened_file,
    starts_as_dicom,
    value_of,
    whole_of,
)
from equipoise_engine.formats.references.dicom_pixels import values_of
from equipoise_engine.formats.stacks.series import natural
from equipoise_engine.progress import Progress, Watch
from equipoise_engine.volume import Volume

MAX_FILES = 20_000
"""Files of a folder that are looked at."""
MAX_LISTED = 6
"""Series of a folder that are named one by one."""
SAME_MM = 1e-3
"""Distance below which two slices lie at one place."""
UNEVEN = 0.05
"""Share of the usual step that steps between slices may differ by without a word."""


def read_dicom(path: Path, watch: Watch) -> Volume:
    """Return the image volume of the series that a file belongs to, or of the only series in a folder.

    Files of a series lie in one folder. Where it has several images at each place, as echoes or repetitions, those of
    the opened file are taken, or the first.

    Raises
    ------
    BadInput
        A file is damaged, or the folder holds several series.
    Unsupported
        There is no image, or one in colour or coded in a way that is not read.
    OutOfMemory
        The volume is larger than the free memory.
    """
    opened = None if path.is_dir() else opened_file(path)
    files = _all_series(path, watch) if opened is None else _series_of(opened, watch)
    frames = [frame for file in files for frame in frames_of(file)]
    chosen = opened.path if opened is not None else None
    frames, notes = _one_size(frames, chosen)
    frames, more = _one_stack(frames, chosen)
    notes += more
    step, said = _step(frames)
    if said:
        notes.append(said)
    headers = {file.path: file for file in files}
    data = values_of(frames, headers, watch)
    pixel = frames[0].pixel_mm
    header = headers[frames[0].file].header
    ours = is_ours(header)
    calibrated = pixel is not None and not (ours and "not known; 1 mm" in str(value_of(header, "ImageComments") or ""))
    if pixel is not None and step is None:
        step = pixel[0]
    first = 0
    if ours and frames[0].position is not None and step and 0 <= frames[0].position[2] / step < MAX_FILES:
        first = round(frames[0].position[2] / step)
    modality = {"CT": "ct", "MR": "mri"}.get(str(value_of(header, "Modality") or ""), "")
    provenance: dict[str, Any] = {"method": "reference", "reference": path.name, "format": "DICOM"}
    provenance["unit"] = _unit(header, modality, calibrated)
    if notes:
        provenance["notes"] = notes
    return Volume(
        data=data,
        voxel_mm=(step or 1.0, *pixel) if pixel is not None else (1.0, 1.0, 1.0),
        modality=modality,
        calibrated=calibrated,
        provenance=provenance,
        first_slice=first,
    )


def _unit(header: Dataset, modality: str, calibrated: bool) -> str:
    if modality != "ct":
        return "a.u."
    if is_ours(header):
        return "1/mm" if calibrated else "1/pixel"
    return "HU"


def _series_of(opened: DicomFile, watch: Watch) -> list[DicomFile]:
    """Return the files beside a file that belong to its series, itself among them."""
    if not opened.series:
        return [opened]
    folder = opened.path.parent
    files = [opened]
    seen = {opened.instance}
    candidates = sorted((p for p in _listed(folder, deep=False) if p != opened.path), key=lambda p: natural(p.name))
    for number, path in enumerate(candidates, 1):
        watch(Progress("read", number, len(candidates)))
        try:
            if not starts_as_dicom(path):
                continue
            file = opened_file(path)
        except (BadInput, Unsupported, OSError):
            continue  # what else lies there is none of our business
        # copies of one image, as in another coding, are taken once
        if file.series == opened.series and (not file.instance or file.instance not in seen):
            seen.add(file.instance)
            files.append(file)
    return files


def _all_series(folder: Path, watch: Watch) -> list[DicomFile]:
    """Return the files of the only series in a folder and the folders in it."""
    series: dict[str, list[DicomFile]] = {}
    seen: set[str] = set()
    failed: list[BadInput] = []
    candidates = sorted(_listed(folder, deep=True), key=lambda p: natural(str(p)))
    for number, path in enumerate(candidates, 1):
        watch(Progress("read", number, len(candidates)))
        try:
            if not starts_as_dicom(path):
                continue
            file = opened_file(path)
        except (Unsupported, OSError):
            continue
        except BadInput as error:
            failed.append(error)
            continue
        if not file.instance or file.instance not in seen:
            seen.add(file.instance)
            series.setdefault(file.series, []).append(file)
    if not series and failed:
        raise failed[0]
    if not series:
        raise BadInput(f"{folder}: no DICOM image in this folder ({len(candidates)} files)", "Choose another folder.")
    if len(series) > 1:
        said = [_series_text(files, folder) for files in series.values()]
        more = f"; and {len(said) - MAX_LISTED} others" if len(said) > MAX_LISTED else ""
        raise BadInput(
            f"{folder}: {len(series)} series of images: {'; '.join(said[:MAX_LISTED])}{more}",
            "Open one file of the wanted series; the others of it are opened with it.",
        )
    return next(iter(series.values()))


def _series_text(files: list[DicomFile], folder: Path) -> str:
    header = files[0].header
    size = f"{whole_of(header, 'Rows', 0)} x {whole_of(header, 'Columns', 0)}"
    count = f"{len(files)} file" + ("s" if len(files) > 1 else "")
    return f"number {whole_of(header, 'SeriesNumber', 0)} ({count}, {size}, as {files[0].path.relative_to(folder)})"


def _listed(folder: Path, *, deep: bool) -> list[Path]:
    """Return the files of a folder that have a size. Raises BadInput where there are too many."""
    try:
        found = folder.rglob("*") if deep else folder.iterdir()
        files = []
        for path in found:
            if not path.name.startswith(".") and path.is_file() and path.stat().st_size:
                files.append(path)
            if len(files) > MAX_FILES:
                raise BadInput(f"{folder}: more than {MAX_FILES} files", "Put the wanted series into its own folder.")
    except OSError as error:
        raise BadInput(f"{folder}: the folder cannot be listed ({error.strerror})") from error
    return files


# --- which images belong together --------------------------------------------------------------------------


def _one_size(frames: list[Frame], chosen: Path | None) -> tuple[list[Frame], list[str]]:
    """Return the images of one size and orientation: those of the opened file, or the most."""

    def kind(frame: Frame) -> tuple[tuple[int, int], tuple[int, ...]]:
        turned = () if frame.orientation is None else tuple(round(100 * value) for value in frame.orientation)
        return frame.shape, turned

    counts = Counter(kind(frame) for frame in frames)
    wanted = next((kind(frame) for frame in frames if frame.file == chosen), counts.most_common(1)[0][0])
    taken = [frame for frame in frames if kind(frame) == wanted]
    notes = []
    if len(taken) < len(frames):
        notes.append(f"{len(frames) - len(taken)} images of the series have another size or orientation: left out")
    return taken, notes


def _one_stack(frames: list[Frame], chosen: Path | None) -> tuple[list[Frame], list[str]]:
    """Return one image per place, in order along the normal of their plane, and what was left out."""
    if any(frame.position is None or frame.orientation is None for frame in frames):
        return _by_number(frames, chosen)
    place = {id(frame): _place(frame) for frame in frames}
    ordered = sorted(frames, key=lambda frame: (place[id(frame)], frame.number, natural(frame.file.name)))
    stacks: list[list[Frame]] = []
    for frame in ordered:
        if stacks and place[id(frame)] - place[id(stacks[-1][0])] <= SAME_MM:
            stacks[-1].append(frame)
        else:
            stacks.append([frame])
    most = max(len(stack) for stack in stacks)
    if most == 1:
        return ordered, []
    # with several images at a place their numbers tell which belong together
    rank = next((n for stack in stacks for n, frame in enumerate(stack) if frame.file == chosen), 0)
    taken = [stack[min(rank, len(stack) - 1)] for stack in stacks]
    return taken, [f"up to {most} images at each of {len(stacks)} places: number {rank + 1} of each was taken"]


def _by_number(frames: list[Frame], chosen: Path | None) -> tuple[list[Frame], list[str]]:
    """Return images in the order of their numbers; of several files with several images those of one."""
    files = {frame.file: None for frame in frames}
    if 1 < len(files) < len(frames):
        file = chosen if chosen in files else min(frames, key=lambda frame: frame.number).file
        taken = [frame for frame in frames if frame.file == file]
        return taken, [f"{len(files)} files with several images each: only those of {file.name} were taken"]
    return sorted(frames, key=lambda frame: (frame.number, natural(frame.file.name))), []


def _place(frame: Frame) -> float:
    assert frame.position is not None
    assert frame.orientation is not None
    return float(np.dot(frame.position, normal_of(frame.orientation)))


def _step(frames: Sequence[Frame]) -> tuple[float | None, str]:
    """Return the distance from slice to slice, and what is uneven about it."""
    if len(frames) < 2 or any(frame.position is None or frame.orientation is None for frame in frames):
        return frames[0].step_mm, ""
    steps = np.diff([_place(frame) for frame in frames])
    usual = float(np.median(steps))
    if not 0 < usual < math.inf:
        return frames[0].step_mm, ""
    odd = int(np.argmax(np.abs(steps - usual)))
    if abs(steps[odd] - usual) <= UNEVEN * usual:
        return usual, ""
    return usual, (
        f"slices are not evenly spaced: {usual:g} mm as a rule, {steps[odd]:g} mm between slices {odd} and {odd + 1};"
        " some may be missing"
    )
