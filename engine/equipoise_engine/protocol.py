"""The messages between the window and the engine, and their framing.

A frame on the pipe is

    4 bytes   magic `EQP1`
    4 bytes   length of the header, unsigned little-endian
    8 bytes   length of the pixels, unsigned little-endian
    header    JSON: `{"id": int, "message": {"type": ..., ...}, "shape": [rows, columns] | null}`
    pixels    float32 little-endian, C order, of that shape

The window chooses the id of a request; every event that belongs to it carries the same id, and each request
is ended by exactly one `Finished` or `Failed`. Id 0 belongs to no request. Unknown fields and types are
refused.
"""

from __future__ import annotations

import math
import struct
from typing import IO

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.recipe import Recipe, Source

VERSION = 1
MAGIC = b"EQP1"
MAX_HEADER = 16 << 20
MAX_PIXELS = 2 << 30
_PREFIX = struct.Struct("<4sIQ")


class ProtocolError(Exception):
    """The other side sent something that is not a frame of this protocol."""


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A value inside a message."""


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag=True):
    """A message; its type name is its tag."""


# --- settings, shared by the window, the command line and the provenance of every result ----------


class ReconstructSettings(_Record, frozen=True):
    """How to reconstruct.

    `method` is one of "fbp" (slices), "fdk" (cone beam), "cgls", "sirt" (CT), "zerofilled", "grappa" (Cartesian MRI),
    "gridding" (other MRI), "sense" (MRI), "tv", "wavelet", "deq" (both).
    """

    method: str
    iterations: int = 0
    """Largest number of iterations; 0 takes the method's own default."""
    tolerance: float = 0.0
    """Stop once the relative fixed-point residual is below; 0 takes the method's own default."""
    strength: float = 0.0
    """Regularisation strength, relative to the image (TV, wavelets, CG-SENSE) or to what was learned (an equilibrium
    model that has one); 0 takes the method's own default."""
    weighting: str = ""
    """How residuals weigh in the fit (CT): "uniform", "counts" (by the photons that came through), for TV also "ramp"
    (as in FBP); empty takes the method's own default."""
    nonnegative: bool = True
    """Forbid negative values (SIRT and TV of CT)."""
    subsets: int = 1
    """Number of subsets of views that SIRT goes through in turn."""
    footprint: str = "joseph"
    """How a pixel meets a ray (CT slices): joseph or strip."""
    coil_maps: str = "espirit"
    """Where coil sensitivities come from (MRI): espirit, walsh, or espirit-2: two sets, for an object that wraps."""
    shift_px: tuple[float, float] = (0.0, 0.0)
    """Pixels (y, x) by which the image is moved, down and to the right (MRI)."""
    window: str = "ram-lak"
    """Filter window of FBP and FDK: ram-lak, shepp-logan, cosine, hann."""
    views_every: int = 1
    """Use every k-th view (CT)."""
    accelerate: int = 1
    """Keep one of R phase-encoding lines, and the centre (MRI)."""
    model: str | None = None
    """Path of the weights, or None for those that ship with the program."""
    slices: tuple[int, int] | None = None
    """First slice and one past the last; None takes all."""


class FineTuneSettings(_Record, frozen=True):
    """How to adapt the equilibrium model to scans."""

    steps: int = 0
    """Number of optimiser steps in all; 0 leaves it to `minutes`."""
    minutes: float = 0.0
    """Time limit; 0 leaves it to `steps`."""
    learning_rate: float = 2e-4
    data_term: str = "r2r"
    """Loss on the measurements: r2r, consistency, sure, unsure, split or equivariant-splitting."""
    equivariance_weight: float = 1.0
    group: str = "rotation"
    """Transforms of the equivariance: rotation, rot90, flip, shift, phase, or several joined by "+"."""
    photons: float = 0.0
    """Counts of a ray through air, for the noise of photons in attenuation (CT); 0 takes white noise."""
    readout: float = 0.0
    """Standard deviation of the electronic noise in counts, beside that of the photons."""
    batch: int = 2
    """Slices per step."""
    noise: float | None = None
    """Standard deviation of the noise in the measurements; None estimates it from them, 0 trusts them."""
    views_every: int = 1
    accelerate: int = 1
    seed: int = 0
    start: str | None = None
    """Weights to start from, or None for those that ship with the program."""
    resume: str | None = None
    """Checkpoint to continue, bit for bit; its own settings win, but for `steps` and `minutes`."""


# --- facts about what the engine holds ------------------------------------------------------------


class MatchFact(_Record, frozen=True):
    """Which part of the file was taken for which role, and why."""

    role: str
    source: str
    shape: tuple[int, ...]
    reason: str


class MemoryFacts(_Record, frozen=True):
    """What a reconstruction of the scan will need, and what there is."""

    host_bytes: int
    """For one batch of slices with an iterative method, and the volume."""
    host_free: int
    device_bytes: int
    """0 where no GPU computes."""
    device_free: int
    disk_bytes: int
    """Of the volume as a float32 TIFF."""
    text: str
    """Says which of them binds, for people."""


class ScanFacts(_Record, frozen=True):
    """An opened scan."""

    scan: str
    """Id in the engine."""
    path: str
    kind: str
    """"ct" or "mri"."""
    format: str
    state: str
    """counts, transmission, attenuation or k-space."""
    shape: tuple[int, ...]
    """CT (view, row, column); MRI (slice, coil, ky, kx)."""
    slices: int
    geometry: tuple[tuple[str, str], ...]
    """Name and value with unit, in reading order."""
    matched: tuple[MatchFact, ...]
    warnings: tuple[str, ...]
    methods: tuple[str, ...]
    """Methods of `ReconstructSettings` that suit this scan, quickest first; the first is the analytic one."""
    recipe: Recipe
    """How it was read, cut and is prepared: complete, with the steps and the rotation centre that were found."""
    full_shape: tuple[int, ...]
    """As `shape`, of the whole scan."""
    guessed: tuple[str, ...] = ()
    """Names of `recipe.Known` that the files do not say and were guessed."""
    sources: tuple[Source, ...] = ()
    """Parts of the files that may be given a role."""
    memory: MemoryFacts | None = None


class ResultFacts(_Record, frozen=True):
    """A finished, or stopped and kept, reconstruction."""

    result: str
    """Id in the engine; the id of the run that made it."""
    scan: str
    method: str
    label: str
    shape: tuple[int, int, int]
    """(slice, y, x)"""
    first_slice: int
    """Index in the scan of the first slice."""
    voxel_mm: tuple[float, float, float]
    """(slice, y, x)"""
    calibrated: bool
    """False where voxel_mm counts pixels."""
    unit: str
    outcome: str
    """converged, max_steps, diverged, direct, or stopped."""
    iterations: int
    data_residual: float
    seconds: float
    low: float
    """1st percentile over the volume."""
    high: float
    """99.8th percentile over the volume."""


# --- requests -------------------------------------------------------------------------------------


class Hello(_Message, frozen=True):
    """First request: the versions must be equal."""

    version: int = VERSION


class Open(_Message, frozen=True):
    """Read a scan. Answered by `Opened`."""

    path: str
    recipe: Recipe = Recipe()
    """What is not told is taken from the files, or found."""


class OpenReference(_Message, frozen=True):
    """Read an image volume to compare with: DICOM, TIFF, NIfTI, NRRD, HDF5. Answered by `Loaded`."""

    path: str
    scan: str = ""
    """The scan that it belongs to, whose slices it is shown with; empty for none."""


class Look(_Message, frozen=True):
    """Ask for a picture of what was measured, on its way to an image. Answered by `Seen`."""

    path: str
    recipe: Recipe
    """As `Opened` told it, or with changes to try out."""
    what: str
    """CT: projection, sinogram, image (the analytic one). MRI: kspace (log magnitude), phase, sampling, image,
    coil-magnitude, coil-phase, coil-eigenvalue, noise (correlation of the coils)."""
    index: int = 0
    """View of a projection, else slice; counted in the selected part."""
    coil: int = 0
    stage: int | None = None
    """Number of preparation steps that are done, 0 for none; None for all."""


class FindCentre(_Message, frozen=True):
    """Estimate the rotation centre by several methods. Answered by `CentreFound`."""

    path: str
    recipe: Recipe
    first_px: float | None = None
    last_px: float | None = None
    """Columns to look between, counted in the file; None looks around the middle."""


class Reconstruct(_Message, frozen=True):
    """Reconstruct a scan. Answered by `Started`, then `Step` after each iterate, then `Reconstructed`."""

    scan: str
    settings: ReconstructSettings
    preview_slice: int
    """Slice (index in the scan) whose iterates are kept for looking at while it runs and afterwards."""


class FineTune(_Message, frozen=True):
    """Adapt the equilibrium model. Answered by `Trained` after each step, then `Tuned`."""

    scans: tuple[str, ...]
    settings: FineTuneSettings
    out: str
    """Path of the weights to write (.safetensors).

    Saved at intervals, on cancel and when the window goes away.
    """


class ReadSlice(_Message, frozen=True):
    """Ask for one slice of a result, or of a run's iterate.

    Answered by `Slice` at once, also while a job runs.
    """

    result: str
    index: int
    """Index in the scan."""
    step: int | None = None
    """Solver step of the iterate to look at; None reads the result."""


class Export(_Message, frozen=True):
    """Write a result to a file or folder. Answered by `Exported`."""

    result: str
    path: str
    format: str
    """"tiff" or "dicom"."""


class Cancel(_Message, frozen=True):
    """Stop a job at its next iterate or step.

    With `keep`, the iterate or the weights so far become its result.
    """

    job: int
    keep: bool = False


class GetStatus(_Message, frozen=True):
    """Ask for `Status`; also the heartbeat."""


class Forget(_Message, frozen=True):
    """Drop a scan or result."""

    key: str


class Quit(_Message, frozen=True):
    """Save what is running and end."""


Request = (
    Hello
    | Open
    | OpenReference
    | Look
    | FindCentre
    | Reconstruct
    | FineTune
    | ReadSlice
    | Export
    | Cancel
    | GetStatus
    | Forget
    | Quit
)


# --- events ---------------------------------------------------------------------------------------


class Ready(_Message, frozen=True):
    """Answer to `Hello`."""

    version: int
    package: str
    device: str
    """Name of the device that computes, for people."""
    python: str
    torch: str
    threads: int


class Status(_Message, frozen=True):
    """Memory and work of the engine."""

    device: str
    host_used: int
    """Resident bytes of the engine."""
    host_total: int
    device_used: int
    """Bytes of device memory in use, 0 without a GPU."""
    device_total: int
    running: int | None
    """Id of the running job."""


class Opened(_Message, frozen=True):
    """A scan is open."""

    facts: ScanFacts


class Needed(_Message, frozen=True):
    """A scan cannot be opened without more knowledge; `Failed` follows, with the same message."""

    path: str
    recipe: Recipe
    """As it was asked for."""
    missing: tuple[str, ...]
    """Names of `recipe.Known`, or of its roles."""
    sources: tuple[Source, ...]
    message: str


class Loaded(_Message, frozen=True):
    """A reference volume is there; its `method` is "reference"."""

    facts: ResultFacts


class Seen(_Message, frozen=True):
    """Pixels of a picture `(row, column)` follow the header; NaN where there is nothing."""

    path: str
    what: str
    index: int
    coil: int
    stage: int | None
    caption: str
    """What it shows, with its axes, as "view 12 (row, column), transmission"."""
    count: int
    """How many pictures of this kind there are: views or slices."""
    low: float
    high: float


class CentreEstimate(_Record, frozen=True):
    """The rotation centre after one method."""

    method: str
    centre_px: float
    """Counted in the file, as `recipe.Known.centre_px`."""
    confidence: float
    """0 to 1; below 0.5 it should be checked."""
    at_edge: bool
    """Whether the best value lies at the edge of what was looked at."""
    text: str
    positions_px: tuple[float, ...] = ()
    """Where the metric was computed."""
    metric: tuple[float, ...] = ()
    """Lower is better."""


class CentreFound(_Message, frozen=True):
    """The estimates of each method, and their vote."""

    path: str
    centre_px: float
    confidence: float
    text: str
    estimates: tuple[CentreEstimate, ...]
    tilt_deg: float | None = None
    """Angle of the rotation axis to the detector's columns, as `recipe.Tilt` counts it; None where it is not known."""
    tilt_error_deg: float = 0.0


class Working(_Message, frozen=True):
    """Progress of a job in units of its own."""

    stage: str
    done: int
    total: int


class Started(_Message, frozen=True):
    """A reconstruction has begun; `run` is the id under which its iterates and its result are kept."""

    run: str
    scan: str
    settings: ReconstructSettings
    preview_slice: int
    total: int
    """Largest number of iterations; 1 for a direct method."""


class Step(_Message, frozen=True):
    """One finished solver iterate on the preview slice, ready to be read with `ReadSlice`."""

    run: str
    step: int
    data_residual: float
    """||A x - y|| / ||y||."""
    fixed_point_residual: float
    """||T(x) - x|| / ||T(x)||."""


class Reconstructed(_Message, frozen=True):
    """A reconstruction is done."""

    facts: ResultFacts


class Trained(_Message, frozen=True):
    """One finished optimiser step."""

    step: int
    total: int
    """0 where only the time is limited."""
    terms: tuple[tuple[str, float], ...]
    """Loss terms by name; the first is the sum."""
    forward_steps: float
    """Mean number of solver steps of the forward solves."""
    backward_steps: float
    seconds: float
    """Since the start of the job."""


class Tuned(_Message, frozen=True):
    """Adapted weights were written."""

    path: str
    steps: int
    seconds: float
    losses: tuple[float, ...]
    stopped: bool
    """Whether it was stopped before its limit."""


class Advice(_Message, frozen=True):
    """Something to know about a job that goes on; no error."""

    text: str


class Slice(_Message, frozen=True):
    """Pixels of one slice `(y, x)` follow the header."""

    result: str
    index: int
    step: int | None
    """The step of the iterate that was found nearest to the one asked for."""
    low: float
    """1st percentile of this slice."""
    high: float
    """99.8th percentile of this slice."""


class Exported(_Message, frozen=True):
    """Files were written, read back and compared."""

    path: str
    files: tuple[str, ...]
    bytes: int


class Finished(_Message, frozen=True):
    """The request is done."""

    seconds: float = 0.0
    cancelled: bool = False


class Failed(_Message, frozen=True):
    """The request is done and did not succeed."""

    kind: str
    """bad-input, unsupported, out-of-memory, numerical-trouble, internal."""
    message: str
    hint: str = ""
    details: str = ""
    """Traceback, for the log and for "copy details"."""


Event = (
    Ready
    | Status
    | Opened
    | Needed
    | Loaded
    | Seen
    | CentreFound
    | Working
    | Started
    | Step
    | Reconstructed
    | Trained
    | Tuned
    | Advice
    | Slice
    | Exported
    | Finished
    | Failed
)

Pixels = NDArray[np.float32]


# --- framing --------------------------------------------------------------------------------------


class _RequestHeader(msgspec.Struct, forbid_unknown_fields=True):
    id: int
    message: Request
    shape: tuple[int, int] | None = None


class _EventHeader(msgspec.Struct, forbid_unknown_fields=True):
    id: int
    message: Event
    shape: tuple[int, int] | None = None


_encoder = msgspec.json.Encoder()
_request_decoder = msgspec.json.Decoder(_RequestHeader)
# not strict: JSON has no number for a residual that is not finite; it travels as "nan", "inf" or "-inf"
_event_decoder = msgspec.json.Decoder(_EventHeader, strict=False)


def write(stream: IO[bytes], job: int, message: Request | Event, pixels: Pixels | None = None) -> None:
    """Write one frame and flush.

    Parameters
    ----------
    pixels
        `(y, x)`, float32.

    Raises
    ------
    ValueError
        The header or the pixels exceed the size limits, or the pixels are not two-dimensional.
    """
    if pixels is not None and pixels.ndim != 2:
        raise ValueError(f"pixels of shape {pixels.shape} are not a slice (y, x)")
    shape = None if pixels is None else (int(pixels.shape[0]), int(pixels.shape[1]))
    header: _RequestHeader | _EventHeader
    if isinstance(message, Request):
        header = _RequestHeader(job, message, shape)
        head = _encoder.encode(msgspec.to_builtins(header, enc_hook=_plain))
    else:
        header = _EventHeader(job, message, shape)
        head = _encoder.encode(_spell_floats(msgspec.to_builtins(header, enc_hook=_plain)))
    body = b"" if pixels is None else np.ascontiguousarray(pixels, dtype="<f4").tobytes()
    if len(head) > MAX_HEADER or len(body) > MAX_PIXELS:
        raise ValueError(f"frame of {len(head)} + {len(body)} bytes exceeds {MAX_HEADER} + {MAX_PIXELS}")
    stream.write(_PREFIX.pack(MAGIC, len(head), len(body)) + head)
    if body:
        stream.write(body)
    stream.flush()


def read_request(stream: IO[bytes]) -> tuple[int, Request] | None:
    """Return id and request of the next frame, or None where the stream has ended.

    Raises
    ------
    ProtocolError
        The bytes are not a frame, too large, cut short, or of an unknown type.
    """
    frame = _read_frame(stream)
    if frame is None:
        return None
    try:
        header = _request_decoder.decode(frame[0])
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"not a request: {error}") from error
    if frame[1]:
        raise ProtocolError("a request carries no pixels")
    return header.id, header.message


def read_event(stream: IO[bytes]) -> tuple[int, Event, Pixels | None] | None:
    """Return id, event and pixels `(y, x)` float32 of the next frame, or None where the stream has ended.

    Raises
    ------
    ProtocolError
        The bytes are not a frame, too large, cut short, or of an unknown type.
    """
    frame = _read_frame(stream)
    if frame is None:
        return None
    try:
        header = _event_decoder.decode(frame[0])
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"not an event: {error}") from error
    if header.shape is None:
        if frame[1]:
            raise ProtocolError(f"{len(frame[1])} bytes of pixels without a shape")
        return header.id, header.message, None
    rows, columns = header.shape
    if rows < 0 or columns < 0 or rows * columns * 4 != len(frame[1]):
        raise ProtocolError(f"{len(frame[1])} bytes of pixels for a slice of {rows} x {columns}")
    return header.id, header.message, np.frombuffer(frame[1], dtype="<f4").reshape(rows, columns)


def _plain(value: object) -> object:
    """Return the plain value of what only looks plain: numpy's numbers and torch's version text."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _spell_floats(value: object) -> object:
    """Return the same tree of plain values, floats that are not finite as text; msgspec would write null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {name: _spell_floats(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spell_floats(item) for item in value]
    return value


def _read_frame(stream: IO[bytes]) -> tuple[bytes, bytes] | None:
    prefix = _read_exactly(stream, _PREFIX.size, may_end=True)
    if not prefix:
        return None
    magic, head_size, body_size = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise ProtocolError(f"frame starts with {magic!r} instead of {MAGIC!r}")
    if head_size > MAX_HEADER or body_size > MAX_PIXELS:
        raise ProtocolError(f"frame of {head_size} + {body_size} bytes exceeds {MAX_HEADER} + {MAX_PIXELS}")
    return _read_exactly(stream, head_size), _read_exactly(stream, body_size)


def _read_exactly(stream: IO[bytes], size: int, *, may_end: bool = False) -> bytes:
    parts: list[bytes] = []
    missing = size
    while missing:
        part = stream.read(missing)
        if not part:
            if may_end and missing == size:
                return b""
            raise ProtocolError(f"stream ended {missing} bytes before the end of a frame")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
