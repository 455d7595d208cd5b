"""The command line of the engine: the same jobs as the window, and the server that the window talks to.

Exit status: 0 done, 2 wrong input (one line on stderr), 1 anything else.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import torch

from equipoise_engine import __version__, bench, jobs, protocol
from equipoise_engine.acquisition import Acquisition
from equipoise_engine.arguments import add_recipe_arguments, finite, told_recipe, with_told_steps, write_recipe
from equipoise_engine.device import choose_device, device_name
from equipoise_engine.errors import BadInput, EquipoiseError, Unsupported
from equipoise_engine.facts import scan_facts
from equipoise_engine.formats.references.reference import is_reference, read_reference
from equipoise_engine.groups import GROUPS
from equipoise_engine.methods import METHODS
from equipoise_engine.objective import DATA_TERMS
from equipoise_engine.opening import open_scan
from equipoise_engine.pretrain import PretrainSettings, pretrain
from equipoise_engine.progress import Progress
from equipoise_engine.recipe import name_of
from equipoise_engine.reproduce.command import add_arguments, reproduce
from equipoise_engine.server import failure, serve_standard_streams
from equipoise_engine.volume import Store, Volume
from equipoise_engine.weights import Checkpoint, write_checkpoint

SMALLEST_SIDE, LARGEST_SIDE = 16, 16384
"""Sides of images that may be asked for."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    faulthandler.enable()
    try:
        result: dict[str, Any] | None = arguments.run(arguments)
    except (BadInput, Unsupported) as error:
        _complain(error)
        return 2
    except KeyboardInterrupt:
        _say("stopped")
        return 1
    except Exception as error:
        logging.getLogger(__name__).debug("", exc_info=True)
        if isinstance(error, EquipoiseError):
            _complain(error)
        else:
            _say(f"error: {failure(error).message}")
        return 1
    if result is not None:
        _report(result, as_json=arguments.json)
    return 0


class _Parser(argparse.ArgumentParser):
    """Tells wrong arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="equipoise-engine", description="Reconstruct CT and MRI scans and adapt equilibrium models to them."
    )
    parser.add_argument("--version", action="version", version=f"equipoise-engine {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log what happens")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve a window over stdin and stdout")
    serve.set_defaults(run=_serve, json=False)

    info = commands.add_parser("info", help="say what a scan is")
    info.add_argument("path", type=Path)
    info.add_argument("--save-recipe", type=Path, metavar="FILE", help="write the complete recipe as a JSON file")
    _common(info, _info)

    centring = commands.add_parser("centre", help="estimate the rotation centre of a CT scan by several methods")
    centring.add_argument("path", type=Path)
    centring.add_argument("--between", type=_range, metavar="A:B", help="columns of the file to look between")
    _common(centring, _centre)

    converting = commands.add_parser("convert", help="write a scan in a format that other programs read")
    converting.add_argument("path", type=Path)
    converting.add_argument("out", type=Path, metavar="OUT.nxs|OUT.h5")
    converting.add_argument(
        "--format",
        choices=("nxtomo", "dataexchange", "ismrmrd"),
        help="default: NXtomo for .nxs and Data Exchange for .h5 (CT), ISMRMRD (MRI)",
    )
    _common(converting, _convert)

    reconstruct = commands.add_parser("reconstruct", help="reconstruct a scan")
    reconstruct.add_argument("path", type=Path)
    reconstruct.add_argument("--method", required=True, choices=sorted(METHODS))
    reconstruct.add_argument("--out", required=True, type=Path, help="FILE.tif, FILE.h5, or a folder for DICOM")
    reconstruct.add_argument("--format", choices=("tiff", "dicom", "hdf5"), help="default: by the name of --out")
    reconstruct.add_argument("--slices", type=_slices, metavar="A:B", help="first slice and one past the last")
    reconstruct.add_argument("--model", metavar="FILE", help="weights; default: those that ship with the program")
    reconstruct.add_argument("--iterations", type=int, default=0, help="largest number of iterations")
    reconstruct.add_argument("--tolerance", type=float, default=0.0, help="stop below this fixed-point residual")
    reconstruct.add_argument(
        "--strength",
        type=float,
        default=0.0,
        help="regularisation strength (tv, wavelet, sense; deq: relative to the learned one, where the model has one)",
    )
    reconstruct.add_argument(
        "--weighting",
        default="",
        choices=("ramp", "uniform", "counts"),
        help="how residuals weigh (cgls, sirt, tv of CT): as in FBP (tv only), equally, or by the photons that came"
        " through; default: ramp for tv, else uniform",
    )
    reconstruct.add_argument("--allow-negative", action="store_true", help="let values be negative (sirt, tv of CT)")
    reconstruct.add_argument(
        "--subsets", type=int, default=1, metavar="N", help="subsets of views used in turn (sirt): quicker"
    )
    reconstruct.add_argument(
        "--footprint",
        default="joseph",
        choices=("joseph", "strip"),
        help="how a pixel meets a ray (CT slices): interpolated along lines, or averaged over the detector element",
    )
    reconstruct.add_argument(
        "--coil-maps",
        default="espirit",
        choices=("espirit", "espirit-2", "walsh"),
        help="how coil sensitivities are found (MRI); espirit-2 takes two sets, for an object that wraps around",
    )
    reconstruct.add_argument(
        "--shift",
        type=_shift,
        default=(0.0, 0.0),
        metavar="DOWN:RIGHT",
        help="pixels to move the image by, for a field of view off the centre (MRI); --shift=-3:0.5 where below zero",
    )
    reconstruct.add_argument(
        "--window", default="ram-lak", help="filter window of fbp and fdk: ram-lak, shepp-logan, cosine or hann"
    )
    _undersampling(reconstruct)
    _common(reconstruct, _reconstruct)

    finetune = commands.add_parser("finetune", help="adapt the equilibrium model to scans, without ground truth")
    finetune.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    finetune.add_argument("--out", required=True, type=Path, help="FILE.safetensors")
    finetune.add_argument("--steps", type=int, default=0, help="number of optimiser steps in all")
    finetune.add_argument("--minutes", type=float, default=0.0, help="time limit")
    finetune.add_argument("--seed", type=int, default=0)
    finetune.add_argument("--learning-rate", type=float, default=2e-4)
    finetune.add_argument("--equivariance-weight", type=float, default=1.0)
    finetune.add_argument(
        "--data-term",
        default="r2r",
        choices=[term for term in DATA_TERMS if term != "supervised"],
        help="loss on the measurements",
    )
    finetune.add_argument("--group", default="rotation", help=f"transforms of the equivariance: {', '.join(GROUPS)}")
    finetune.add_argument("--photons", type=float, default=0.0, help="counts of a ray through air (CT): photon noise")
    finetune.add_argument("--readout", type=float, default=0.0, help="electronic noise in counts, beside the photons'")
    finetune.add_argument("--batch", type=int, default=2, help="slices per step")
    finetune.add_argument("--noise", type=float, help="standard deviation of the measured noise; default: estimated")
    finetune.add_argument("--start", metavar="FILE", help="weights to start from")
    finetune.add_argument("--resume", metavar="FILE", help="checkpoint to continue bit for bit")
    _undersampling(finetune)
    _common(finetune, _finetune)

    training = commands.add_parser("pretrain", help="make starting weights from generated objects")
    training.add_argument("modality", choices=("ct", "mri"))
    training.add_argument("--out", required=True, type=Path, help="FILE.safetensors")
    training.add_argument("--config", type=Path, help="JSON file with fields of the pretraining settings")
    _common(training, _pretrain)

    comparing = commands.add_parser("reproduce", help="compare training methods on simulated measurements")
    add_arguments(comparing)
    _common(comparing, reproduce)

    timing = commands.add_parser("bench", help="measure how quick this machine is")
    timing.add_argument("what", choices=("operators",))
    timing.add_argument(
        "--sizes",
        type=_sizes,
        default=bench.SIZES,
        metavar="SIDE/VIEWS,...",
        help="default: " + ",".join(f"{side}/{views}" for side, views in bench.SIZES),
    )
    timing.add_argument(
        "--batches", type=_numbers, default=bench.BATCHES, metavar="N,...", help="slices at once; default: 1,8,32"
    )
    timing.add_argument("--repeats", type=int, default=5, help="calls that the median is of")
    _common(timing, _bench)
    return parser


def _common(parser: argparse.ArgumentParser, run: Any) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    if run in (_info, _reconstruct, _finetune, _centre, _convert):
        add_recipe_arguments(parser)
    parser.set_defaults(run=run)


def _shift(text: str) -> tuple[float, float]:
    down, colon, right = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form DOWN:RIGHT")
    return finite(down), finite(right)


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, like 1,8,32")
    return tuple(int(part) for part in parts)


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    pairs = [part.split("/") for part in text.split(",")]
    if not all(len(pair) == 2 and pair[0].isdigit() and pair[1].isdigit() for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes, like 256/60,512/180")
    return tuple((int(side), int(views)) for side, views in pairs)


def _undersampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--views-every", type=int, default=1, metavar="K", help="use every K-th view (CT)")
    parser.add_argument(
        "--accelerate", type=int, default=1, metavar="R", help="keep one of R lines and the centre (MRI)"
    )


def _slices(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not colon or not first.isdigit() or not last.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form A:B")
    return int(first), int(last)


def _serve(arguments: argparse.Namespace) -> None:
    serve_standard_streams()


def _range(text: str) -> tuple[float, float]:
    first, colon, last = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form A:B")
    return finite(first), finite(last)


def _open(path: Path, arguments: argparse.Namespace) -> Acquisition:
    """Return the scan at `path` by what the command line tells. Raises BadInput for an image volume."""
    recipe = told_recipe(arguments)
    if is_reference(path, recipe.known):
        raise Unsupported(f"{path.name}: holds images, not measurements", "Open it in the window, to compare with.")
    return open_scan(path, recipe, _silent, lambda usual: with_told_steps(arguments, usual))


def _centre(arguments: argparse.Namespace) -> dict[str, Any]:
    scan = _open(arguments.path, arguments)
    found = jobs.centre_found(arguments.path.name, scan, arguments.between, _silent)
    answer = {"centre_px": found.centre_px, "confidence": found.confidence, "text": found.text}
    if found.tilt_deg is not None:
        answer |= {"tilt_deg": found.tilt_deg, "tilt_error_deg": found.tilt_error_deg}
    answer["estimates"] = [msgspec.to_builtins(one) for one in found.estimates]
    return answer


def _convert(arguments: argparse.Namespace) -> dict[str, Any]:
    scan = _open(arguments.path, arguments)
    _check_target(arguments.out, "scan")
    form = jobs.convert(scan, arguments.out, arguments.format, _silent)
    return {"format": form, "shape": list(scan.shape), "file": str(arguments.out)}


def _info(arguments: argparse.Namespace) -> dict[str, Any]:
    if is_reference(arguments.path, told_recipe(arguments).known):
        return _reference(arguments.path)
    scan = _open(arguments.path, arguments)
    facts = scan_facts("scan", scan, choose_device())
    if arguments.save_recipe is not None:
        write_recipe(facts.recipe, arguments.save_recipe)
    return {
        "kind": facts.kind,
        "format": facts.format,
        "shape": list(facts.shape),
        "state": facts.state,
        "geometry": dict(facts.geometry),
        "matched": [msgspec.to_builtins(match) for match in facts.matched],
        "warnings": list(facts.warnings),
        "guessed": list(facts.guessed),
        "sources": [msgspec.to_builtins(source) for source in facts.sources],
        "steps": [name_of(step) for step in facts.recipe.steps or ()],
        "recipe": msgspec.to_builtins(facts.recipe),
        "memory": "" if facts.memory is None else facts.memory.text,
    }


def _reference(path: Path) -> dict[str, Any]:
    volume = read_reference(path, _silent)
    return {
        "kind": "reference",
        "format": str(volume.provenance.get("format", "")),
        "shape": list(volume.data.shape),
        "voxel_mm": list(volume.voxel_mm) if volume.calibrated else None,
    }


def _reconstruct(arguments: argparse.Namespace) -> dict[str, Any]:
    form = arguments.format or _format_of(arguments.out)
    _check_target(arguments.out, form)
    began = time.monotonic()
    scan = _open(arguments.path, arguments)
    settings = protocol.ReconstructSettings(
        method=arguments.method,
        iterations=arguments.iterations,
        tolerance=arguments.tolerance,
        strength=arguments.strength,
        weighting=arguments.weighting,
        nonnegative=not arguments.allow_negative,
        subsets=arguments.subsets,
        footprint=arguments.footprint,
        coil_maps=arguments.coil_maps,
        shift_px=arguments.shift,
        window=arguments.window,
        views_every=arguments.views_every,
        accelerate=arguments.accelerate,
        model=arguments.model,
        slices=arguments.slices,
    )
    store = Store()
    store.put_scan("scan", scan)
    first, last = jobs.slice_range(settings, scan)
    request = protocol.Reconstruct(scan="scan", settings=settings, preview_slice=(first + last) // 2)
    steps: list[protocol.Step] = []
    facts: list[protocol.ResultFacts] = []

    def emit(event: protocol.Event) -> None:
        match event:
            case protocol.Step():
                steps.append(event)
            case protocol.Working() if not arguments.json:
                _say(f"{event.stage} {event.done} of {event.total}")
            case protocol.Reconstructed():
                facts.append(event.facts)
            case protocol.Advice():
                _say(event.text)
            case _:
                pass

    jobs.reconstruct(request, store, emit, _silent, choose_device())
    done = facts[0]
    volume: Volume = store.volume(done.result)
    files = jobs.export_volume(volume, arguments.out, form, _silent)
    return {
        "method": done.method,
        "outcome": done.outcome,
        "iterations": done.iterations,
        "data_residuals": [step.data_residual for step in steps],
        "fixed_point_residuals": [] if done.outcome == "direct" else [step.fixed_point_residual for step in steps],
        "seconds": time.monotonic() - began,
        "files": [str(file) for file in files],
    }


def _format_of(out: Path) -> str:
    match out.suffix.lower():
        case ".tif" | ".tiff":
            return "tiff"
        case ".h5" | ".hdf5" | ".nxs":
            return "hdf5"
        case "":
            return "dicom"
        case other:
            raise BadInput(
                f"{out.name}: no format is known for {other!r}", "Use .tif, .h5 or a folder, or give --format."
            )


def _check_target(out: Path, form: str) -> None:
    """Raise BadInput where the result cannot be written, before anything is computed."""
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise BadInput(f"{out.parent}: there is no such folder that can be written", "Make it, or choose another one.")
    if form == "dicom" and out.is_file():
        raise BadInput(f"{out}: is a file; DICOM files go to a folder", "Give the name of a folder.")
    if form != "dicom" and out.is_dir():
        raise BadInput(f"{out}: is a folder; a file is to be written", "Give a file name.")


def _finetune(arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    scans = tuple(_open(path, arguments) for path in arguments.paths)
    settings = protocol.FineTuneSettings(
        steps=arguments.steps,
        minutes=arguments.minutes,
        learning_rate=arguments.learning_rate,
        data_term=arguments.data_term,
        equivariance_weight=arguments.equivariance_weight,
        group=arguments.group,
        photons=arguments.photons,
        readout=arguments.readout,
        batch=arguments.batch,
        noise=arguments.noise,
        views_every=arguments.views_every,
        accelerate=arguments.accelerate,
        seed=arguments.seed,
        start=arguments.start,
        resume=arguments.resume,
    )

    def emit(event: protocol.Event) -> None:
        if isinstance(event, protocol.Trained) and not arguments.json:
            terms = ", ".join(f"{name} {value:.3g}" for name, value in event.terms)
            _say(f"step {event.step}: {terms} ({event.seconds:.0f} s)")
        if isinstance(event, protocol.Advice):
            _say(event.text)

    last = jobs.adapt(scans, settings, arguments.out, emit, _silent, choose_device())
    return {
        "steps": last.step,
        "losses": last.manifest["losses"],
        "seconds": time.monotonic() - began,
        "file": str(arguments.out),
    }


def _pretrain(arguments: argparse.Namespace) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if arguments.config is not None:
        try:
            values = json.loads(arguments.config.read_text())
        except (OSError, ValueError) as error:
            raise BadInput(f"{arguments.config}: not a readable JSON file: {error}") from error
    if not isinstance(values, dict):
        raise BadInput(f"{arguments.config}: holds no JSON object with fields of the settings")
    _check_target(arguments.out, "weights")
    try:
        settings = msgspec.convert(values | {"modality": arguments.modality}, PretrainSettings)
    except msgspec.ValidationError as error:
        raise BadInput(f"{arguments.config}: {error}") from error
    device = choose_device()
    began = time.monotonic()

    def watch(progress: Progress) -> None:
        frequent = progress.stage == "denoise" and progress.step % 50
        if progress.stage in ("denoise", "train") and not frequent and not arguments.json:
            terms = ", ".join(f"{name} {value:.3g}" for name, value in progress.terms)
            _say(f"{progress.stage} {progress.step} of {progress.total}: {terms} ({time.monotonic() - began:.0f} s)")

    manifest = {
        "program": f"Equipoise {__version__}",
        "torch": torch.__version__,
        "device": device_name(device),
        "licence": "BSD-3-Clause",
    }

    def keep(checkpoint: Checkpoint) -> None:
        write_checkpoint(checkpoint, arguments.out)

    done = pretrain(settings, manifest=manifest, device=device, keep=keep, watch=watch)
    write_checkpoint(done, arguments.out)
    return {
        "steps": len(done.manifest.get("losses", [])),
        "seconds": time.monotonic() - began,
        "file": str(arguments.out),
    }


def _bench(arguments: argparse.Namespace) -> dict[str, Any] | None:
    device = choose_device()
    rows = bench.bench_operators(arguments.sizes, arguments.batches, device, arguments.repeats)
    if arguments.json:
        return {"device": device_name(device), "rows": [dataclasses.asdict(row) for row in rows]}
    for line in bench.table(rows):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return None


def _silent(progress: Progress) -> None:
    return None


def _report(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(_without_nan(result), allow_nan=False) + "\n")
        return
    for key, value in result.items():
        match value:
            case dict() if key == "recipe":
                sys.stdout.write(f"recipe: {json.dumps(value)}\n")
            case dict():
                sys.stdout.write(f"{key}:\n" + "".join(f"  {name}: {text}\n" for name, text in value.items()))
            case [dict(), *_]:
                sys.stdout.write(f"{key}:\n")
                sys.stdout.write("".join(f"  {_line(entry)}\n" for entry in value))
            case [_, _, _, *_] if key in ("data_residuals", "fixed_point_residuals", "losses"):
                sys.stdout.write(f"{key}: {value[0]:.4g} ... {value[-1]:.4g}\n")
            case list():
                sys.stdout.write(f"{key}: {', '.join(str(entry) for entry in value) or 'none'}\n")
            case float():
                sys.stdout.write(f"{key}: {value:.4g}\n")
            case _:
                sys.stdout.write(f"{key}: {value}\n")


def _line(entry: dict[str, Any]) -> str:
    """Return a match, a source or an estimate in one line."""
    if "role" in entry:
        return f"{entry['role']}: {entry['source']} ({entry['reason']})"
    if "method" in entry:
        return f"{entry['method']}: {entry['centre_px']:.2f}, confidence {entry['confidence']:.2f}: {entry['text']}"
    return f"{entry['name']} {tuple(entry['shape'])} {entry['kind']}"


def _without_nan(value: Any) -> Any:
    """Return the same tree with null for numbers that JSON cannot hold, as the residuals of a solve that diverged."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {name: _without_nan(item) for name, item in value.items()}
        case list() | tuple():
            return [_without_nan(item) for item in value]
        case _:
            return value


def _complain(error: EquipoiseError) -> None:
    sentence = error.message if error.message.endswith((".", "!")) or not error.hint else f"{error.message}."
    _say(" ".join(f"error: {sentence} {error.hint}".split()))


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
