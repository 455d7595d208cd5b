"""An engine of a few lines that speaks the protocol; the name of the file to open says how it misbehaves.

`old` as argument lets it refuse the version, `deaf` leaves questions for its status without an answer.
"""

from __future__ import annotations

import os
import sys
import time
from typing import BinaryIO

import msgspec
import numpy as np

from equipoise_engine import protocol
from equipoise_engine.recipe import NegativeLog, Recipe


def scan_facts(name: str, path: str, recipe: Recipe) -> protocol.ScanFacts:
    return protocol.ScanFacts(
        scan=name,
        path=path,
        kind="ct",
        format="small",
        state="counts",
        shape=(9, 5, 4),
        slices=5,
        geometry=(("Centre", str(recipe.known.centre_px)),),
        matched=(),
        warnings=(),
        methods=("fbp", "tv"),
        recipe=complete(recipe),
        full_shape=(9, 5, 4),
        guessed=("angles",) if "guessed" in path else (),
    )


def complete(recipe: Recipe) -> Recipe:
    """Return a recipe with what was found: a centre, and one usual step."""
    change = msgspec.structs.replace
    if recipe.known.centre_px is None:
        recipe = change(recipe, known=change(recipe.known, centre_px=1.5))
    return recipe if recipe.steps is not None else change(recipe, steps=(NegativeLog(),))


def result_facts(run: str, scan: str) -> protocol.ResultFacts:
    return protocol.ResultFacts(
        result=run,
        scan=scan,
        method="fbp",
        label="FBP",
        shape=(5, 4, 4),
        first_slice=0,
        voxel_mm=(1.0, 1.0, 1.0),
        calibrated=False,
        unit="1/px",
        outcome="direct",
        iterations=1,
        data_residual=0.1,
        seconds=0.1,
        low=0.0,
        high=5.0,
    )


class SmallEngine:
    def __init__(self, events: BinaryIO) -> None:
        self._events = events
        self._count = 0
        self._looks = 0

    def name(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}-{self._count}"

    def answer(self, job: int, request: protocol.Request) -> bool:
        """Answer a request; return whether it is done."""

        def say(event: protocol.Event, pixels: protocol.Pixels | None = None) -> None:
            protocol.write(self._events, job, event, pixels)

        match request:
            case protocol.Hello() if "old" in sys.argv:
                say(protocol.Failed(kind="bad-input", message="the window speaks protocol 1, this engine 0"))
                return False
            case protocol.Hello():
                say(protocol.Ready(version=1, package="0", device="small", python="3", torch="0", threads=1))
            case protocol.Open(path=path, recipe=recipe):
                if "deadly" in path:
                    os._exit(7)
                if "endless" in path:
                    say(protocol.Working(stage="read", done=1, total=9))
                    return False
                if "stuck" in path:
                    time.sleep(600)
                if "needy" in path and recipe.known.angles is None:
                    text = f"{path}: the angles are missing"
                    say(protocol.Needed(path=path, recipe=recipe, missing=("angles",), sources=(), message=text))
                    say(protocol.Failed(kind="bad-input", message=text))
                    return False
                if recipe.selection.bin == 63:
                    say(protocol.Failed(kind="bad-input", message=f"{path} cannot be opened binned by 63"))
                    return False
                say(protocol.Opened(facts=scan_facts(self.name("scan"), path, recipe)))
            case protocol.Look(path=path, recipe=recipe, index=index):
                self._looks += 1
                if "crash" in path:
                    os._exit(8)
                if recipe.selection.bin == 64:
                    say(
                        protocol.Failed(kind="bad-input", message=f"{path}: 4 columns cannot be binned by 64", hint=".")
                    )
                    return False
                # the value tells how far the data have come, and the corner how many were asked for
                pixels = np.full((4, 4), 9 if request.stage is None else request.stage, np.float32)
                pixels[0, 0] = self._looks
                caption = f"{request.what} {index} (row, column), counts"
                say(
                    protocol.Seen(
                        path=path,
                        what=request.what,
                        index=index,
                        coil=request.coil,
                        stage=request.stage,
                        caption=caption,
                        count=9 if request.what == "projection" else 5,
                        low=0.0,
                        high=1.0,
                    ),
                    pixels,
                )
            case protocol.FindCentre(path=path):
                say(protocol.CentreFound(path=path, centre_px=1.25, confidence=0.9, text="agreed", estimates=()))
            case protocol.OpenReference(path=path, scan=scan):
                facts = result_facts(self.name("reference"), scan)
                facts = msgspec.structs.replace(facts, method="reference", label=f"Reference {os.path.basename(path)}")
                say(protocol.Loaded(facts=facts))
            case protocol.Reconstruct(scan=scan, settings=settings, preview_slice=preview):
                run = self.name("run")
                say(protocol.Started(run=run, scan=scan, settings=settings, preview_slice=preview, total=3))
                if settings.method == "tv":
                    os._exit(9)
                say(protocol.Reconstructed(facts=result_facts(run, scan)))
            case protocol.ReadSlice(result=result, index=index):
                pixels = np.full((4, 4), index, np.float32)
                say(protocol.Slice(result=result, index=index, step=None, low=0.0, high=5.0), pixels)
            case protocol.GetStatus() if "deaf" in sys.argv:
                return False
            case protocol.GetStatus():
                say(
                    protocol.Status(
                        device="small", host_used=1, host_total=2, device_used=0, device_total=0, running=None
                    )
                )
            case _:
                pass
        return True

    def serve(self, requests: BinaryIO) -> None:
        while (frame := protocol.read_request(requests)) is not None:
            job, request = frame
            if self.answer(job, request):
                protocol.write(self._events, job, protocol.Finished())
            if isinstance(request, protocol.Quit):
                break


if __name__ == "__main__":
    print("small engine starts", file=sys.stderr, flush=True)
    SmallEngine(sys.stdout.buffer).serve(sys.stdin.buffer)
