"""Parts of a scan as the user names them, and text files of angles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from equipoise_engine.errors import BadInput
from equipoise_engine.formats.angles import angles_of_text
from equipoise_engine.formats.roles import parsed, told_roles
from equipoise_engine.recipe import Known, Role


@pytest.mark.parametrize(
    ("source", "name", "frames"),
    [
        ("", "", None),
        ("/entry/data", "/entry/data", None),
        ("/entry/data#3:10", "/entry/data", slice(3, 10, 1)),
        ("#0:10", "", slice(0, 10, 1)),
        (" flats/*.tif#2:20:3", "flats/*.tif", slice(2, 20, 3)),
        ("raw#:5", "raw", slice(0, 5, 1)),
        ("raw#5:", "raw", slice(5, None, 1)),
        ("scan#3.tif", "scan#3.tif", None),
        ("scan#3.tif#1:2", "scan#3.tif", slice(1, 2, 1)),
    ],
)
def test_a_source_is_a_name_and_frames(source: str, name: str, frames: slice | None) -> None:
    assert parsed(source) == (name, frames)


@pytest.mark.parametrize("source", ["/data#5:5", "/data#7:3", "/data#0:9:0"])
def test_a_source_without_frames_is_refused(source: str) -> None:
    with pytest.raises(BadInput, match="takes no frame"):
        parsed(source)


def test_roles_are_checked() -> None:
    def known(*roles: tuple[str, str]) -> Known:
        return Known(roles=tuple(Role(role=role, source=source) for role, source in roles))

    allowed = ("flats", "darks")
    assert told_roles(known(("flats", " /a "), ("darks", "")), Path("x"), allowed) == {"flats": "/a", "darks": ""}
    with pytest.raises(BadInput, match=r"scan\.h5: no part .* role 'kspace'"):
        told_roles(known(("kspace", "/a")), Path("scan.h5"), allowed)
    with pytest.raises(BadInput, match="given twice"):
        told_roles(known(("flats", "/a"), ("flats", "/b")), Path("scan.h5"), allowed)


@pytest.mark.parametrize(
    ("text", "angles"),
    [
        ("0\n1.5\n-3e0\n", [0, 1.5, -3]),
        ("\ufeff0\r\n0.5\r\n", [0, 0.5]),
        ("# angles\nview angle\n0 0.0\n1 0.9\n2 1.8\n", [0, 0.9, 1.8]),
        ("1, 10, a.tif\n2, 20, b.tif\n3, 30, c.tif\n", [10, 20, 30]),
        ("0.5\t7\n1.0\t7\n", [0.5, 1.0]),
        ("0\n1\n2\n", [0, 1, 2]),
    ],
)
def test_angles_are_read_from_text(tmp_path: Path, text: str, angles: list[float]) -> None:
    (tmp_path / "angles.txt").write_text(text, encoding="utf-8")
    assert angles_of_text(tmp_path / "angles.txt").tolist() == angles


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "no angles"),
        (b"only words\n", "no angles"),
        (b"0\n1\nabc\n", "line 3 is 'abc'"),
        (b"0 1\n1 2 3\n", "line 2 has 3 columns"),
        (b"0.5 0.7\n1.5 2.7\n", "2 of its 2 columns"),
        (b"a 1\n2 b\n", "no column"),
        (b"\x00\x01\x02", "not a text file"),
        (b"\xff\xfe1\n", "not a text file"),
    ],
)
def test_other_texts_are_refused(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "angles.txt").write_bytes(text)
    with pytest.raises(BadInput, match=rf"angles\.txt.*{said}"):
        angles_of_text(tmp_path / "angles.txt")


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file of angles"):
        angles_of_text(tmp_path / "gone.txt")


def test_angles_of_a_measured_scan(shared_data: Path) -> None:
    angles = angles_of_text(shared_data / "ct-i13-24737" / "angles.txt")
    assert angles.size == 111
    assert np.ptp(angles) == pytest.approx(180.0)
