"""Reader for folders of Bruker ParaVision: Cartesian raw data (fid) with their parameters (acqp, method).

Images lie with the readout along their columns, as measured; ParaVision itself transposes slices of some orientations
(RECO_transposition). Names of persons in the parameters are read by nothing here.

Sources: Bruker, ParaVision parameters, D02_PvParams; JCAMP-DX, McDonald and Wilks 1988, doi:10.1366/0003702884428734.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.mri.kspace import centre_warnings, line_axis, sampling_warnings
from equipoise_engine.formats.mri.readouts import (
    Encoding,
    Readout,
    chosen_part,
    laid_out,
    part_warnings,
    parts,
    whole_size,
)
from equipoise_engine.formats.roles import told_roles
from equipoise_engine.geometry import Cartesian
from equipoise_engine.recipe import Known

MAX_PARAMETER_BYTES = 16 << 20
MAX_VALUES = 1 << 20
_BLOCK = 1024
_NAME = re.compile(r"##\$([A-Za-z0-9_]+)=(.*)", re.DOTALL)
_REPEATED = re.compile(r"@(\d{1,9})\*\(([^()]{0,64})\)")
_DTYPES = {"GO_32BIT_SGN_INT": "i4", "GO_16BIT_SGN_INT": "i2", "GO_32BIT_FLOAT": "f4"}
# Parts of the names of methods whose readouts are not lines of Cartesian k-space.
_OTHER_METHODS = ("epi", "spiral", "ute", "zte", "radial", "csi", "press", "steam", "singlepulse", "nspect", "spen")


def is_bruker(path: Path) -> bool:
    """Whether a file is one of a folder of ParaVision with raw data."""
    return path.name in ("fid", "acqp", "method", "rawdata.job0") and _complete(path.parent)


def is_bruker_folder(path: Path) -> bool:
    """Whether a folder is a scan of ParaVision, or holds such folders."""
    return bool(_scans(path))


def read_bruker(path: Path, known: Known) -> MriAcquisition:
    """Return the scan in a folder of ParaVision, which itself, a file of which, or whose only parent is named.

    Raises
    ------
    BadInput
        The folder holds several scans, or its files are damaged or do not fit together.
    Unsupported
        The method does not measure lines of Cartesian k-space, or the software is newer.
    OutOfMemory
        One slice, or one three-dimensional scan, does not fit into the memory.
    """
    scans = _scans(path if path.is_dir() else path.parent)
    if len(scans) != 1:
        names = ", ".join(scan.name for scan in scans[:8]) + (", ..." if len(scans) > 8 else "")
        raise BadInput(f"{path}: {len(scans)} scans of ParaVision ({names})", "Open one of these folders.")
    try:
        return _read(scans[0], known)
    except (IndexError, OverflowError, ValueError) as error:
        raise BadInput(
            f"{scans[0].name}: the parameters of ParaVision are damaged ({error})", "Copy the folder again."
        ) from error


def _complete(folder: Path) -> bool:
    return (folder / "acqp").is_file() and any((folder / name).is_file() for name in ("fid", "rawdata.job0"))


def _scans(folder: Path) -> list[Path]:
    """Return the folders of scans: the one itself, or those in it."""
    try:
        if _complete(folder):
            return [folder]
        inner = sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
    except OSError:
        return []
    return [item for item in inner if _complete(item)]


# --- parameters -------------------------------------------------------------------------------------


class _Parameters:
    """The parameters in files of ParaVision, by their names."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self._folder = folder
        self._texts: dict[str, str] = {}
        for name in names:
            if not (folder / name).is_file():
                raise BadInput(f"{folder.name}/{name} is missing", "Copy the folder again, as a whole.")
            size = (folder / name).stat().st_size
            if size > MAX_PARAMETER_BYTES:
                raise BadInput(f"{folder.name}/{name}: {size} bytes; parameters take at most {MAX_PARAMETER_BYTES}")
            text = (folder / name).read_text(encoding="latin-1")
            if not text.startswith("##TITLE="):
                raise BadInput(f"{folder.name}/{name}: no parameters of ParaVision", "Copy the folder again.")
            # A value ends where the next label or a comment begins.
            for part in re.split(r"\n(?=##|\$\$)", text):
                if (found := _NAME.match(part)) is not None:
                    self._texts[found[1]] = found[2].strip()

    def word(self, name: str, otherwise: str = "") -> str:
        """Return a parameter as text, without its size and brackets."""
        text = self._texts.get(name, otherwise)
        return re.sub(r"^\([^)]*\)\s*", "", text).strip().strip("<>")

    def numbers(self, name: str) -> list[float]:
        """Return a parameter as numbers; none where it is missing."""
        text = self.word(name)
        while (found := _REPEATED.search(text)) is not None:
            count = int(found[1])
            if count > MAX_VALUES or len(text) + count * len(found[2]) > MAX_PARAMETER_BYTES:
                raise BadInput(f"{self._folder.name}: {name} repeats a value {found[1]} times")
            text = f"{text[: found.start()]}{(found[2] + ' ') * count}{text[found.end() :]}"
        values = [float(word) for word in text.split()]
        if not np.isfinite(values).all():
            raise BadInput(f"{self._folder.name}: {name} holds values that are not finite")
        return values

    def whole(self, name: str, otherwise: int | None = None, *, least: int = 1) -> int:
        """Return a parameter as one whole number."""
        values = self.numbers(name)
        if not values and otherwise is not None:
            return otherwise
        if not values or values[0] != int(values[0]) or not least <= values[0] < 1 << 31:
            raise BadInput(
                f"{self._folder.name}: {name} is {values[:3] or 'missing'}; a whole number from {least} is needed",
                "Copy the folder again.",
            )
        return int(values[0])


# --- the scan ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Order:
    """The order of readouts in the file, the first running fastest.

    Parameters
    ----------
    echoes
        Lines that one excitation measures of an image, one after the other.
    objects
        Slices and their echo images, as they were measured.
    groups
        Excitations of a slice.
    repetitions
        How often all of it was measured.
    """

    echoes: int
    objects: list[int]
    groups: int
    repetitions: int


def _read(folder: Path, known: Known) -> MriAcquisition:
    told = told_roles(known, folder, ("kspace",))
    parameters = _Parameters(folder, ("acqp", "method"))
    method = parameters.word("Method") or parameters.word("ACQ_method") or "unknown"
    other = next((name for name in _OTHER_METHODS if name in method.lower()), None)
    if other is not None:
        raise Unsupported(
            f"{folder.name}: the method {method} ({other.upper()}) does not measure lines of Cartesian k-space"
        )
    if not (folder / "fid").is_file():
        raise Unsupported(
            f"{folder.name}: raw data of ParaVision 360 (rawdata.job0); those of ParaVision 5 and 6 (fid) are read"
        )
    sizes = parameters.numbers("ACQ_size")
    if len(sizes) not in (2, 3) or any(size != int(size) or not 1 <= size < 1 << 24 for size in sizes):
        raise BadInput(f"{folder.name}: ACQ_size is {sizes}; two or three sizes are read")
    samples, steps = int(sizes[0]) // 2, int(sizes[1])
    partitions = int(sizes[2]) if len(sizes) == 3 else 1
    coils = parameters.whole("PVM_EncNReceivers", 1)
    count = parameters.whole("NI")
    echoes = parameters.whole("ACQ_rare_factor", 1) if parameters.word("ACQ_rare_factor") else 1
    echoes = parameters.whole("ACQ_phase_factor", echoes)
    if (steps * partitions) % echoes:
        raise BadInput(f"{folder.name}: {steps} x {partitions} lines are no multiple of {echoes} of an excitation")
    objects = [int(n) for n in parameters.numbers("ACQ_obj_order")] or list(range(count))
    if sorted(objects) != list(range(count)):
        raise BadInput(f"{folder.name}: ACQ_obj_order {objects[:8]} is no order of {count} objects")
    order = _Order(echoes, objects, steps * partitions // echoes, parameters.whole("NR", 1))
    kind = parameters.word("GO_raw_data_format", "GO_32BIT_SGN_INT")
    if kind not in _DTYPES:
        raise Unsupported(f"{folder.name}/fid: values of the type {kind}; {', '.join(_DTYPES)} are read")
    dtype = np.dtype((">" if parameters.word("BYTORDA") == "big" else "<") + _DTYPES[kind])
    block = 2 * samples * coils * dtype.itemsize
    if parameters.word("GO_block_size") == "Standard_KBlock_Format":
        block = -(-block // _BLOCK) * _BLOCK
    there, needed = (folder / "fid").stat().st_size, block * echoes * count * order.groups * order.repetitions
    if there != needed:
        raise BadInput(
            f"{folder.name}/fid: {there} bytes on disk, but {order.repetitions} x {order.groups * echoes} lines of"
            f" {count} images, {coils} coils and {samples} samples take {needed}",
            "The file is cut short, or the files do not belong together; copy the folder again.",
        )
    images = parameters.whole("ACQ_n_echo_images", 1)
    if count % images:
        raise BadInput(f"{folder.name}: {count} images are no multiple of {images} echoes")
    first, second = (_steps(parameters, folder, name, n) for name, n in (("1", steps), ("2", partitions)))
    counters = {"echo": set(range(images)), "repetition": set(range(order.repetitions))}
    chosen = chosen_part(told.get("kspace", ""), counters, folder)
    readouts = _readouts(order, block, first, second, images, chosen)
    encoding, field, depth = _encoding(parameters, folder, (coils, samples), (first, second), known.keep_oversampling)
    values = np.memmap(folder / "fid", dtype=np.uint8, mode="r")
    shifts = _shifts(parameters, field, depth)

    def load(readout: Readout) -> NDArray[np.complex64]:
        raw = values[readout.at : readout.at + 2 * samples * coils * dtype.itemsize].view(dtype)
        pairs = raw.astype(np.float32).reshape(coils, samples, 2)
        laid = pairs.view(np.complex64)[..., 0]
        along, across = shifts[min(readout.slice, len(shifts) - 1)]
        turn = along * (readout.line - encoding.centre_row)
        turn += across * (readout.partition - encoding.centre_partition) if encoding.partitions > 1 else 0.0
        return laid * np.complex64(np.exp(2j * np.pi * turn)) if turn else laid

    slices = list(range(count // images))
    laid = laid_out(folder, encoding, readouts, slices, load)
    distance = parameters.numbers("PVM_SPackArrSliceDistance")
    slice_mm = parameters.numbers("PVM_SliceThick")[0] if parameters.numbers("PVM_SliceThick") else 1.0
    if distance and len(distance) < len(slices):
        slice_mm = distance[0]
    if encoding.partitions > 1:
        slice_mm = depth / encoding.partitions
        if laid.along_readout:
            field, slice_mm = (field[0], depth), field[1] / encoding.pixels
    matched = (
        Match(
            "k-space",
            "fid",
            laid.kspace.shape,
            f"{method}: {order.repetitions} x {len(first) * len(second)} lines of {count} images, {coils} coils,"
            f" {samples} samples of {dtype.name}",
        ),
        Match("field of view", "method", (), f"{field[0]:g} x {field[1]:g} mm, slices of {slice_mm:g} mm"),
        Match("orientation", "as measured", (), "the readout runs along columns; ParaVision transposes some slices"),
    )
    return MriAcquisition(
        path=folder,
        format="Bruker ParaVision",
        kspace=laid.kspace,
        geometry=Cartesian(
            sampled=laid.sampled,
            field_of_view_mm=field,
            slice_mm=slice_mm,
            phase_axis=line_axis(laid.sampled, 0) if laid.along_readout else 0,
            calibrated=bool(parameters.numbers("PVM_Fov")),
        ),
        matched=matched,
        warnings=(
            *part_warnings(counters, chosen),
            *sampling_warnings(laid.sampled, coils),
            *(centre_warnings(laid.kspace[laid.kspace.shape[0] // 2]) if encoding.partitions == 1 else ()),
        ),
        sources=parts(counters, laid.kspace.shape),
    )


def _steps(parameters: _Parameters, folder: Path, which: str, count: int) -> list[int]:
    """Return the phase-encoding steps in the order in which they were measured; 0 is the centre of k-space."""
    values = parameters.numbers(f"PVM_EncSteps{which}")
    if not values:
        return [n - count // 2 for n in range(count)]
    if len(values) != count or any(value != int(value) or abs(value) > 1 << 20 for value in values):
        raise BadInput(
            f"{folder.name}: PVM_EncSteps{which} has {len(values)} whole steps, {count} were measured",
            "Copy the folder again.",
        )
    return [int(value) for value in values]


def _readouts(
    order: _Order, block: int, first: list[int], second: list[int], images: int, chosen: dict[str, int]
) -> list[Readout]:
    """Return the readouts of the chosen echo and repetition; lines are counted from the lowest step."""
    readouts = []
    low, deep = min(first), min(second)
    start = chosen["repetition"] * order.groups * len(order.objects) * order.echoes
    for group in range(order.groups):
        for place, image in enumerate(order.objects):
            number, echo = divmod(image, images)
            if echo != chosen["echo"]:
                continue
            for echo_line in range(order.echoes):
                partition, line = divmod(group * order.echoes + echo_line, len(first))
                at = start + (group * len(order.objects) + place) * order.echoes + echo_line
                readouts.append(Readout(at * block, number, first[line] - low, second[partition] - deep))
    return readouts


def _encoding(
    parameters: _Parameters,
    folder: Path,
    shape: tuple[int, int],
    steps: tuple[list[int], list[int]],
    keep_oversampling: bool,
) -> tuple[Encoding, tuple[float, float], float]:
    """Return how readouts lie in k-space, the extent `(y, x)` of the image and the depth of a slab, mm."""
    coils, samples = shape
    matrix = [int(n) for n in parameters.numbers("PVM_Matrix")] or [samples, max(steps[0]) - min(steps[0]) + 1]
    extent = parameters.numbers("PVM_Fov") or [float(n) for n in matrix]
    wider = [max(n, 1.0) for n in parameters.numbers("PVM_AntiAlias")]
    if len(matrix) < 2 or len(extent) < 2 or min(matrix) < 1 or max(matrix) > 1 << 16 or min(extent) <= 0:
        raise BadInput(f"{folder.name}: a matrix of {matrix} pixels over {extent} mm", "Copy the folder again.")
    matrix += [1] * (3 - len(matrix))
    extent += [1.0] * (3 - len(extent))
    wider += [1.0] * (3 - len(wider))
    position = parameters.numbers("PVM_EchoPosition")
    centre = round(samples * position[0] / 100) if position and 0 < position[0] < 100 else samples // 2
    columns = max(round(matrix[0] * wider[0]), 2 * max(centre, samples - centre) - (samples % 2 and 1))
    if columns // 2 < centre or columns // 2 - centre + samples > columns:
        columns = 2 * max(centre, samples - centre)
    kept = min(matrix[0], columns) if round(matrix[0] * wider[0]) == columns else round(columns / wider[0])
    encoded = [round(size * more) for size, more in zip(matrix, wider, strict=True)]
    rows, centre_row = (whole_size(encoded[1], -min(steps[0]), max(steps[0]) - min(steps[0])), -min(steps[0]))
    partitions, centre_partition = 1, 0
    if len(steps[1]) > 1:
        centre_partition = -min(steps[1])
        partitions = whole_size(encoded[2], centre_partition, max(steps[1]) - min(steps[1]))
    pixels = columns if keep_oversampling else max(kept, 1)
    encoding = Encoding(
        coils=coils,
        samples=samples,
        centre=centre,
        columns=columns,
        pixels=pixels,
        rows=rows,
        centre_row=centre_row,
        partitions=partitions,
        centre_partition=centre_partition,
        kept_partitions=min(max(round(partitions / wider[2]), 1), partitions),
    )
    field = (extent[1] * wider[1], extent[0] * wider[0] * pixels / columns)
    return encoding, field, extent[2] * wider[2]


def _shifts(parameters: _Parameters, field: tuple[float, float], depth: float) -> list[tuple[float, float]]:
    """Return by which share of the field of view each slice lies off the centre along both phase encodings.

    The readout and the slice are moved by frequencies while measuring; the phase encodings are left to reconstruction.
    """
    along = parameters.numbers("ACQ_phase1_offset") or [0.0]
    across = parameters.numbers("PVM_SPackArrSliceOffset") or [0.0]
    return [(-offset / field[0], across[0] / depth) for offset in along]
