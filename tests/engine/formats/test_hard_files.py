"""Files that other programs stumbled over: each is read, or one clear error names it, and the engine lives on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from equipoise_engine import protocol
from equipoise_engine.client import Client, EngineLost, engine_command

OURS = {"read", "BadInput", "Incomplete", "Unsupported", "OutOfMemory"}


def _hard(folder: Path) -> list[Path]:
    texts = ("README", "probe", "COPYING", "PYDICOM")
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(texts))


@pytest.mark.parametrize("kind", ["scan", "reference"])
@pytest.mark.parametrize(("name", "least"), [("hard-tiff", 47), ("hard-dicom", 29), ("hard-hdf5", 71)])
def test_every_hard_file_has_a_clear_end(shared_data: Path, attempts: Any, kind: str, name: str, least: int) -> None:
    files = _hard(shared_data / name)
    assert len(files) >= least
    wrong = {}
    for path in files:
        end = attempts.read(kind, path)
        named = end["kind"] == "read" or path.name in end["said"] or path.stem in end["said"]
        if end["kind"] not in OURS or not named or end["seconds"] > 10:
            wrong[path.name] = end
    assert wrong == {}


def test_images_among_the_hard_files_are_read(shared_data: Path, attempts: Any) -> None:
    images = [p for p in _hard(shared_data / "hard-dicom") if attempts.read("reference", p)["kind"] == "read"]
    assert {p.name for p in images} == {
        *("J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm"),
        *("MR_small_expb.dcm", "MR_small_jp2klossless.dcm", "MR_small_padded.dcm", "image_dfl.dcm", "liver_1frame.dcm"),
    }
    for name in ("rtstruct.dcm", "rtdose.dcm", "waveform_ecg.dcm", "rtplan_truncated.dcm"):
        assert "holds no image" in attempts.read("reference", shared_data / "hard-dicom" / name)["said"]


# --- the engine as it runs --------------------------------------------------------------------------------


class _Engine:
    """A running engine and the ends of its jobs."""

    def __init__(self) -> None:
        self.events: list[tuple[int, Any]] = []
        self._changed = threading.Condition()
        self.client = Client(engine_command(), self._heard, lambda line: None)

    def _heard(self, job: int, event: protocol.Event | EngineLost, pixels: object) -> None:
        with self._changed:
            self.events.append((job, event))
            self._changed.notify_all()

    def end(self, request: protocol.Request) -> protocol.Event:
        """Return the event that ends a request."""
        job = self.client.send(request)

        def ended() -> list[Any]:
            return [e for n, e in self.events if isinstance(e, EngineLost) or (n == job and _is_end(e))]

        with self._changed:
            assert self._changed.wait_for(lambda: bool(ended()), 60), self.events[-5:]
        return ended()[0]


def _is_end(event: object) -> bool:
    return isinstance(event, protocol.Finished | protocol.Failed)


@pytest.fixture
def engine() -> Iterator[_Engine]:
    made = _Engine()
    yield made
    made.client.close()


def test_the_engine_lives_through_hard_files(shared_data: Path, engine: _Engine) -> None:
    names = [
        *("hard-tiff/libtiff_segfault.tif", "hard-tiff/crash-338516dbd2f0e83caddb8ce256c22db3bd6dc40f.tif"),
        *("hard-dicom/MR_truncated.dcm", "hard-dicom/badVR.dcm", "hard-dicom/waveform_ecg.dcm"),
        *("hard-hdf5/cve-2025-6816.h5", "hard-hdf5/cve-2018-17438", "hard-hdf5/24888.nxs"),
    ]
    for name in names:
        for request in (protocol.Open, protocol.OpenReference):
            end = engine.end(request(path=str(shared_data / name)))
            assert isinstance(end, protocol.Failed)
            assert Path(name).name in end.message
    image = shared_data / "hard-dicom" / "MR_small_RLE.dcm"
    assert isinstance(engine.end(protocol.OpenReference(path=str(image))), protocol.Finished)
    scan = shared_data / "derived" / "i13_24737_nxtomo.nxs"
    assert isinstance(engine.end(protocol.Open(path=str(scan))), protocol.Finished)
