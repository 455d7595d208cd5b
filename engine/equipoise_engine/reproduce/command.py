"""The command: plan the parts, run each in a process of its own, and let another one write the report.

Here nothing is computed and nothing heavy is imported; an interrupted run goes on with the parts that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from equipoise_engine.errors import BadInput, EquipoiseError, Unsupported
from equipoise_engine.reproduce.presets import DENOISER, METHODS, MODALITIES, PRESET_NAMES, PRESETS, TITLES, Part, plan

REPORT = "report"
"""The name of the step that writes the report, as a part."""
TABLE, PAGE, RESULTS = "table.md", "report.html", "results.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """What a comparison is to be.

    Parameters
    ----------
    modality, preset
        A key of `PRESETS`.
    out
        Folder that everything goes into.
    device
        "cpu" or "cuda".
    seeds
        Runs of each learned method.
    from_scratch
        Start learned methods from an untrained network.
    jobs
        Parts at a time.
    methods
        Some of those of the modality; empty for all.
    """

    modality: str
    preset: str
    out: Path
    device: str
    seeds: int = 1
    from_scratch: bool = False
    jobs: int = 1
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.modality, self.preset) not in PRESETS:
            raise BadInput(
                f"there is no preset {self.preset!r} for {self.modality!r}", f"Choose one of {', '.join(PRESET_NAMES)}."
            )
        unknown = [method for method in self.methods if method not in METHODS[self.modality]]
        if unknown:
            raise BadInput(
                f"{self.modality} has no method {unknown[0]!r}", f"Choose from {', '.join(METHODS[self.modality])}."
            )
        if self.seeds < 1 or self.jobs < 1:
            raise BadInput(f"{self.seeds} seeds and {self.jobs} jobs: both must be at least 1")
        if self.device not in ("cpu", "cuda"):
            raise BadInput(f"unknown device {self.device!r}", "Choose cpu or cuda.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BadInput("this torch build sees no GPU", "Give --device cpu.")

    @property
    def parts(self) -> tuple[Part, ...]:
        """All of them, in the order in which they are started."""
        preset = PRESETS[self.modality, self.preset]
        methods = [method for method in METHODS[self.modality] if method in (self.methods or METHODS[self.modality])]
        return plan(preset, methods, self.seeds, from_scratch=self.from_scratch, device=self.device)

    def part(self, method: str, seed: int) -> Part:
        """Return one part of it, whether planned or not."""
        return Part(PRESETS[self.modality, self.preset], method, seed, self.from_scratch, self.device)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, all but --json, to its parser."""
    parser.add_argument("modality", choices=MODALITIES)
    parser.add_argument("--preset", default="quick", choices=PRESET_NAMES)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for all results; run again to go on"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each learned method")
    parser.add_argument("--from-scratch", action="store_true", help="start from an untrained network, not a denoiser")
    parser.add_argument("--jobs", type=int, help="parts at a time; default: one a core, or one on a GPU")
    parser.add_argument("--methods", nargs="+", default=(), metavar="METHOD", help="some of the methods; default: all")
    parser.add_argument("--part", choices=(*sorted(TITLES), REPORT), help="run one part alone, here")
    parser.add_argument("--seed", type=int, default=0, help="of the part that is run alone")


def comparison(arguments: argparse.Namespace) -> Comparison:
    """Return what the arguments ask for. Raises BadInput where they do not fit together or the machine."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = arguments.jobs if arguments.jobs is not None else (1 if device == "cuda" else cores)
    return Comparison(
        arguments.modality,
        arguments.preset,
        arguments.out,
        device,
        arguments.seeds,
        arguments.from_scratch,
        jobs,
        tuple(arguments.methods),
    )


def reproduce(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Run what the arguments ask for; return `{"rows": ..., "diagnostics": ...}` for --json, else print the table.

    Progress goes to stderr. A single part has neither.
    """
    wanted = comparison(arguments)
    if arguments.part is not None:
        _run_alone(wanted, arguments.part, arguments.seed)
        return None
    results = run(wanted, _say)
    if arguments.json:
        return results
    sys.stdout.write((wanted.out / TABLE).read_text(encoding="utf-8") + f"\n{wanted.out / PAGE}\n")
    return None


def run(wanted: Comparison, say: Say) -> dict[str, Any]:
    """Run all parts that are not complete, write table, figures and report, and return the results.

    Raises
    ------
    BadInput
        The folder cannot be made.
    EquipoiseError
        A part failed; the report is written of those that did not.
    """
    try:
        (wanted.out / "parts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot make {wanted.out}: {error.strerror}", "Give another folder.") from error
    failed = _run_parts(wanted, say)
    _run_alone(wanted, REPORT, 0)
    if failed:
        raise EquipoiseError(
            f"{', '.join(failed)} failed; the report in {wanted.out} holds the rest",
            "What was wrong stands above. Run the command again to go on.",
        )
    results: dict[str, Any] = json.loads((wanted.out / RESULTS).read_text(encoding="utf-8"))
    return results


def read_result(parts: Path, part: Part) -> dict[str, Any] | None:
    """Return what a part left, None where it is missing or was made with other settings."""
    try:
        content: dict[str, Any] = json.loads((parts / part.name / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if content.get("settings") == part.settings else None


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _run_parts(wanted: Comparison, say: Say) -> list[str]:
    """Run the parts that are missing, several at a time, and return the names of those that failed."""
    waiting: list[Part] = []
    for part in wanted.parts:
        if read_result(wanted.out / "parts", part) is None:
            waiting.append(part)
        else:
            say(f"{part.name}: complete already")
    running: dict[Part, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    total, began = len(waiting), time.monotonic()
    try:
        while waiting or running:
            for part, process in list(running.items()):
                if process.poll() is not None:
                    del running[part]
                    if process.returncode:
                        failed.append(part.name)
                        say(f"{part.name}: {_ending(process.returncode)}")
                    done = total - len(waiting) - len(running)
                    say(f"{done} of {total} parts done ({time.monotonic() - began:.0f} s)")
            blocked = any(part.method == DENOISER for part in (*waiting, *running))
            lost = f"{DENOISER}-0" in failed
            if lost:
                failed += [part.name for part in waiting if part.needs_denoiser]
                waiting = [part for part in waiting if not part.needs_denoiser]
            for part in list(waiting):
                if len(running) < wanted.jobs and not (blocked and part.needs_denoiser):
                    waiting.remove(part)
                    running[part] = _start(wanted, part.method, part.seed)
            time.sleep(0.1)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def _ending(status: int) -> str:
    return f"failed with status {status}" if status > 0 else f"was ended by signal {-status}"


def _run_alone(wanted: Comparison, method: str, seed: int) -> None:
    process = _start(wanted, method, seed)
    try:
        status = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if status:
        raise EquipoiseError(f"{method} {_ending(status)}", "What was wrong stands above.")


def _start(wanted: Comparison, method: str, seed: int) -> subprocess.Popen[bytes]:
    if getattr(sys, "frozen", False):
        raise Unsupported("the comparison needs an installation with Python", "Install the program with pip.")
    command = [sys.executable, "-m", "equipoise_engine.reproduce", wanted.modality, "--preset", wanted.preset]
    command += ["--out", str(wanted.out), "--device", wanted.device, "--seeds", str(wanted.seeds)]
    command += ["--jobs", str(wanted.jobs), *(["--methods", *wanted.methods] if wanted.methods else [])]
    command += ["--part", method, "--seed", str(seed), *(["--from-scratch"] if wanted.from_scratch else [])]
    # the profiler, which measures the memory, tells of its doings otherwise
    environment = dict(os.environ) | {"KINETO_LOG_LEVEL": "99"}
    if wanted.device == "cpu":
        # one thread a part: several parts at a time use the cores better, and the results do not depend on their number
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
