"""A process of its own that tries to read files one after another: a crash or a hang costs it, and not the tests.

A line of its input is a kind, "scan" or "reference", a tab and a path; its answer is one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

import numpy as np

from equipoise_engine.acquisition import CtAcquisition
from equipoise_engine.errors import EquipoiseError
from equipoise_engine.formats import read
from equipoise_engine.formats.references.reference import is_reference, read_reference
from equipoise_engine.progress import unwatched

MEMORY_BYTES = 12 << 30
"""Of addresses: who takes what a file merely declares is told."""


def _looked_at(path: Path, kind: str) -> str:
    if kind == "reference":
        is_reference(path)
        volume = read_reference(path, unwatched)
        json.dumps(volume.provenance)
        assert volume.data.dtype == np.float32
        assert volume.data.ndim == 3
        assert all(size > 0 for size in volume.voxel_mm)
        return f"volume {volume.data.shape}"
    is_reference(path)
    scan = read(path)
    # what lies further back in a file is read when it is looked at
    if isinstance(scan, CtAcquisition):
        parts = (scan.projections, scan.flats, scan.darks)
    else:
        parts = (scan.kspace, scan.noise, scan.interference)
    for part in parts:
        if part is not None and part.shape[0]:
            for index in (0, part.shape[0] // 2, part.shape[0] - 1):
                np.asarray(part[index])
    return f"scan {scan.shape}"


def main() -> None:
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        kind, _, path = line.rstrip("\n").partition("\t")
        began = time.monotonic()
        try:
            answer = {"kind": "read", "said": _looked_at(Path(path), kind)}
        except EquipoiseError as error:
            answer = {"kind": type(error).__name__, "said": error.message}
        except BaseException as error:
            last = error.__traceback__
            while last is not None and last.tb_next is not None:
                last = last.tb_next
            place = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last is not None else ""
            answer = {"kind": "escaped", "said": f"{type(error).__name__}: {error} ({place})"}
        answer["seconds"] = round(time.monotonic() - began, 3)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
