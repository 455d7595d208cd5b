"""Grey images in TIFF files of every kind that tifffile writes, and files that are damaged or something else."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from equipoise_engine.errors import BadInput, EquipoiseError, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.formats.stacks.tiffstack import images_of_tiff


def _images(kind: str = "<u2", count: int = 9) -> np.ndarray:
    values = np.random.default_rng(5).integers(0, 100, (count, 12, 20))
    return (values - 50 if np.dtype(kind).kind in "if" else values).astype(kind)


@pytest.mark.parametrize(
    "ways",
    [
        {},
        {"bigtiff": True},
        {"imagej": True},
        {"rowsperstrip": 5},
        {"tile": (16, 16)},
        {"compression": "zlib"},
        {"compression": "zlib", "tile": (16, 16)},
        {"compression": "lzma"},
        {"metadata": None},
        {"imagej": True, "truncate": True},
        {"truncate": True},
    ],
    ids=str,
)
def test_images_come_back_as_they_were_written(tmp_path: Path, ways: dict[str, object]) -> None:
    images = _images()
    tifffile.imwrite(tmp_path / "s.tif", images, photometric="minisblack", **ways)
    found = images_of_tiff(tmp_path / "s.tif")
    assert found.shape == images.shape
    assert np.array_equal(np.asarray(found[...]), images)
    assert np.array_equal(np.asarray(found[:, 3, 4:9]), images[:, 3, 4:9])
    assert np.array_equal(np.asarray(found[-1]), images[-1])
    assert np.array_equal(np.asarray(found[np.array([4, 1]), 2:5]), images[[4, 1], 2:5])


@pytest.mark.parametrize(
    ("compression", "predictor", "kinds"),
    [
        *((name, 1, "u1 u2 i4 f4") for name in ("tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "raw")),
        *((name, 2, "u1 u2 i4 f4") for name in ("tiff_lzw", "tiff_deflate")),
        *((name, 3, "f4") for name in ("tiff_lzw", "tiff_deflate")),
    ],
)
def test_what_libtiff_compressed_comes_back(tmp_path: Path, compression: str, predictor: int, kinds: str) -> None:
    for kind in kinds.split():
        _check_libtiff(tmp_path / "s.tif", compression, predictor, kind)


def _check_libtiff(path: Path, compression: str, predictor: int, kind: str) -> None:
    random = np.random.default_rng(3)
    rows, columns = 70, 211
    smooth = np.add.outer(np.arange(rows), np.arange(columns)) % 200
    # long repeats, noise, and more strings than a table holds
    images = np.stack([smooth, random.integers(0, 250, (rows, columns)), np.zeros((rows, columns))]).astype(kind)
    pictures = [Image.fromarray(image) for image in images]
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        compression=compression,
        tiffinfo={317: predictor} if predictor != 1 else {},
    )
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].predictor == predictor
    assert np.array_equal(np.asarray(images_of_tiff(path)[...]), images)


@pytest.mark.parametrize("bits", [2, 4, 10, 12, 14])
def test_packed_bits_are_unpacked(tmp_path: Path, bits: int) -> None:
    values = np.random.default_rng(2).integers(0, 1 << bits, (12, 21))
    each = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    packed = np.packbits(each.reshape(12, -1).astype(np.uint8), axis=1)
    # a file of bytes that are as many, whose description is then made that of the packed values
    tifffile.imwrite(tmp_path / "s.tif", packed, photometric="minisblack", metadata=None, compression="zlib")
    with tifffile.TiffFile(tmp_path / "s.tif", mode="r+b") as file:
        file.pages[0].tags["BitsPerSample"].overwrite(bits)
        file.pages[0].tags["ImageWidth"].overwrite(21)
    assert np.array_equal(np.asarray(images_of_tiff(tmp_path / "s.tif")[0]), values)


@pytest.mark.parametrize("kind", ["<i1", "<i2", "<u4", "<f4", "<f8", "<f2"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_every_type_of_number(tmp_path: Path, kind: str, byteorder: str) -> None:
    images = _images(kind)
    tifffile.imwrite(tmp_path / "s.tif", images, photometric="minisblack", byteorder=byteorder)
    found = images_of_tiff(tmp_path / "s.tif")
    assert found.dtype.newbyteorder("=") == images.dtype
    assert np.array_equal(np.asarray(found[...]), images)


def test_pages_written_one_by_one(tmp_path: Path) -> None:
    images = _images()
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        for image in images:
            writer.write(image, contiguous=False, description="page" * int(image[0, 0] % 5))
    assert np.array_equal(np.asarray(images_of_tiff(tmp_path / "s.tif")[...]), images)


def test_twelve_bits_are_unpacked(shared_data: Path) -> None:
    folder = shared_data / "hard-tiff"
    packed = np.asarray(images_of_tiff(folder / "12bit.cropped.tif")[0])
    assert np.array_equal(packed, np.asarray(images_of_tiff(folder / "12in16bit.tif")[0]))


def test_small_copies_are_left_out(tmp_path: Path) -> None:
    images = _images()
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        writer.write(images, photometric="minisblack")
        writer.write(images[0, ::2, ::2], subfiletype=1)
    assert images_of_tiff(tmp_path / "s.tif").shape == images.shape


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        writer.write(np.zeros((12, 20), np.uint16))
        writer.write(np.zeros((12, 24), np.uint16))
    with pytest.raises(BadInput, match=r"image 1 has shape \(12, 24\)"):
        images_of_tiff(tmp_path / "s.tif")


@pytest.mark.parametrize(
    ("shape", "ways", "said"),
    [
        ((12, 20, 3), {"photometric": "rgb"}, r"shape \(12, 20, 3\)"),
        ((12, 20, 2), {"photometric": "minisblack", "planarconfig": "contig"}, r"shape \(12, 20, 2\)"),
    ],
)
def test_what_is_no_measurement_is_refused(
    tmp_path: Path, shape: tuple[int, ...], ways: dict[str, object], said: str
) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.zeros(shape, np.uint8), **ways)
    with pytest.raises(Unsupported, match=said):
        images_of_tiff(tmp_path / "s.tif")


def test_what_loses_values_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((12, 20), np.uint8)).save(tmp_path / "s.tif", compression="jpeg")
    with pytest.raises(Unsupported, match=r"s\.tif: the TIFF image is stored compressed with JPEG"):
        images_of_tiff(tmp_path / "s.tif")


@pytest.mark.parametrize("ways", [{}, {"imagej": True}, {"compression": "zlib"}], ids=str)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
def test_a_stack_cut_short_is_refused(tmp_path: Path, ways: dict[str, object], share: float) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, _images(), photometric="minisblack", **ways)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(BadInput, match=r"s\.tif: the TIFF file is damaged"):
        images_of_tiff(path)[...]


def test_a_size_that_is_only_declared_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, _images()[0], compression="zlib", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("ImageLength", "ImageWidth", "RowsPerStrip"):
            file.pages[0].tags[name].overwrite(65535)
    with pytest.raises(BadInput, match=r"takes 8589672450 bytes, but \d+ are stored"):
        images_of_tiff(path)


@pytest.mark.parametrize("ways", [{}, {"imagej": True}, {"compression": "zlib"}], ids=str)
def test_flipped_bits_never_crash(tmp_path: Path, ways: dict[str, object]) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, _images(count=3), photometric="minisblack", **ways)
    whole = bytearray(path.read_bytes())
    random = np.random.default_rng(7)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in random.integers(0, min(len(whole), 600), 3):
            damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with contextlib.suppress(EquipoiseError):
            images_of_tiff(path)[...]


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits"])
def test_compressed_values_that_are_damaged_never_crash(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "s.tif"
    Image.fromarray(_images()[0]).save(path, compression=compression)
    whole = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    random = np.random.default_rng(8)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in start + random.integers(0, size, 4):
            damaged[place] = int(random.integers(256))
        path.write_bytes(damaged)
        try:
            assert images_of_tiff(path)[0].shape == (12, 20)
        except BadInput:
            refused += 1
    assert refused > 10


_EACH_IN_TURN = """
import sys
from pathlib import Path
from equipoise_engine.errors import EquipoiseError
from equipoise_engine.formats import read
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print("read", path.name, read(path).shape)
    except EquipoiseError as error:
        assert path.name in error.message, error.message
        print("refused", path.name, error.message)
"""


def test_malformed_files_are_survived(shared_data: Path) -> None:
    folder = shared_data / "hard-tiff"
    done = subprocess.run(
        [sys.executable, "-c", _EACH_IN_TURN, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert sum(line.startswith(("read ", "refused ")) for line in lines) == len(list(folder.iterdir()))
    assert sum(line.startswith("read ") for line in lines) >= 10
    assert done.stderr == ""


def test_the_folder_of_malformed_files_is_no_scan(shared_data: Path) -> None:
    with pytest.raises(EquipoiseError, match="hard-tiff"):
        read(shared_data / "hard-tiff")
