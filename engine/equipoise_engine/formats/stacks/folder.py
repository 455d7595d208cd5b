"""Folders of images: which of them are projections, flats and darks, told by the names of files and folders."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, Match, Samples
from equipoise_engine.errors import BadInput, EquipoiseError, Incomplete
from equipoise_engine.formats.angles import angles_of_text
from equipoise_engine.formats.frames import Taken
from equipoise_engine.formats.known import GIVEN
from equipoise_engine.formats.roles import parsed, told_roles
from equipoise_engine.formats.stacks.edf import angles_of_edf, images_of_edf, is_edf
from equipoise_engine.formats.stacks.fits import images_of_fits, is_fits
from equipoise_engine.formats.stacks.series import gaps, images_of, natural
from equipoise_engine.formats.stacks.sinogram import MIN_VIEWS
from equipoise_engine.formats.stacks.stack import ROLES, Stack, frames_of, scan_of_stack
from equipoise_engine.formats.stacks.tiffstack import images_of_tiff
from equipoise_engine.formats.stacks.viewangles import trimmed
from equipoise_engine.recipe import Known, Source

# How images of one file are opened, `(image, row, column)`, by its suffix.
_SINGLE: dict[str, Callable[[Path], Samples]] = {
    ".tif": images_of_tiff,
    ".tiff": images_of_tiff,
    ".edf": images_of_edf,
    ".fits": images_of_fits,
    ".fit": images_of_fits,
    ".fts": images_of_fits,
}
_NAMES: dict[Callable[[Path], Samples], str] = {images_of_tiff: "TIFF", images_of_edf: "EDF", images_of_fits: "FITS"}
_OTHER_SCANS = frozenset(
    {".h5", ".hdf5", ".hdf", ".nxs", ".nx", ".mat", ".cfl", ".mrc", ".mrcs", ".txrm", ".xtekct", ".npy", ".npz"}
)
"""Files that are scans in themselves: images beside them are something else."""
_TEXT = frozenset({".txt", ".csv", ".dat", ".tlt", ".rawtlt", ".ang", ".angles", ".theta"})
MAX_FILES = 200_000
"""Files that a folder is looked at for."""
MUCH_LARGER = 4
"""How many times as many images as the next group the projections must have, where names do not tell."""
# Words of names, whole ones and beginnings of longer ones.
_WORDS: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {
    "flats": (
        frozenset({"ff", "ob", "i0", "io", "ref", "refs", "air", "gain", "open"}),
        ("flat", "white", "bright", "openbeam", "reference", "blank"),
    ),
    "darks": (frozenset({"di", "df", "dc", "bg"}), ("dark", "bias")),
    "projections": (
        frozenset({"raw", "tiffs", "tifs", "ct", "im", "image", "images", "sample", "scan"}),
        ("proj", "tomo", "radio", "view", "sino"),
    ),
    "others": (frozenset({"rec", "spr"}), ("recon", "slice", "preview", "thumb", "mask")),
}
_HALF_TURN = re.compile(r"180[ _-]?deg", re.IGNORECASE)
_ANGLE_WORDS = ("angle", "theta", "tilt", "rotation")


@dataclass(frozen=True)
class _Group:
    """Files of one folder whose names differ in numbers only.

    Parameters
    ----------
    pattern
        Names the group, relative to the folder of the scan.
    role
        What its name says: a role, "others" for what is no part of the scan, or nothing.
    """

    pattern: str
    files: tuple[Path, ...]
    role: str


def is_image_folder(path: Path) -> bool:
    """Whether a folder holds image files that make up a scan, and no file that is a scan in itself."""
    try:
        if any(p.suffix.lower() in _OTHER_SCANS for p in path.iterdir()):
            return False
        groups = _groups(path)
    except (OSError, BadInput):
        return False
    roles = {group.role for group in groups}
    if roles & {"flats", "darks"} and roles & {"projections", ""}:
        return True
    return any(len(group.files) >= MIN_VIEWS and group.role != "others" for group in groups)


def read_images(path: Path, known: Known) -> CtAcquisition:
    """Return the scan in a folder of images, or in an image file: a stack, a sinogram, or one image of a series.

    Roles follow from the names of files and folders, or are told. An image file among others of one numbering stands
    for all of them; the role projections with its name keeps it alone.

    Raises
    ------
    BadInput
        A file is damaged, too small for a scan, or the files do not fit together.
    Incomplete
        It is not clear which files are the projections.
    Unsupported
        Images are of a kind that is not read, or were made by this program.
    OutOfMemory
        One image is larger than the free memory.
    """
    if not path.is_dir():
        return _read_file(path, known)
    groups = _groups(path)
    roles = told_roles(known, path, ROLES)
    if _named(roles, "projections"):
        return _scan(path, path, groups, None, known, "a folder of images")
    scan = _scan(path, path, groups, _chosen(path, groups), known, "a folder of images")
    return replace(scan, warnings=(*_elsewhere(path, scan, deep=False), *scan.warnings))


def _read_file(path: Path, known: Known) -> CtAcquisition:
    """Return the scan in a file, or of the series that it belongs to."""
    images = _opener(path)(path)
    source = parsed(told_roles(known, path, ROLES).get("projections", ""))[0]
    if source and source != path.name:
        return _scan(path, path.parent, _groups(path.parent, deep=False), None, known, "a series of images")
    if source or images.shape[0] != 1:
        return _alone(path, images, known)
    groups = _groups(path.parent, deep=False)
    group = next((group for group in groups if path in group.files), None)
    if group is None or len(group.files) < MIN_VIEWS or not _alike(group, images):
        return _alone(path, images, known)
    scan = _scan(path, path.parent, groups, group, known, "a series of images")
    note = (
        f"{path.name} is one of {len(group.files)} numbered images in its folder, which were opened together; give it"
        " the role projections to open it alone."
    )
    return replace(scan, warnings=(note, *_elsewhere(path.parent, scan, deep=True), *scan.warnings))


def _elsewhere(folder: Path, scan: CtAcquisition, *, deep: bool) -> tuple[str, ...]:
    """Return a hint at flats and darks in a folder that were not looked at, where the scan has none.

    That is the folder above and, where the folders inside were not looked at either, that of the scan itself.
    """
    for other in ((folder,) if deep else ()) + ((folder.parent,) if folder.parent != folder else ()):
        if scan.flats is None and is_image_folder(other) and {"flats", "darks"} & {g.role for g in _groups(other)}:
            where = "the folder above" if other == folder.parent else "folders beside"
            return (f"Flats and darks may lie in {where}: open {other.name or other} to take them.",)
    return ()


def _alone(path: Path, images: Samples, known: Known) -> CtAcquisition:
    """Return the scan that the images of one file are."""
    count, rows, columns = (int(n) for n in images.shape)
    views = rows if count == 1 else max(count, rows)
    if min(views, columns) < MIN_VIEWS:
        raise BadInput(
            f"{path.name}: an image of {rows} x {columns} is too small for a sinogram of at least {MIN_VIEWS} views and"
            " columns"
        )
    only = count == 1
    kind = _NAMES[_opener(path)]
    scan = scan_of_stack(
        Stack(
            path=path,
            format=f"{kind} sinogram" if only else f"{kind} stack",
            images=images,
            matched=(Match("projections", "the image" if only else "the images", (), f"{count} in the file"),),
            beside=partial(_beside, path.parent, path),
        ),
        _without_projections(known),
    )
    if not only or "layout" in scan.guessed:
        return scan
    note = (
        "Such a file does not say that it is a sinogram: its"
        f" {f'{columns} columns' if known.transposed else f'{rows} rows'} were taken as the views of a parallel beam."
    )
    return replace(scan, warnings=(note, *scan.warnings), guessed=("layout", *scan.guessed))


def _without_projections(known: Known) -> Known:
    """Return what is known without the file that projections were told to be, but with the frames of it."""
    roles = []
    for role in known.roles:
        if role.role == "projections":
            mark = role.source.rfind("#") if parsed(role.source)[1] is not None else -1
            if mark < 0:
                continue
            role = msgspec.structs.replace(role, source=role.source[mark:])
        roles.append(role)
    return msgspec.structs.replace(known, roles=tuple(roles))


def _alike(group: _Group, images: Samples) -> bool:
    """Whether some of the files of a group hold one image of this shape and type each."""
    some = {group.files[0], group.files[len(group.files) // 2], group.files[-1]}
    try:
        others = [_open(file) for file in some]
    except EquipoiseError:
        return False
    return all(tuple(other.shape) == tuple(images.shape) and other.dtype == images.dtype for other in others)


# --- names ------------------------------------------------------------------------------------------


def _groups(folder: Path, *, deep: bool = True) -> list[_Group]:
    """Return the image files of a folder, and of folders in it, by their names; the order is that of people."""
    found: dict[str, list[Path]] = {}
    for file in _files(folder, deep):
        if file.suffix.lower() in _SINGLE:
            # folders that differ in a number are scans of their own
            alike = file.relative_to(folder).with_name(re.sub(r"\d+", "*", file.stem) + file.suffix)
            found.setdefault(alike.as_posix(), []).append(file)
    groups = []
    for pattern in sorted(found, key=natural):
        files = sorted(found[pattern], key=lambda file: natural(file.stem))
        if len(files) == 1:
            pattern = files[0].relative_to(folder).as_posix()
        groups.append(_Group(pattern, tuple(files), _role_of(files[0], folder)))
    return groups


def _files(folder: Path, deep: bool) -> list[Path]:
    try:
        here = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
        files = [p for p in here if p.is_file()]
        for inner in here if deep else ():
            if inner.is_dir() and not folder.resolve().is_relative_to(inner.resolve()):
                files += sorted(p for p in inner.iterdir() if not p.name.startswith(".") and p.is_file())
            if len(files) > MAX_FILES:
                break
    except OSError as error:
        raise BadInput(f"{folder}: the folder cannot be listed ({error.strerror})") from error
    if len(files) > MAX_FILES:
        raise BadInput(f"{folder}: more than {MAX_FILES} files; this is not the folder of one scan")
    return files


def _role_of(file: Path, folder: Path) -> str:
    """Return the role that the name of a file tells, else that of its folder; empty where neither does."""
    if _HALF_TURN.search(file.stem):
        return "180 degrees"
    named = []
    for name in (file.stem, *reversed(file.relative_to(folder).parent.parts)):
        words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
        words = [word if word == "i0" else word.strip("0123456789") for word in words]
        named += [
            role
            for role, (whole, beginnings) in _WORDS.items()
            if any(word in whole or word.startswith(beginnings) for word in words)
        ]
    # a flat may be called an image as well, whereas a projection is no flat
    return next((role for role in named if role != "projections"), "projections" if named else "")


def _chosen(path: Path, groups: list[_Group]) -> _Group:
    """Return the group of the projections."""
    named = [group for group in groups if group.role == "projections"]
    free = [group for group in groups if group.role == ""]
    candidates = named + free
    if not candidates:
        # a sample may be called after a flat or a dark
        candidates = [group for group in groups if group.role != "others"]
    if not candidates:
        raise BadInput(f"{path.name}: no images in this folder that may be projections")
    ordered = sorted(candidates, key=lambda group: -len(group.files))
    if len(named) == 1 and len(named[0].files) * MUCH_LARGER >= len(ordered[0].files):
        return named[0]
    if len(ordered) > 1 and len(ordered[0].files) < MUCH_LARGER * len(ordered[1].files):
        several = ", ".join(f"{group.pattern} ({len(group.files)})" for group in ordered[:5])
        raise Incomplete(
            f"{path.name}: several groups of images may be the projections: {several}",
            "Tell which of them has the role projections.",
            missing=("projections",),
            sources=tuple(Source(group.pattern, (len(group.files),), "images") for group in groups),
        )
    return ordered[0]


def _named(roles: dict[str, str], role: str) -> bool:
    """Whether files are told for a role."""
    return bool(parsed(roles.get(role, ""))[0])


# --- putting together -------------------------------------------------------------------------------


def _scan(
    path: Path,
    folder: Path,
    groups: list[_Group],
    chosen: _Group | None,
    known: Known,
    format: str,  # noqa: A002
) -> CtAcquisition:
    """Return the scan of a group of projections, or of those that are told, and of what lies beside them."""
    roles = told_roles(known, path, ROLES)
    if chosen is None:
        source, frames = parsed(roles["projections"])
        files = _files_of(folder, source, path, groups)
        match = Match("projections", source, (), GIVEN)
    else:
        files, frames = list(chosen.files), None
        match = Match("projections", chosen.pattern, (), _why(chosen, f"most of the images ({len(files)})"))
    known = _among(known, folder, path, groups, files)
    roles = told_roles(known, path, ROLES)
    images = _joined(files)
    matched = [match]
    notes = []
    missing, said = gaps(files)
    if said:
        notes.append(f"{path.name}: {said}. If it was never measured, check the order of the images.")
    if frames is not None:
        chosen_frames = frames_of(frames, int(images.shape[0]), "projections", roles["projections"], path.name)
        images, missing = Taken(images, chosen_frames), ()
    fields: dict[str, Samples | None] = {}
    for role in ("flats", "darks"):
        fields[role] = _fields(role, roles, folder, path, groups, files, images, matched)
    for group in groups:
        if group.role == "180 degrees" and not set(group.files) & set(files):
            matched.append(Match("180 degrees", group.pattern, (len(group.files),), "half a turn later; not used"))
    angles, units = None, "degrees"
    if known.angles is None and "angles" not in roles:
        angles, units = _angles(folder, files, int(images.shape[0]), missing, matched)
    scan = scan_of_stack(
        Stack(
            path=path,
            format=format,
            images=images,
            flats=fields["flats"],
            darks=fields["darks"],
            angle_deg=angles,
            angle_units=units,
            matched=tuple(matched),
            sources=_sources(groups, files, images),
            missing=missing,
        ),
        known,
    )
    return replace(scan, warnings=(*notes, *scan.warnings))


def _among(known: Known, folder: Path, path: Path, groups: list[_Group], files: list[Path]) -> Known:
    """Return what is known, with flats and darks that are told by the name of the projections as frames of these."""
    roles = []
    for role in known.roles:
        name, frames = parsed(role.source)
        some = role.role in ("flats", "darks") and bool(name) and frames is not None
        if some and _files_of(folder, name, path, groups) == files:
            role = msgspec.structs.replace(role, source=role.source[role.source.rfind("#") :])
        roles.append(role)
    return msgspec.structs.replace(known, roles=tuple(roles))


def _why(group: _Group, otherwise: str) -> str:
    return f"as its name says ({len(group.files)} images)" if group.role else otherwise


def _fields(
    role: str,
    roles: dict[str, str],
    folder: Path,
    path: Path,
    groups: list[_Group],
    projections: list[Path],
    images: Samples,
    matched: list[Match],
) -> Samples | None:
    """Return flats or darks, told or by their names."""
    if role in roles:
        source, frames = parsed(roles[role])
        if not source:
            return None
        part = _joined(_files_of(folder, source, path, groups))
        if frames is not None:
            part = Taken(part, frames_of(frames, int(part.shape[0]), role, roles[role], path.name))
        matched.append(Match(role, roles[role], tuple(part.shape), GIVEN))
        return part
    taken = [group for group in groups if group.role == role and not set(group.files) & set(projections)]
    # those of another scan in a folder beside are taken only where there are no others
    taken = [group for group in taken if group.files[0].is_relative_to(projections[0].parent)] or taken
    if not taken:
        return None
    part = _joined([file for group in taken for file in group.files])
    if tuple(part.shape[1:]) != tuple(images.shape[1:]):
        raise BadInput(
            f"{path.name}: {taken[0].pattern} has images of {part.shape[1]} x {part.shape[2]}, the projections"
            f" {images.shape[1]} x {images.shape[2]}",
            f"Tell which images have the role {role}, or that there are none.",
        )
    matched.append(Match(role, ", ".join(g.pattern for g in taken), tuple(part.shape), "as the name says"))
    return part


def images_beside(path: Path) -> Callable[[str], Samples]:
    """Return what opens the images beside a file that a role names, `(image, row, column)`; raises as `read_images`."""
    return partial(_beside, path.parent, path)


def _beside(folder: Path, path: Path, source: str) -> Samples:
    """Return the images of a file or of a pattern of names."""
    return _joined(_files_of(folder, source, path, _groups(folder, deep=False)))


def _files_of(folder: Path, source: str, path: Path, groups: list[_Group]) -> list[Path]:
    """Return the files that a source names, in their order; the name of a group takes no more than the group."""
    if (group := next((group for group in groups if group.pattern == source), None)) is not None:
        return list(group.files)
    try:
        if (folder / source).is_file():
            return [folder / source]
        files = [p for p in folder.glob(source) if p.is_file() and p.suffix.lower() in _SINGLE]
    except (ValueError, NotImplementedError, OSError, IndexError) as error:
        raise BadInput(f"{path.name}: {source!r} is no name of files in its folder ({error})") from error
    if not files:
        raise BadInput(
            f"{path.name}: there is no image file {source!r}",
            "Name a file beside the scan, or a pattern as flats/*.tif.",
        )
    return sorted(files, key=lambda file: natural(file.relative_to(folder).as_posix()))


def _opener(file: Path) -> Callable[[Path], Samples]:
    """Return what opens a file that was recognised by its content, whatever its name ends in."""
    return images_of_edf if is_edf(file) else images_of_fits if is_fits(file) else images_of_tiff


def _open(file: Path) -> Samples:
    opener = _SINGLE.get(file.suffix.lower())
    if opener is None:
        raise BadInput(f"{file.name}: no image file; those that end in {', '.join(_SINGLE)} are read")
    return opener(file)


def _joined(files: list[Path]) -> Samples:
    return images_of(files, _open)


def _angles(
    folder: Path, files: list[Path], views: int, missing: tuple[int, ...], matched: list[Match]
) -> tuple[NDArray[np.float64] | None, str]:
    """Return the angles of a text file that is called after them, and their unit; None without one."""
    places = [folder, *({file.parent for file in files} - {folder})]
    texts = [
        file
        for place in places
        for file in sorted(place.iterdir())
        if file.suffix.lower() in _TEXT and any(word in file.stem.lower() for word in _ANGLE_WORDS)
    ]
    if len(texts) != 1 or not os.access(texts[0], os.R_OK):
        return _header_angles(files, matched)
    angles = angles_of_text(texts[0])
    why = f"as the name says ({angles.size} angles)"
    full, _ = trimmed(angles, views + len(missing))
    if missing and full.size == views + len(missing):
        angles = np.delete(full, list(missing))
        why += f"; without those of {len(missing)} missing images"
    matched.append(Match("angles", texts[0].relative_to(folder).as_posix(), (angles.size,), why))
    return angles, ""


def _header_angles(files: list[Path], matched: list[Match]) -> tuple[NDArray[np.float64] | None, str]:
    """Return the angles in the headers of image files, and their unit; None where they have none."""
    found = []
    for file in files:
        angles = angles_of_edf(file) if file.suffix.lower() == ".edf" else None
        if angles is None:
            return None, ""
        found.append(angles)
    joined = np.concatenate(found)
    if not np.ptp(joined) > 0:
        return None, ""
    matched.append(Match("angles", "motor_pos", (joined.size,), "the rotation motor in the header of each image"))
    return joined, "degrees"


def _sources(groups: list[_Group], files: list[Path], images: Samples) -> tuple[Source, ...]:
    """Return the groups that may have a role; those that are not in use are not opened for their shapes."""
    found = []
    for group in groups:
        shape: tuple[int, ...] = (len(group.files),)
        kind = "images"
        if list(group.files) == files:
            shape, kind = tuple(int(n) for n in images.shape), str(images.dtype)
        found.append(Source(group.pattern, shape, kind))
    return tuple(found)
