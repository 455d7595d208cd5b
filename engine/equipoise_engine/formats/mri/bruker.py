"""Reader for folders of Bruker ParaVision: Cartesian raw data (fid) with their parameters (acqp, method).

Images lie with the readout along their columns, as measured; ParaVision itself transposes slices of some orientations
(RECO_transposition). Names of persons in the parameters are read by nothing here.

Source: Bruker, ParaVision parameters, D02_PvParams.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.mri.bruker_parameters import Parameters
from equipoise_engine.formats.mri.kspace import centre_warnings, line_axis, sampling_warnings
from equipoise_engine.formats.mri.parts import chosen_part, part_warnings, parts
from equipoise_engine.formats.mri.readouts import Encoding, Load, Readout, laid_out, whole_size
from equipoise_engine.formats.roles import told_roles
from equipoise_engine.geometry import Cartesian
from equipoise_engine.recipe import Known

MAX_IMAGES = 1 << 16
_BLOCK = 1024
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


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """The readouts of a file and their order, the first of the numbers running fastest.

    Parameters
    ----------
    samples, coils
        Of each readout.
    dtype
        Of their values.
    block
        Bytes from one readout to the next.
    echoes
        Lines that one excitation measures of an image, one after the other.
    objects
        Slices and their echo images, as they were measured.
    images
        Echo images of each slice.
    groups
        Excitations of a slice.
    repetitions
        How often all of it was measured.
    first, second
        Steps of both phase encodings in the order in which they were measured; 0 is the centre of k-space.
    """

    samples: int
    coils: int
    dtype: np.dtype[Any]
    block: int
    echoes: int
    objects: list[int]
    images: int
    groups: int
    repetitions: int
    first: list[int]
    second: list[int]

    @property
    def slices(self) -> int:
        """Number of slices, or slabs."""
        return len(self.objects) // self.images

    def readouts(self, chosen: dict[str, int]) -> list[Readout]:
        """Return the readouts of the chosen echo and repetition; lines are counted from the lowest step."""
        readouts = []
        low, deep = min(self.first), min(self.second)
        start = chosen["repetition"] * self.groups * len(self.objects) * self.echoes
        for group in range(self.groups):
            for place, image in enumerate(self.objects):
                number, echo = divmod(image, self.images)
                if echo != chosen["echo"]:
                    continue
                for echo_line in range(self.echoes):
                    partition, line = divmod(group * self.echoes + echo_line, len(self.first))
                    at = start + (group * len(self.objects) + place) * self.echoes + echo_line
                    steps = self.first[line] - low, self.second[partition] - deep
                    readouts.append(Readout(at * self.block, number, *steps))
        return readouts


def _read(folder: Path, known: Known) -> MriAcquisition:
    told = told_roles(known, folder, ("kspace",))
    parameters = Parameters(folder, ("acqp", "method"))
    method = _method(parameters, folder)
    stored = _stored(parameters, folder)
    counters = {"echo": set(range(stored.images)), "repetition": set(range(stored.repetitions))}
    chosen = chosen_part(told.get("kspace", ""), counters, folder)
    readouts = stored.readouts(chosen)
    encoding, field, depth = _encoding(parameters, folder, stored, known.keep_oversampling)
    load = _loader(folder, stored, encoding, _shifts(parameters, field, depth))
    laid = laid_out(folder, encoding, readouts, range(stored.slices), load)
    slice_mm = _slice_distance(parameters, stored.slices)
    if encoding.partitions > 1:
        slice_mm = depth / encoding.partitions
        if laid.along_readout:
            field, slice_mm = (field[0], depth), field[1] / encoding.pixels
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
        matched=(
            Match("k-space", "fid", laid.kspace.shape, f"{method}: {_said(stored)}"),
            Match("field of view", "method", (), f"{field[0]:g} x {field[1]:g} mm, slices of {slice_mm:g} mm"),
            Match("orientation", "as measured", (), "readouts run along columns; ParaVision transposes some slices"),
        ),
        warnings=(
            *part_warnings(counters, chosen),
            *sampling_warnings(laid.sampled, stored.coils),
            *(centre_warnings(laid.kspace[laid.kspace.shape[0] // 2]) if encoding.partitions == 1 else ()),
        ),
        sources=parts(counters, laid.kspace.shape),
    )


def _method(parameters: Parameters, folder: Path) -> str:
    """Return the name of the method. Raises Unsupported where it does not measure lines of Cartesian k-space."""
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
    return method


def _stored(parameters: Parameters, folder: Path) -> _Stored:
    """Return how readouts lie in the file. Raises BadInput where parameters and file do not fit together."""
    sizes = parameters.numbers("ACQ_size")
    if len(sizes) not in (2, 3) or any(size != int(size) or not 1 <= size < 1 << 24 for size in sizes):
        raise BadInput(f"{folder.name}: ACQ_size is {sizes}; two or three sizes are read")
    samples, steps = int(sizes[0]) // 2, int(sizes[1])
    partitions = int(sizes[2]) if len(sizes) == 3 else 1
    coils, count = parameters.whole("PVM_EncNReceivers", 1), parameters.whole("NI")
    if count > MAX_IMAGES:
        raise BadInput(f"{folder.name}: NI is {count}; at most {MAX_IMAGES} images are read", "Copy the folder again.")
    echoes = parameters.whole("ACQ_rare_factor", 1) if parameters.word("ACQ_rare_factor") else 1
    echoes = parameters.whole("ACQ_phase_factor", echoes)
    if (steps * partitions) % echoes:
        raise BadInput(f"{folder.name}: {steps} x {partitions} lines are no multiple of {echoes} of an excitation")
    objects = [int(n) for n in parameters.numbers("ACQ_obj_order")] or list(range(count))
    if sorted(objects) != list(range(count)):
        raise BadInput(f"{folder.name}: ACQ_obj_order {objects[:8]} is no order of {count} objects")
    dtype = _dtype(parameters, folder)
    block = 2 * samples * coils * dtype.itemsize
    if parameters.word("GO_block_size") == "Standard_KBlock_Format":
        block = -(-block // _BLOCK) * _BLOCK
    images = parameters.whole("ACQ_n_echo_images", 1)
    if count % images:
        raise BadInput(f"{folder.name}: {count} images are no multiple of {images} echoes")
    stored = _Stored(
        samples=samples,
        coils=coils,
        dtype=dtype,
        block=block,
        echoes=echoes,
        objects=objects,
        images=images,
        groups=steps * partitions // echoes,
        repetitions=parameters.whole("NR", 1),
        first=_steps(parameters, folder, "1", steps),
        second=_steps(parameters, folder, "2", partitions),
    )
    there, needed = (folder / "fid").stat().st_size, block * echoes * count * stored.groups * stored.repetitions
    if there != needed:
        raise BadInput(
            f"{folder.name}/fid: {there} bytes on disk, but {_said(stored)} take {needed}",
            "The file is cut short, or the files do not belong together; copy the folder again.",
        )
    return stored


def _dtype(parameters: Parameters, folder: Path) -> np.dtype[Any]:
    kind = parameters.word("GO_raw_data_format", "GO_32BIT_SGN_INT")
    if kind not in _DTYPES:
        raise Unsupported(f"{folder.name}/fid: values of the type {kind}; {', '.join(_DTYPES)} are read")
    return np.dtype((">" if parameters.word("BYTORDA") == "big" else "<") + _DTYPES[kind])


def _said(stored: _Stored) -> str:
    """Say what a file holds."""
    return (
        f"{stored.repetitions} x {stored.groups * stored.echoes} lines of {len(stored.objects)} images, {stored.coils}"
        f" coils, {stored.samples} samples of {stored.dtype.name}"
    )


def _loader(folder: Path, stored: _Stored, encoding: Encoding, shifts: list[tuple[float, float]]) -> Load:
    """Return what reads the samples of a readout, shifted by shares of the field of view of its slice."""
    values = np.memmap(folder / "fid", dtype=np.uint8, mode="r")
    size = 2 * stored.samples * stored.coils * stored.dtype.itemsize

    def load(readout: Readout) -> NDArray[np.complex64]:
        raw = values[readout.at : readout.at + size].view(stored.dtype)
        pairs = raw.astype(np.float32).reshape(stored.coils, stored.samples, 2)
        laid = pairs.view(np.complex64)[..., 0]
        along, across = shifts[min(readout.slice, len(shifts) - 1)]
        turn = along * (readout.line - encoding.centre_row)
        turn += across * (readout.partition - encoding.centre_partition) if encoding.partitions > 1 else 0.0
        return laid * np.complex64(np.exp(2j * np.pi * turn)) if turn else laid

    return load


def _slice_distance(parameters: Parameters, slices: int) -> float:
    """Return the distance of so many slices, mm."""
    distance, thickness = parameters.numbers("PVM_SPackArrSliceDistance"), parameters.numbers("PVM_SliceThick")
    if distance and len(distance) < slices:
        return distance[0]
    return thickness[0] if thickness else 1.0


def _steps(parameters: Parameters, folder: Path, which: str, count: int) -> list[int]:
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


def _encoding(
    parameters: Parameters, folder: Path, stored: _Stored, keep_oversampling: bool
) -> tuple[Encoding, tuple[float, float], float]:
    """Return how readouts lie in k-space, the extent `(y, x)` of the image and the depth of a slab, mm."""
    samples, first, second = stored.samples, stored.first, stored.second
    matrix = [int(n) for n in parameters.numbers("PVM_Matrix")] or [samples, max(first) - min(first) + 1]
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
    rows, centre_row = (whole_size(encoded[1], -min(first), max(first) - min(first)), -min(first))
    partitions, centre_partition = 1, 0
    if len(second) > 1:
        centre_partition = -min(second)
        partitions = whole_size(encoded[2], centre_partition, max(second) - min(second))
    pixels = columns if keep_oversampling else max(kept, 1)
    encoding = Encoding(
        coils=stored.coils,
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


def _shifts(parameters: Parameters, field: tuple[float, float], depth: float) -> list[tuple[float, float]]:
    """Return by which share of the field of view each slice lies off the centre along both phase encodings.

    The readout and the slice are moved by frequencies while measuring; the phase encodings are left to reconstruction.
    """
    along = parameters.numbers("ACQ_phase1_offset") or [0.0]
    across = parameters.numbers("PVM_SPackArrSliceOffset") or [0.0]
    return [(-offset / field[0], across[0] / depth) for offset in along]
