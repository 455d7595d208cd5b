"""Scans of Xradia microscopes: a measured one, and compound files written by the words of [MS-CFB]."""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput, EquipoiseError, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.geometry import ConeBeam, ParallelBeam
from equipoise_engine.recipe import Known, Role

SECTOR = 512
SMALLEST = 4096
FREE, END, FAT = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD
VIEWS, ROWS, COLUMNS = 30, 40, 56


# --- compound files ---------------------------------------------------------------------------------


@dataclass
class Entry:
    name: str
    kind: int
    data: bytes = b""
    kids: list[int] = field(default_factory=list)
    right: int = FREE
    start: int = END


def compound(path: Path, streams: dict[str, bytes]) -> None:
    """Write streams by their paths; all are kept in whole sectors, short ones are filled with zeros."""
    entries = [Entry("Root Entry", 5)]
    storages = {"": 0}
    for name, data in streams.items():
        above, _, leaf = name.rpartition("/")
        if above not in storages:
            storages[above] = len(entries)
            entries[0].kids.append(len(entries))
            entries.append(Entry(above, 1))
        entries[storages[above]].kids.append(len(entries))
        entries.append(Entry(leaf, 2, data.ljust(SMALLEST, b"\0")))
    for entry in entries:
        for kid, after in itertools.pairwise(entry.kids):
            entries[kid].right = after
    chain: list[int] = []
    body = b""

    def put(data: bytes) -> int:
        nonlocal body
        first, count = len(chain), -(-len(data) // SECTOR)
        chain.extend([*range(first + 1, first + count), END])
        body += data.ljust(count * SECTOR, b"\0")
        return first

    for entry in entries:
        if entry.kind == 2:
            entry.start = put(entry.data)
    directory = b""
    for entry in entries:
        text = (entry.name + "\0").encode("utf-16-le")
        child = entry.kids[0] if entry.kids else FREE
        directory += text.ljust(64, b"\0") + struct.pack("<HBBIII", len(text), entry.kind, 1, FREE, entry.right, child)
        directory += bytes(36) + struct.pack("<IQ", entry.start, len(entry.data))
    at = put(directory)
    fats = 1
    while fats * (SECTOR // 4) < len(chain) + fats:
        fats += 1
    first = len(chain)
    table = struct.pack(f"<{first + fats}I", *chain, *[FAT] * fats).ljust(fats * SECTOR, b"\xff")
    header = bytes.fromhex("d0cf11e0a1b11ae1") + bytes(16) + struct.pack("<HHHHH6x", 0x3E, 3, 0xFFFE, 9, 6)
    header += struct.pack("<9I", 0, fats, at, 0, SMALLEST, END, 0, END, 0)
    header += struct.pack("<109I", *range(first, first + fats), *[FREE] * (109 - fats))
    path.write_bytes(header + body + table)


def floats(*values: float) -> bytes:
    return np.array(values, dtype="<f4").tobytes()


def whole(value: int) -> bytes:
    return struct.pack("<i", value)


def counts() -> np.ndarray:
    """Return what a camera counts of a block that moves through the views `(view, row, column)`."""
    values = np.full((VIEWS, ROWS, COLUMNS), 9000.0)
    for view in range(VIEWS):
        values[view, 10:20, 15 + view // 3 : 25 + view // 3] = 3000.0
    return values.astype("<u2")


def txrm(path: Path, images: np.ndarray | None = None, **changes: bytes | None) -> Path:
    images = counts() if images is None else images
    parts: dict[str, bytes | None] = {
        "ImageWidth": whole(COLUMNS),
        "ImageHeight": whole(ROWS),
        "NoOfImages": whole(len(images)),
        "ImagesTaken": whole(len(images)),
        "DataType": whole(5),
        "Angles": floats(*np.linspace(-90, 90, len(images))),
        "PixelSize": floats(2.0),
        "XrayGeometry": whole(1),
        "StoRADistance": floats(*[-25.0] * len(images)),
        "DtoRADistance": floats(*[75.0] * len(images)),
    } | changes
    streams = {(name if "/" in name else f"ImageInfo/{name}"): data for name, data in parts.items() if data is not None}
    streams |= {f"ImageData1/Image{i + 1}": image.tobytes() for i, image in enumerate(images)}
    compound(path, streams)
    return path


def ct(path: Path, *roles: tuple[str, str]) -> CtAcquisition:
    scan = read(path, Known(roles=tuple(Role(role=role, source=source) for role, source in roles)))
    assert isinstance(scan, CtAcquisition)
    return scan


# --- scans ------------------------------------------------------------------------------------------


def test_a_measured_scan(shared_data: Path) -> None:
    path = shared_data / "ct-xradia-txrm" / "txrm_test_chip_tomo.txrm"
    scan = ct(path)
    assert (scan.format, scan.shape, scan.state) == ("Zeiss Xradia", (7, 256, 256), DataState.COUNTS)
    assert -np.degrees(scan.geometry.angle_rad) == pytest.approx(np.arange(-45, 46, 15), abs=0.05)
    # images of a zone plate: its beam counts as parallel
    assert isinstance(scan.geometry, ParallelBeam)
    assert (scan.geometry.pixel_mm, scan.geometry.calibrated) == (pytest.approx(0.1558e-3, rel=1e-3), True)
    first = np.asarray(scan.projections[3])
    assert (int(first.min()), int(first.max())) == (int(np.asarray(scan.projections[3:4]).min()), int(first.max()))
    assert np.array_equal(np.asarray(scan.projections[:, 100])[3], first[100])
    assert any(match.role == "shifts" for match in scan.matched)


def test_a_diverging_beam(tmp_path: Path) -> None:
    reference = np.full((ROWS, COLUMNS), 10000.0, "<f4")
    scan = ct(txrm(tmp_path / "s.txrm", **{"ReferenceData/Image": reference.tobytes()}))
    geometry = scan.geometry
    assert isinstance(geometry, ConeBeam)
    assert (geometry.source_axis_mm, geometry.source_detector_mm) == (25.0, 100.0)
    assert (geometry.pixel_mm, geometry.image_pixel_mm) == (pytest.approx(0.008), pytest.approx(0.002))
    assert scan.state is DataState.COUNTS
    assert scan.flats is not None
    assert np.array_equal(np.asarray(scan.flats[0]), reference)
    assert np.array_equal(np.asarray(scan.projections[...]), counts())
    assert ct(tmp_path / "s.txrm", ("flats", "")).flats is None


def test_views_at_a_shifted_stage_are_put_back(tmp_path: Path) -> None:
    across, down = (np.arange(VIEWS) % 5) - 2, (np.arange(VIEWS) % 3) - 1
    still = np.full((VIEWS, ROWS, COLUMNS), 9000, "<u2")
    still[:, 10:20, 15:25] = 3000
    gain = np.random.default_rng(2).uniform(0.5, 1.5, (ROWS, COLUMNS))
    moved = np.stack([np.roll(v, (-int(d), -int(a)), (0, 1)) for v, a, d in zip(still, across, down, strict=True)])
    path = txrm(
        tmp_path / "s.txrm",
        np.rint(moved * gain).astype("<u2"),
        **{
            "ReferenceData/Image": (9000 * gain).astype("<f4").tobytes(),
            "Alignment/X-Shifts": floats(*(across + 0.2)),
            "Alignment/Y-Shifts": floats(*(down - 0.2)),
        },
    )
    scan = ct(path)
    assert scan.state is DataState.TRANSMISSION
    assert scan.flats is None
    assert np.asarray(scan.projections[...]) == pytest.approx(still / 9000.0, abs=2e-3)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"Angles": None}, Unsupported, "no angles"),
        ({"ImageWidth": whole(55)}, BadInput, "ImageData1/Image1 has 4480 bytes"),
        ({"NoOfImages": whole(40), "ImagesTaken": whole(40)}, BadInput, "ImageData1/Image31 is missing"),
        ({"NoOfImages": whole(-3)}, BadInput, "cannot be"),
        ({"DataType": whole(7)}, Unsupported, "type 7"),
        ({"StoRADistance": floats(0.0)}, BadInput, "cannot be"),
        ({"ReferenceData/Image": bytes(5000)}, BadInput, "the reference has 5000 bytes"),
    ],
)
def test_streams_that_do_not_fit_are_named(
    tmp_path: Path, changes: dict[str, bytes | None], error: type[EquipoiseError], said: str
) -> None:
    with pytest.raises(error, match=said):
        read(txrm(tmp_path / "s.txrm", **changes))


def test_a_scan_that_was_stopped(tmp_path: Path) -> None:
    path = txrm(tmp_path / "s.txrm", NoOfImages=whole(500), Angles=floats(*range(500)), DtoRADistance=floats(75.0))
    assert ct(path).shape == (VIEWS, ROWS, COLUMNS)


def test_another_compound_file_is_no_scan(tmp_path: Path) -> None:
    compound(tmp_path / "letter.doc", {"WordDocument": b"text"})
    with pytest.raises(Unsupported, match="OLE compound file"):
        read(tmp_path / "letter.doc")


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.95])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = txrm(tmp_path / "s.txrm")
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(EquipoiseError, match=r"s\.txrm"):
        read(path)


def test_a_measured_scan_that_is_damaged_never_crashes(shared_data: Path, tmp_path: Path) -> None:
    raw = (shared_data / "ct-xradia-txrm" / "txrm_test_chip_tomo.txrm").read_bytes()
    random = np.random.default_rng(4)
    path = tmp_path / "s.txrm"
    places = [*random.integers(0, 512, 25), *random.integers(512, len(raw), 15)]
    for place in places:
        damaged = bytearray(raw)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with contextlib.suppress(EquipoiseError):
            np.asarray(ct(path).projections[0])
    for share in (0.01, 0.4, 0.8, 0.99):
        path.write_bytes(raw[: int(len(raw) * share)])
        with contextlib.suppress(EquipoiseError):
            np.asarray(ct(path).projections[...])
