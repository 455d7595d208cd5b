"""Small scans in each format, with parts that a test can change."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

VIEWS, ROWS, COLUMNS = 12, 3, 16


def _frames(count: int, level: int) -> np.ndarray:
    """Return uint16 frames in which every value tells its (view, row, column)."""
    view, row, column = np.meshgrid(range(count), range(ROWS), range(COLUMNS), indexing="ij")
    return (level + 100 * view + 20 * row + column).astype(np.uint16)


Maker = Callable[..., Path]


@pytest.fixture
def dataexchange(tmp_path: Path) -> Maker:
    """Write a Data Exchange file; a keyword replaces a dataset of `exchange`, None leaves it out."""

    def make(units: str | None = "degrees", **changes: Any) -> Path:
        path = tmp_path / "scan.h5"
        parts: dict[str, Any] = {
            "data": _frames(VIEWS, 1000),
            "data_white": _frames(4, 5000),
            "data_dark": _frames(4, 10),
            "theta": np.arange(VIEWS) * 15.0,
        } | changes
        with h5py.File(path, "w") as file:
            for name, value in parts.items():
                if value is not None:
                    file[f"exchange/{name}"] = value
            if units is not None and parts["theta"] is not None:
                file["exchange/theta"].attrs["units"] = units
        return path

    return make


@pytest.fixture
def nxtomo(tmp_path: Path) -> Maker:
    """Write an NXtomo file with darks and flats between projections; keywords replace datasets."""

    def make(**changes: Any) -> Path:
        path = tmp_path / "scan.nxs"
        keys = np.array([2, 2, 1, *[0] * 6, 1, 3, *[0] * 6, 2])
        angle = np.zeros(keys.size)
        angle[keys == 0] = np.arange(12) * 15.0
        parts: dict[str, Any] = {
            "data": _frames(keys.size, 1000),
            "image_key": keys,
            "angle": angle,
        } | changes
        with h5py.File(path, "w") as file:
            entry = file.create_group("measurement/tomography")
            entry.attrs["NX_class"] = "NXsubentry"
            entry["definition"] = "NXtomo"
            for name in ("data", "image_key"):
                if parts[name] is not None:
                    entry[f"instrument/detector/{name}"] = parts[name]
            if parts["angle"] is not None:
                entry["sample/rotation_angle"] = parts["angle"]
                entry["sample/rotation_angle"].attrs["units"] = "degree"
            if "pixel" in parts:
                value, units = parts["pixel"]
                entry["instrument/detector/x_pixel_size"] = value
                entry["instrument/detector/x_pixel_size"].attrs["units"] = units
        return path

    return make


@pytest.fixture
def fastmri(tmp_path: Path) -> Maker:
    """Write a fastMRI-style file; keywords replace or add datasets."""

    def make(**changes: Any) -> Path:
        path = tmp_path / "scan_mri.h5"
        random = np.random.default_rng(3)
        shape = (2, 3, 10, 8)
        kspace = (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)
        with h5py.File(path, "w") as file:
            for name, value in ({"kspace": kspace} | changes).items():
                if value is not None:
                    file[name] = value
        return path

    return make


class Attempts:
    """A process that tries to read files; a new one is started where a file crashes it or takes too long."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, kind: str, path: Path, seconds: float = 20.0) -> dict[str, Any]:
        """Return how it went: its kind is "read", the name of an error of ours, "escaped", "crashed" or "hung"."""
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(f"{kind}\t{path}\n")
        process.stdin.flush()
        line = self._line(process, seconds)
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        hung = process.poll() is None and line is None
        self.close()
        return {"kind": "hung" if hung else "crashed", "said": f"exit status {process.returncode}", "seconds": seconds}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("attempt.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line(self._process, 120) == "ready\n"
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[str], seconds: float) -> str | None:
        """Return the next line, empty at the end, None where there is none in time."""
        found: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: found.append(process.stdout.readline()), daemon=True)
        reader.start()
        reader.join(seconds)
        return found[0] if found else None


@pytest.fixture(scope="module")
def attempts() -> Iterator[Attempts]:
    """Read files in a process of their own."""
    made = Attempts()
    yield made
    made.close()
