"""The jobs of the engine as plain functions of a request, the store, a way to report and a watch."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from equipoise_engine import __version__, looking, opening, protocol
from equipoise_engine.acquisition import Acquisition, CtAcquisition, MriAcquisition, content_hash
from equipoise_engine.errors import BadInput, Incomplete
from equipoise_engine.facts import scan_facts
from equipoise_engine.finetune import TrainSettings, draw_from, finetune
from equipoise_engine.formats.ct.write_scan import write_dataexchange, write_nxtomo
from equipoise_engine.formats.mri.ismrmrd_writer import write_ismrmrd
from equipoise_engine.formats.references.reference import is_reference, read_reference
from equipoise_engine.formats.results.dicom import write_dicom
from equipoise_engine.formats.results.nexus import write_hdf5
from equipoise_engine.formats.results.tiff import write_tiff
from equipoise_engine.geometry import ConeBeam
from equipoise_engine.identifiability import information
from equipoise_engine.measured import Measured, Undersampling, measure
from equipoise_engine.methods import is_direct, run, with_defaults
from equipoise_engine.model import EquilibriumModel
from equipoise_engine.objective import Objective
from equipoise_engine.opening import OpenScans
from equipoise_engine.operators import norms
from equipoise_engine.planning import BATCH
from equipoise_engine.preprocess.centre import estimates
from equipoise_engine.preprocess.centre.tilt import tilt_of
from equipoise_engine.preprocess.selection import file_column, rows_apart, selected_column
from equipoise_engine.progress import Cancelled, Progress, Watch
from equipoise_engine.volume import Iterates, Store, Volume
from equipoise_engine.weights import Checkpoint, read_checkpoint, write_checkpoint
from equipoise_resources import weights_path

Emit = Callable[[protocol.Event], None]

TRAINING_SLICES = 64
"""Largest number of slices of one scan that training draws from; more are thinned evenly."""


class StopAndKeep(Cancelled):
    """Raised by a watch where the user wants what there is so far."""


def open_scan(request: protocol.Open, store: Store, emit: Emit, watch: Watch, device: torch.device) -> None:
    """Read a scan by its recipe, keep it in the store and emit `Opened`; `Loaded` where it is an image volume.

    `Needed` is emitted where something is missing, before the error goes on.
    """
    path = Path(request.path)
    if is_reference(path, request.recipe.known):
        open_reference(protocol.OpenReference(path=request.path), store, emit, watch)
        return
    key = store.new_id("scan")
    try:
        scan = opening.open_scan(path, request.recipe, watch)
    except Incomplete as error:
        emit(
            protocol.Needed(
                path=request.path,
                recipe=request.recipe,
                missing=error.missing,
                sources=error.sources,
                message=error.message,
            )
        )
        raise
    store.put_scan(key, scan)
    emit(protocol.Opened(facts=scan_facts(key, scan, device)))


def open_reference(request: protocol.OpenReference, store: Store, emit: Emit, watch: Watch) -> None:
    """Read an image volume to compare with, keep it in the store and emit `Loaded`."""
    began = time.monotonic()
    path = Path(request.path)
    volume = read_reference(path, watch)
    name = store.new_id("reference")
    store.put_volume(name, volume)
    for text in volume.provenance.get("notes", ()):
        emit(protocol.Advice(text=f"{path.name}: {text}"))
    low, high = contrast(volume.data)
    emit(
        protocol.Loaded(
            facts=protocol.ResultFacts(
                result=name,
                scan=request.scan,
                method="reference",
                label=f"Reference {path.name}",
                shape=(volume.data.shape[0], volume.data.shape[1], volume.data.shape[2]),
                first_slice=volume.first_slice,
                voxel_mm=volume.voxel_mm,
                calibrated=volume.calibrated,
                unit=unit_of(volume),
                outcome="direct",
                iterations=0,
                data_residual=math.nan,
                seconds=time.monotonic() - began,
                low=low,
                high=high,
            )
        )
    )


def look(
    request: protocol.Look, scans: OpenScans, emit: Callable[[protocol.Event, protocol.Pixels], None], watch: Watch
) -> None:
    """Make a picture of what was measured and emit `Seen` with it."""
    scan = scans.scan(Path(request.path), request.recipe, watch)
    picture = looking.picture_of(scan, request.what, request.index, request.coil, request.stage, watch)
    low, high = contrast(picture.pixels)
    seen = protocol.Seen(
        path=request.path,
        what=request.what,
        index=request.index,
        coil=request.coil,
        stage=request.stage,
        caption=picture.caption,
        count=picture.count,
        low=low,
        high=high,
    )
    emit(seen, picture.pixels)


def find_centre(request: protocol.FindCentre, scans: OpenScans, emit: Emit, watch: Watch) -> None:
    """Estimate the rotation centre by every method that suits the scan and emit `CentreFound`."""
    scan = scans.scan(Path(request.path), request.recipe, watch)
    first, last = request.first_px, request.last_px
    emit(centre_found(request.path, scan, None if first is None or last is None else (first, last), watch))


def centre_found(
    path: str, scan: Acquisition, between: tuple[float, float] | None, watch: Watch
) -> protocol.CentreFound:
    """Return the estimates of the rotation centre of an open scan by every method, in columns of the file.

    Parameters
    ----------
    path
        As the scan is named to the user.
    between
        Columns of the file to look between; None takes what can be told from such views.

    Raises
    ------
    BadInput
        The scan has no rotation axis, the range leaves the detector, or no method can tell it.
    """
    if not isinstance(scan, CtAcquisition):
        raise BadInput(f"{scan.path.name}: an MRI scan has no rotation axis")
    part = scan.recipe.selection
    looked = None if between is None else (selected_column(part, between[0]), selected_column(part, between[1]))
    vote = estimates(scan, looked, watch)
    try:
        tilt, error = tilt_of(scan)
    except BadInput:
        tilt, error = None, 0.0
    return protocol.CentreFound(
        path=path,
        centre_px=file_column(part, vote.centre_px),
        confidence=vote.confidence,
        text=vote.text,
        tilt_deg=tilt,
        tilt_error_deg=error,
        estimates=tuple(
            protocol.CentreEstimate(
                method=one.method,
                centre_px=file_column(part, one.centre_px),
                confidence=one.confidence,
                at_edge=one.at_edge,
                text=one.text,
                positions_px=tuple(file_column(part, position) for position in one.positions_px),
                metric=one.metric,
            )
            for one in vote.estimates
        ),
    )


def convert(scan: Acquisition, out: Path, form: str | None, watch: Watch) -> str:
    """Write what was measured, as selected and not prepared, as "nxtomo", "dataexchange" or "ismrmrd"; return which.

    Parameters
    ----------
    form
        None goes by the kind of scan and the name of `out`.

    Raises
    ------
    BadInput
        The format is not one for such a scan, or the target cannot be written.
    Unsupported
        The format has no place for the scan's geometry.
    """
    mri = isinstance(scan, MriAcquisition)
    if form is None:
        suffix = out.suffix.lower()
        if suffix not in (".nxs", ".h5", ".hdf5", ".mrd"):
            raise BadInput(f"{out.name}: no format is known for {suffix!r}", "Use .nxs or .h5, or give --format.")
        form = "ismrmrd" if mri else "nxtomo" if suffix == ".nxs" else "dataexchange"
    match scan, form:
        case CtAcquisition(), "nxtomo":
            write_nxtomo(scan, out, watch)
        case CtAcquisition(), "dataexchange":
            write_dataexchange(scan, out, watch)
        case MriAcquisition(), "ismrmrd":
            write_ismrmrd(scan, out, watch)
        case _:
            raise BadInput(f"{scan.path.name}: {form} is no format for {'MRI' if mri else 'CT'} scans")
    return form


def reconstruct(request: protocol.Reconstruct, store: Store, emit: Emit, watch: Watch, device: torch.device) -> None:
    """Reconstruct a scan slice by slice and emit `Started`, `Step` and `Reconstructed`.

    The preview slice comes first, alone, and its iterates are kept in the store; the other slices follow in batches.
    Stopped and kept, the best iterate of the preview slice becomes the result.
    """
    scan = store.scan(request.scan)
    name = store.new_id("run")
    began = time.monotonic()
    first, last = slice_range(request.settings, scan)
    preview = min(max(request.preview_slice, first), last - 1)
    method, settings = with_defaults(request.settings, scan)
    direct = is_direct(settings)
    model = load_model(settings, scan, device)
    emit(
        protocol.Started(
            run=name,
            scan=request.scan,
            settings=request.settings,
            preview_slice=preview,
            total=1 if direct else settings.iterations,
        )
    )
    store.put_iterates(name, Iterates(preview))
    newest: np.ndarray[Any, np.dtype[np.float32]] | None = None
    steps, residual = 0, math.nan

    # all slices of a cone beam are made at once
    together = isinstance(scan.geometry, ConeBeam)
    batches = [(first, last)] if together else _batches(first, last, preview)

    def watch_preview(progress: Progress) -> None:
        nonlocal newest, steps, residual
        if progress.iterate is not None and progress.data_residual is not None:
            newest = progress.iterate[preview if together else 0].numpy()
            steps, residual = progress.step, float(progress.data_residual[0])
            store.add_iterate(name, steps, newest)
            change = 0.0 if progress.fixed_point_residual is None else float(progress.fixed_point_residual[0])
            emit(protocol.Step(run=name, step=steps, data_residual=residual, fixed_point_residual=change))
        watch(progress)

    pieces: dict[int, np.ndarray[Any, np.dtype[np.float32]]] = {}
    outcomes: list[str] = []
    residuals: list[float] = []
    try:
        for start, end in batches:
            looked_at = start <= preview < end
            observed = watch_preview if looked_at and not direct else watch
            done = run(scan, slice(start, end), settings, model, device, observed)
            pieces[start] = done.image.numpy()
            if done.advice and not outcomes:
                emit(protocol.Advice(text=done.advice))
            outcomes.append(done.outcome)
            residuals.extend(done.data_residual.tolist())
            if looked_at:
                steps = done.iterations
                if direct:
                    # the one image of a direct method can be looked at while the other slices follow
                    store.add_iterate(name, 1, pieces[start][preview - start])
                    emit(protocol.Step(run=name, step=1, data_residual=residuals[0], fixed_point_residual=0.0))
            finished = sum(len(piece) for piece in pieces.values())
            emit(protocol.Working(stage="slices", done=finished, total=last - first))
            watch(Progress("slices", finished, last - first))
    except StopAndKeep:
        if newest is None and preview in pieces:
            newest, residual = pieces[preview][0], residuals[0]
        if newest is None:
            raise
        pieces, outcomes, residuals = {preview: newest[None]}, ["stopped"], [residual]
        first, last = preview, preview + 1
    data = np.concatenate([pieces[start] for start in sorted(pieces)])
    volume = Volume(
        data=data,
        voxel_mm=voxel_size(scan, data.shape[1:]),
        modality="ct" if isinstance(scan, CtAcquisition) else "mri",
        calibrated=scan.geometry.calibrated,
        first_slice=first,
        provenance={
            "program": f"Equipoise {__version__}",
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(device),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "scan": scan.path.name,
            "scan path": str(scan.path),
            "rotation centre px": getattr(scan.geometry, "centre_px", None),
            "recipe": msgspec.to_builtins(scan.recipe),
            "method": settings.method,
            "settings": msgspec.to_builtins(settings),
            "outcome": _worst(outcomes),
            "iterations": steps,
            "data residual": float(np.mean(residuals)),
        },
    )
    store.put_volume(name, volume)
    low, high = contrast(data)
    emit(
        protocol.Reconstructed(
            facts=protocol.ResultFacts(
                result=name,
                scan=request.scan,
                method=settings.method,
                label=method.label,
                shape=(data.shape[0], data.shape[1], data.shape[2]),
                first_slice=first,
                voxel_mm=volume.voxel_mm,
                calibrated=volume.calibrated,
                unit=unit_of(volume),
                outcome=_worst(outcomes),
                iterations=steps,
                data_residual=float(np.mean(residuals)),
                seconds=time.monotonic() - began,
                low=low,
                high=high,
            )
        )
    )


def fine_tune(request: protocol.FineTune, store: Store, emit: Emit, watch: Watch, device: torch.device) -> None:
    """Adapt the equilibrium model to scans, writing checkpoints to `request.out`; emit `Trained` and `Tuned`."""
    scans = tuple(store.scan(key) for key in request.scans)
    adapt(scans, request.settings, Path(request.out), emit, watch, device)


def adapt(
    scans: tuple[Acquisition, ...],
    settings: protocol.FineTuneSettings,
    out: Path,
    emit: Emit,
    watch: Watch,
    device: torch.device,
) -> Checkpoint:
    """Adapt the equilibrium model to scans of one modality and return the last checkpoint, which lies at `out` too.

    Raises
    ------
    BadInput
        No or mixed scans, an unusable target, weights for another modality, or no limit.
    """
    if not scans:
        raise BadInput("there is no scan to adapt to", "Open a scan first.")
    if len({type(scan) for scan in scans}) > 1:
        raise BadInput("CT and MRI scans cannot be adapted to together", "Choose scans of one kind.")
    if any(isinstance(scan.geometry, ConeBeam) for scan in scans):
        raise BadInput("the equilibrium model works slice by slice and cannot be adapted to a cone-beam scan")
    if not out.parent.is_dir():
        raise BadInput(f"the folder {out.parent} of the weights does not exist", "Choose another folder.")
    if settings.steps <= 0 and not 0 < settings.minutes < math.inf:
        raise BadInput("neither a number of steps nor a time is given", "Give --steps or --minutes.")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise BadInput(f"{out} cannot be written: it is a folder, or lies in a read-only one", "Choose another name.")
    if settings.noise is not None and not 0 <= settings.noise < math.inf:
        raise BadInput(f"a noise of {settings.noise:g} is not a standard deviation", "Give 0 or more.")
    usable = math.isfinite(settings.learning_rate) and math.isfinite(settings.equivariance_weight)
    if settings.batch < 1 or not usable or settings.learning_rate <= 0 or settings.equivariance_weight < 0:
        raise BadInput(
            f"batch {settings.batch}, learning rate {settings.learning_rate:g} and equivariance weight "
            f"{settings.equivariance_weight:g} must be at least 1, above 0 and at least 0"
        )
    start, settings = _start(settings, scans[0])
    objective = Objective(
        data_term=settings.data_term,
        equivariance_weight=settings.equivariance_weight,
        group=settings.group,
        noise_model="poisson" if settings.photons else "white",
        photons=settings.photons,
        readout=settings.readout,
    )
    if objective.data_term == "supervised":
        raise BadInput("a scan has no truth to be supervised by", "Choose another data term.")
    undersampling = Undersampling(settings.views_every, settings.accelerate)
    measured = tuple(_training_part(scan, undersampling, device, watch) for scan in scans)
    if settings.noise is not None:
        measured = tuple(replace(part, noise=settings.noise) for part in measured)
    _advise(objective, measured, emit)
    for text in sorted({part.advice for part in measured} - {""}):
        emit(protocol.Advice(text=text))
    manifest = {
        "program": f"Equipoise {__version__}",
        "torch": torch.__version__,
        "device": str(device),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": msgspec.to_builtins(settings),
        "noise": [part.noise for part in measured],
        "scans": [{"name": scan.path.name, "sha256": content_hash(scan.path)} for scan in scans],
        "start": {k: v for k, v in start.manifest.items() if k in ("pretrain", "scans", "settings", "program")},
    }
    began = time.monotonic()
    stopped = False

    def watch_training(progress: Progress) -> None:
        if progress.stage == "train":
            named = dict(progress.terms)
            forward, backward = named.pop("forward steps"), named.pop("backward steps")
            emit(
                protocol.Trained(
                    step=progress.step,
                    total=progress.total,
                    terms=tuple(named.items()),
                    forward_steps=forward,
                    backward_steps=backward,
                    seconds=time.monotonic() - began,
                )
            )
        watch(progress)

    def keep(checkpoint: Checkpoint) -> None:
        write_checkpoint(checkpoint, out)

    try:
        last = finetune(
            start,
            draw_from(measured, settings.batch),
            TrainSettings(
                steps=settings.steps,
                seconds=settings.minutes * 60,
                learning_rate=settings.learning_rate,
                objective=objective,
                batch=settings.batch,
                seed=settings.seed,
            ),
            manifest=manifest,
            device=device,
            keep=keep,
            watch=watch_training,
        )
    except StopAndKeep:
        last, stopped = read_checkpoint(out), True
    emit(
        protocol.Tuned(
            path=str(out),
            steps=last.step,
            seconds=time.monotonic() - began,
            losses=tuple(last.manifest["losses"]),
            stopped=stopped,
        )
    )
    return last


def export(request: protocol.Export, store: Store, emit: Emit, watch: Watch) -> None:
    """Write a result and emit `Exported`."""
    files = export_volume(store.volume(request.result), Path(request.path), request.format, watch)
    emit(
        protocol.Exported(
            path=request.path,
            files=tuple(str(f) for f in files),
            bytes=sum(f.stat().st_size for f in files),
        )
    )


def export_volume(volume: Volume, path: Path, form: str, watch: Watch) -> list[Path]:
    """Write a volume with the hash of its scan and return the files. Raises BadInput for an unknown format."""
    scan = Path(str(volume.provenance.get("scan path", "")))
    if scan.exists() and "scan sha256" not in volume.provenance:
        volume = replace(volume, provenance=volume.provenance | {"scan sha256": content_hash(scan)})
    match form:
        case "tiff":
            return write_tiff(volume, path, watch)
        case "dicom":
            return write_dicom(volume, path, watch)
        case "hdf5":
            return write_hdf5(volume, path, watch)
        case _:
            raise BadInput(f"unknown export format {form!r}", "Choose tiff, dicom or hdf5.")


def read_slice(request: protocol.ReadSlice, store: Store) -> tuple[protocol.Slice, protocol.Pixels]:
    """Return one slice of a result, or of the iterate nearest to the step asked for."""
    step = None
    if request.step is None:
        volume = store.volume(request.result)
        index = request.index - volume.first_slice
        if not 0 <= index < volume.data.shape[0]:
            raise BadInput(
                f"slice {request.index} is not part of {request.result} "
                f"({volume.first_slice} to {volume.first_slice + volume.data.shape[0] - 1})"
            )
        pixels = volume.data[index]
    else:
        kept = store.iterate_slice(request.result)
        if kept is not None and kept != request.index:
            raise BadInput(f"iterates of {request.result} are kept for slice {kept}, not {request.index}")
        step, pixels = store.iterate(request.result, request.step)
    low, high = contrast(pixels)
    return protocol.Slice(result=request.result, index=request.index, step=step, low=low, high=high), pixels


def contrast(pixels: np.ndarray[Any, np.dtype[np.float32]]) -> tuple[float, float]:
    """Return the 1st and 99.8th percentile of the finite values, from a sample of at most a million."""
    stride = math.ceil(pixels.size / 1_000_000) or 1
    # a stride that shares a factor with the width would see some columns only
    while pixels.ndim and math.gcd(stride, pixels.shape[-1]) > 1:
        stride += 1
    sample = pixels.reshape(-1)[::stride]
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(sample, (1, 99.8)))
    return low, high if high > low else low + 1.0


def slice_range(settings: protocol.ReconstructSettings, scan: Acquisition) -> tuple[int, int]:
    """Return first slice and one past the last. Raises BadInput where they do not lie in the scan."""
    if settings.slices is None:
        return 0, scan.slices
    first, last = settings.slices
    if not 0 <= first < last <= scan.slices:
        raise BadInput(f"slices {first}:{last} do not lie in 0:{scan.slices} of {scan.path.name}")
    return first, last


def load_model(
    settings: protocol.ReconstructSettings, scan: Acquisition, device: torch.device
) -> EquilibriumModel | None:
    """Return the network for method "deq", from the file named or the one that ships; None for other methods."""
    if settings.method != "deq":
        return None
    return _weights(settings.model, scan).model(device).eval()


def voxel_size(scan: Acquisition, shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Return the voxel size `(slice, y, x)` in mm of images `(y, x)` of a scan."""
    match scan:
        case CtAcquisition():
            pixel = scan.geometry.image_pixel_mm
            if isinstance(scan.geometry, ConeBeam):
                return (pixel,) * 3
            return rows_apart(scan) * pixel, pixel, pixel
        case MriAcquisition():
            high, wide = scan.geometry.field_of_view_mm
            return scan.geometry.slice_mm, high / shape[0], wide / shape[1]


def unit_of(volume: Volume) -> str:
    """Return the unit of the values of a volume, for people."""
    if "unit" in volume.provenance:
        return str(volume.provenance["unit"])
    if volume.modality == "mri":
        return "a.u."
    return "1/mm" if volume.calibrated else "1/pixel"


def _weights(path: str | None, scan: Acquisition) -> Checkpoint:
    kind = "ct" if isinstance(scan, CtAcquisition) else "mri"
    checkpoint = read_checkpoint(weights_path(kind) if path is None else Path(path))
    needed = 1 if kind == "ct" else 2
    if checkpoint.architecture.image_channels != needed:
        raise BadInput(f"the weights in {path} are not for {kind.upper()} scans", "Choose others.")
    return checkpoint


def _start(settings: protocol.FineTuneSettings, scan: Acquisition) -> tuple[Checkpoint, protocol.FineTuneSettings]:
    """Return where training starts; a resumed one keeps its own settings but for the limits."""
    if settings.resume is None:
        return replace(_weights(settings.start, scan).without_training_state(), step=0), settings
    checkpoint = _weights(settings.resume, scan)
    if not checkpoint.optimiser:
        raise BadInput(
            f"{settings.resume} holds weights without the state of a training", "Start from it instead of resuming it."
        )
    try:
        own = msgspec.convert(checkpoint.manifest["settings"], protocol.FineTuneSettings)
    except (KeyError, msgspec.ValidationError) as error:
        raise BadInput(
            f"{settings.resume} does not say with which settings it was trained",
            "Start from it instead of resuming it.",
        ) from error
    return checkpoint, msgspec.structs.replace(own, steps=settings.steps, minutes=settings.minutes)


def _advise(objective: Objective, measured: tuple[Measured, ...], emit: Emit) -> None:
    """Tell the user where the group of the objective brings nothing for the geometry of a scan."""
    if objective.equivariance_weight == 0 and objective.data_term != "equivariant-splitting":
        return
    told = set()
    for part in measured:
        first = part.select(torch.zeros(1, dtype=torch.int64))
        found = information(
            first.physics,
            objective.group,
            torch.Generator().manual_seed(0),
            device=first.y.device,
            avoid_step_rad=first.view_step_rad,
            draws=2,
        )
        if not found.useful and found.message not in told:
            told.add(found.message)
            emit(protocol.Advice(text=found.message))


def _training_part(scan: Acquisition, undersampling: Undersampling, device: torch.device, watch: Watch) -> Measured:
    """Prepare the slices of a scan that training draws from: at most TRAINING_SLICES, none that is empty."""
    measured = _evenly_chosen(scan, undersampling, device, watch)
    # nothing can be learnt relative to the size of data that are zero
    filled = torch.nonzero(norms(measured.y) > 0)[:, 0]
    if filled.numel() == 0:
        raise BadInput(f"{scan.path.name}: all slices are zero; there is nothing to adapt to", "Choose another scan.")
    return measured if filled.numel() == measured.y.shape[0] else measured.select(filled)


def _evenly_chosen(scan: Acquisition, undersampling: Undersampling, device: torch.device, watch: Watch) -> Measured:
    stride = max(1, math.ceil(scan.slices / TRAINING_SLICES))
    parts: list[Measured] = []
    indices = range(stride // 2, scan.slices, stride)
    if stride == 1 and isinstance(scan, CtAcquisition):
        return measure(scan, slice(0, scan.slices), device, undersampling)
    for done, index in enumerate(indices, start=1):
        parts.append(measure(scan, slice(index, index + 1), device, undersampling))
        watch(Progress("prepare", done, len(indices)))
    return Measured(
        torch.cat([part.y for part in parts]),
        parts[0].physics.joined([part.physics for part in parts[1:]]),
        parts[0].view_step_rad,
        sum(part.noise for part in parts) / max(1, sum(bool(part.y.any()) for part in parts)),
    )


def _batches(first: int, last: int, preview: int) -> list[tuple[int, int]]:
    """Return the preview slice alone, then the rest in runs of at most BATCH."""
    runs = [(preview, preview + 1)]
    for low, high in ((first, preview), (preview + 1, last)):
        runs += [(start, min(start + BATCH, high)) for start in range(low, high, BATCH)]
    return runs


def _worst(outcomes: list[str]) -> str:
    for outcome in ("diverged", "max_steps", "stopped", "converged"):
        if outcome in outcomes:
            return outcome
    return "direct"
