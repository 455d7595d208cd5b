"""Reader for raw scans of Zeiss Xradia microscopes (.txrm): a compound file with one stream for each value and image.

Angles are degrees, `PixelSize` is the element seen at the object in micrometres, distances from the axis are
millimetres, with either sign. Angles run as in the reader of the Core Imaging Library. Views that were measured at a
shifted stage, to blur rings, are shifted back by whole elements after they were divided by the open beam.

Sources: De Carlo et al. 2014, Scientific data exchange, doi:10.1107/S160057751401604X (names of the streams, in its
reader); J. S. Jorgensen et al. 2021, Core Imaging Library, doi:10.1098/rsta.2020.0192 (units, signs and shifts);
Microsoft, [MS-CFB], Compound File Binary File Format.
"""

from __future__ import annotations

import logging
import struct
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import olefile
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, Match, Samples
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.ct.circular import Circle, rightly_turned
from equipoise_engine.formats.frames import Frames
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.roles import told_roles
from equipoise_engine.formats.stacks.folder import images_beside
from equipoise_engine.formats.stacks.stack import ROLES, Stack, scan_of_stack
from equipoise_engine.geometry import CtGeometry, ParallelBeam
from equipoise_engine.recipe import Known

START = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
KINDS: dict[int, np.dtype[Any]] = {3: np.dtype("u1"), 5: np.dtype("<u2"), 10: np.dtype("<f4")}
"""Types of values by their numbers in the file."""
CONE = 1
"""The number of `XrayGeometry` of a diverging beam."""
MAX_IMAGES = 100_000
IMAGES_IN_FOLDER = 100
# Whatever the library says of a damaged file.
_DAMAGE = (
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    UnicodeError,
    ValueError,
    struct.error,
)

# Defects that do no harm would be lines of their own; the others come as errors.
logging.getLogger("olefile").setLevel(logging.CRITICAL + 1)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn the errors of the library into ours."""
    try:
        yield
    except _DAMAGE as error:
        raise BadInput(
            f"{path.name}: the file of the microscope is damaged ({str(error)[:200] or type(error).__name__})",
            "Copy it from the microscope again.",
        ) from error


class _Streams:
    """The streams of a compound file, read one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        self._lock = threading.Lock()
        with _damage(path):
            self._file = olefile.OleFileIO(str(path))
        weakref.finalize(self, self._file.close)

    def size(self, name: str) -> int:
        """Return the bytes of a stream, -1 where there is none."""
        with _damage(self._path):
            if not self._file.exists(name) or self._file.get_type(name) != olefile.STGTY_STREAM:
                return -1
            return int(self._file.get_size(name))

    def read(self, name: str) -> bytes:
        """Return a stream. Raises BadInput where it is missing or damaged."""
        size = self.size(name)
        if not 0 <= size <= self._size:
            said = "is missing" if size < 0 else f"should have {size} bytes, but the file has {self._size}"
            raise BadInput(f"{self._path.name}: {name} {said}", "Copy the file from the microscope again.")
        with self._lock, _damage(self._path):
            raw = bytes(self._file.openstream(name).read())
        if len(raw) != size:
            raise BadInput(
                f"{self._path.name}: {name} has {len(raw)} bytes of {size}: the file is cut short",
                "Copy it from the microscope again.",
            )
        return raw

    def whole(self, name: str, otherwise: int | None = None) -> int:
        """Return the number in a stream of one."""
        if otherwise is not None and self.size(name) < 0:
            return otherwise
        return int(self.array(name, "<i4", 1)[0])

    def array(self, name: str, kind: str | np.dtype[Any], count: int) -> NDArray[Any]:
        """Return the first numbers of a stream, so many."""
        raw, needed = self.read(name), count * np.dtype(kind).itemsize
        if len(raw) < needed:
            raise BadInput(f"{self._path.name}: {name} has {len(raw)} bytes; {needed} are needed for {count} values")
        return np.frombuffer(raw, dtype=kind, count=count)


def is_txrm(path: Path) -> bool:
    """Whether a file is a compound file with images of an Xradia microscope."""
    with path.open("rb") as stream:
        if stream.read(len(START)) != START:
            return False
    # a file that was cut short may have lost the names of its streams
    return path.suffix.lower() in (".txrm", ".txm", ".xrm") or _has_images(path)


def _has_images(path: Path) -> bool:
    try:
        return _Streams(path).size("ImageInfo/NoOfImages") >= 0
    except BadInput:
        return False


def read_txrm(path: Path, known: Known) -> CtAcquisition:
    """Return the scan of a .txrm file; its images are read when they are asked for.

    Raises
    ------
    BadInput
        The file is damaged, or its streams do not fit together.
    Unsupported
        It holds reconstructed slices, or values of another type.
    OutOfMemory
        One image is larger than the free memory.
    """
    streams = _Streams(path)
    rows, columns = streams.whole("ImageInfo/ImageHeight"), streams.whole("ImageInfo/ImageWidth")
    declared = streams.whole("ImageInfo/NoOfImages")
    count = min(declared, streams.whole("ImageInfo/ImagesTaken", declared))
    if not (0 < rows <= 1 << 20 and 0 < columns <= 1 << 20 and 0 < count <= MAX_IMAGES):
        raise BadInput(f"{path.name}: {count} images of {rows} x {columns} cannot be", "Copy the file again.")
    if streams.size("ImageInfo/Angles") < 0 or path.suffix.lower() == ".txm":
        raise Unsupported(
            f"{path.name}: the microscope says no angles for these images; reconstructed slices (.txm) are no scan",
            "Open the .txrm file of the scan.",
        )
    number = streams.whole("ImageInfo/DataType")
    kind = KINDS.get(number)
    if kind is None:
        raise Unsupported(f"{path.name}: values of type {number}; the types {', '.join(map(str, KINDS))} are read")
    check_memory(2 * rows * columns * kind.itemsize, f"one image of {path.name}")
    names = [f"ImageData{(i - 1) // IMAGES_IN_FOLDER + 1}/Image{i}" for i in range(1, count + 1)]
    for name in names:
        size = streams.size(name)
        if size != rows * columns * kind.itemsize:
            said = "is missing" if size < 0 else f"has {size} bytes"
            raise BadInput(
                f"{path.name}: {name} {said}; {count} images of {rows} x {columns} and type {kind.name} are declared",
                "Copy the file from the microscope again.",
            )
    angles = streams.array("ImageInfo/Angles", "<f4", count).astype(np.float64)

    def load(index: int) -> NDArray[Any]:
        return streams.array(names[index], kind, rows * columns).reshape(rows, columns)

    images: Samples = Frames(load, (count, rows, columns), kind.newbyteorder("="))
    matched = [
        Match("projections", "ImageData1/Image1", (), f"{count} images"),
        Match("angles", "ImageInfo/Angles", (count,), "degrees, as files of this kind have them"),
    ]
    told = told_roles(known, path, ROLES)
    flats = None if "flats" in told else _flats(streams, rows, columns, path)
    # whole numbers are what the camera counted; others were divided by the reference already
    state = "counts" if kind.kind == "u" else ""
    shifts = _shifts(streams, count)
    if shifts is not None and known.state in ("", "transmission"):
        images = _shifted(images, None if flats is None else flats[0], shifts)
        far = int(np.abs(shifts).max())
        matched.append(Match("shifts", "Alignment/X-Shifts", (count,), f"views shifted back by up to {far} elements"))
        if flats is not None:
            matched.append(Match("open beam", "ReferenceData/Image", flats.shape[1:], "views were divided by it"))
            flats, state = None, "transmission"
    elif flats is not None:
        matched.append(Match("flats", "ReferenceData/Image", flats.shape, "the microscope's reference"))
    geometry, circle = _beam(streams, count, rows, columns, path)
    if circle is not None:
        matched.append(circle.match)
    scan = scan_of_stack(
        Stack(
            path=path,
            format="Zeiss Xradia",
            images=images,
            flats=flats,
            angle_deg=-angles,
            geometry=geometry,
            layout="projections",
            state=state,
            matched=tuple(matched),
            beside=images_beside(path),
        ),
        known,
    )
    return rightly_turned(scan, "angles of this microscope run so")


def _flats(streams: _Streams, rows: int, columns: int, path: Path) -> NDArray[Any] | None:
    """Return the reference image `(1, row, column)`, None where there is none."""
    size = streams.size("ReferenceData/Image")
    if size < 0:
        return None
    kinds = {rows * columns * kind.itemsize: kind for kind in KINDS.values()}
    if size not in kinds:
        raise BadInput(
            f"{path.name}: the reference has {size} bytes; an image has {rows} x {columns} values",
            "Tell which images have the role flats, or that there are none.",
        )
    return streams.array("ReferenceData/Image", kinds[size], rows * columns).reshape(1, rows, columns)


def _shifts(streams: _Streams, count: int) -> NDArray[np.int64] | None:
    """Return by how many columns and rows each view must be shifted `(view, 2)`, None where by none."""
    names = ("Alignment/X-Shifts", "Alignment/Y-Shifts")
    if any(streams.size(name) < 4 * count for name in names):
        return None
    shifts = np.stack([streams.array(name, "<f4", count) for name in names], axis=1)
    whole = np.rint(np.clip(np.nan_to_num(shifts), -1e4, 1e4)).astype(np.int64)
    return whole if whole.any() else None


def _shifted(images: Samples, beam: NDArray[Any] | None, shifts: NDArray[np.int64]) -> Samples:
    """Return views divided by the open beam and shifted back."""
    count, rows, columns = (int(n) for n in images.shape)

    def load(index: int) -> NDArray[Any]:
        image = np.asarray(images[index])
        if beam is not None:
            image = np.asarray(image, dtype=np.float32) / np.maximum(np.asarray(beam, dtype=np.float32), 1e-6)
        across, down = (int(n) for n in shifts[index])
        # what comes in from outside is as the edge is
        from_column = np.clip(np.arange(columns) - across, 0, columns - 1)
        from_row = np.clip(np.arange(rows) - down, 0, rows - 1)
        return np.asarray(image[from_row][:, from_column])

    kind = images.dtype if beam is None else np.dtype(np.float32)
    return Frames(load, (count, rows, columns), kind)


def _beam(streams: _Streams, count: int, rows: int, columns: int, path: Path) -> tuple[Any, Circle | None]:
    """Return what makes the geometry from angles, and the lengths of a diverging beam."""
    size = float(streams.array("ImageInfo/PixelSize", "<f4", 1)[0]) if streams.size("ImageInfo/PixelSize") >= 4 else 0.0
    known_size = bool(np.isfinite(size)) and size > 0
    pixel_mm = size * 1e-3 if known_size else 1.0

    def parallel(angle_rad: NDArray[np.float64]) -> CtGeometry:
        return ParallelBeam(angle_rad, pixel_mm, calibrated=known_size)

    if streams.whole("ImageInfo/XrayGeometry", 0) != CONE:
        return parallel, None
    source, detector = (
        abs(float(streams.array(f"ImageInfo/{name}", "<f4", 1)[0])) for name in ("StoRADistance", "DtoRADistance")
    )
    if not (np.isfinite(source) and np.isfinite(detector) and source > 0 and detector > 0 and known_size):
        raise BadInput(
            f"{path.name}: a diverging beam with the source at {source:g} mm and the detector at {detector:g} mm from"
            f" the axis, and elements of {size:g} micrometres, cannot be"
        )
    element = pixel_mm * (source + detector) / source
    circle = Circle(source, source + detector, element, element)
    return lambda angle_rad: circle.geometry(angle_rad, rows, columns, path.name), circle
