"""Links, filters and sizes of HDF5 files that nobody vouches for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from equipoise_engine.acquisition import CtAcquisition
from equipoise_engine.errors import BadInput, OutOfMemory, Unsupported
from equipoise_engine.formats import read

Maker = Callable[..., Path]


def _linked(path: Path, filename: str, inner: str = "/frames") -> Path:
    with h5py.File(path, "r+") as file:
        file["exchange/data"] = h5py.ExternalLink(filename, inner)
    return path


def _frames(path: Path) -> np.ndarray:
    frames = np.arange(12 * 3 * 16, dtype=np.uint16).reshape(12, 3, 16)
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["frames"] = frames
    return frames


def test_a_link_into_the_folder_is_followed(dataexchange: Maker, tmp_path: Path) -> None:
    frames = _frames(tmp_path / "raw" / "frames.h5")
    scan = read(_linked(dataexchange(data=None), "raw/frames.h5"))
    assert isinstance(scan, CtAcquisition)
    assert np.array_equal(scan.projections[:], frames)


def test_a_link_to_where_the_file_once_was_finds_its_copy(dataexchange: Maker, tmp_path: Path) -> None:
    frames = _frames(tmp_path / "frames.h5")
    scan = read(_linked(dataexchange(data=None), "/beamline/2014/frames.h5"))
    assert isinstance(scan, CtAcquisition)
    assert np.array_equal(scan.projections[3], frames[3])


def test_a_link_out_of_the_folder_is_not_followed(
    dataexchange: Maker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.h5"
    _frames(outside)
    with pytest.raises(BadInput, match=r"outside the folder of the scan: not followed"):
        read(_linked(dataexchange(data=None), str(outside)))


def test_a_link_to_a_missing_file_names_it(dataexchange: Maker) -> None:
    with pytest.raises(BadInput, match=r"exchange/data is stored in another file, gone\.h5, which is missing"):
        read(_linked(dataexchange(data=None), "gone.h5"))


def test_a_link_to_a_missing_dataset_names_it(dataexchange: Maker, tmp_path: Path) -> None:
    _frames(tmp_path / "frames.h5")
    with pytest.raises(BadInput, match=r"link to /other, which frames\.h5 does not have"):
        read(_linked(dataexchange(data=None), "frames.h5", "/other"))


def test_links_in_a_circle_are_refused(dataexchange: Maker) -> None:
    path = dataexchange(data=None)
    with h5py.File(path, "r+") as file:
        file["exchange/data"] = h5py.SoftLink("/exchange/other")
        file["exchange/other"] = h5py.SoftLink("/exchange/data")
    with pytest.raises(BadInput, match="more than 16 links"):
        read(path)


def test_a_virtual_dataset_with_a_missing_source_is_refused(dataexchange: Maker) -> None:
    path = dataexchange(data=None)
    layout = h5py.VirtualLayout((12, 3, 16), np.uint16)
    layout[:] = h5py.VirtualSource("part.h5", "frames", (12, 3, 16))
    with h5py.File(path, "r+") as file:
        file["exchange"].create_virtual_dataset("data", layout)
    with pytest.raises(BadInput, match=r"part\.h5, which is missing"):
        read(path)
    frames = _frames(path.parent / "part.h5")
    scan = read(path)
    assert isinstance(scan, CtAcquisition)
    assert np.array_equal(scan.projections[:], frames)


def test_plugin_compression_is_read(dataexchange: Maker) -> None:
    frames = np.arange(12 * 3 * 16, dtype=np.uint16).reshape(12, 3, 16)
    path = dataexchange(data=None)
    with h5py.File(path, "r+") as file:
        file["exchange"].create_dataset("data", data=frames, chunks=(1, 3, 16), compression=hdf5plugin.Bitshuffle())
    scan = read(path)
    assert isinstance(scan, CtAcquisition)
    assert np.array_equal(scan.projections[:], frames)


def test_an_unknown_filter_is_named(dataexchange: Maker) -> None:
    path = dataexchange(data=None)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((1, 3, 16))
    properties.set_filter(31337, h5py.h5z.FLAG_OPTIONAL, ())
    with h5py.File(path, "r+") as file:
        space = h5py.h5s.create_simple((12, 3, 16))
        made = h5py.h5d.create(file["exchange"].id, b"data", h5py.h5t.NATIVE_UINT16, space, properties)
        h5py.Dataset(made)[:] = 1
    with pytest.raises(Unsupported, match="HDF5 filter 31337"):
        read(path)


def test_a_frame_larger_than_the_memory_is_refused(dataexchange: Maker) -> None:
    path = dataexchange(data=None, data_white=None, data_dark=None)
    with h5py.File(path, "r+") as file:
        made = file["exchange"].create_dataset("data", (12, 1 << 22, 1 << 22), np.uint16, chunks=(1, 64, 64))
        made[0, :64, :64] = 1
    with pytest.raises(OutOfMemory, match=r"\(12, 4194304, 4194304\), takes .* GB of memory; .* GB are free"):
        read(path)


def test_a_slice_larger_than_the_memory_is_refused(dataexchange: Maker) -> None:
    path = dataexchange(data=None, data_white=None, data_dark=None)
    with h5py.File(path, "r+") as file:
        made = file["exchange"].create_dataset("data", (1 << 40, 1, 64), np.uint16, chunks=(64, 1, 64))
        made[:64] = 1
    with pytest.raises(OutOfMemory, match=r"one slice of scan\.h5 \(1099511627776 views of 64 columns\)"):
        read(path)


def test_damaged_values_are_reported_when_read(dataexchange: Maker) -> None:
    path = dataexchange(data=None)
    with h5py.File(path, "r+") as file:
        made = file["exchange"].create_dataset(
            "data",
            data=np.ones((12, 3, 16), np.uint16),
            chunks=(1, 3, 16),
            compression="gzip",
            fletcher32=True,
        )
        chunk = made.id.get_chunk_info(5)
    with path.open("r+b") as stream:
        stream.seek(chunk.byte_offset)
        stream.write(b"\xff" * chunk.size)
    scan = read(path)
    assert isinstance(scan, CtAcquisition)
    with pytest.raises(BadInput, match=r"scan\.h5: values of /exchange/data cannot be read"):
        scan.projections[:]


def test_a_text_heap_that_never_ends_is_refused(nxtomo: Maker) -> None:
    path = nxtomo()
    content = bytearray(path.read_bytes())
    at = content.index(b"GCOL\x01\0\0\0")
    # the first object, made so long that zeros follow it
    content[at + 25] = 2
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"scan\.nxs: .*an object of no size in the heap"):
        read(path)


def test_sources_are_listed_once_and_links_followed(dataexchange: Maker, tmp_path: Path) -> None:
    path = dataexchange()
    _frames(tmp_path / "other.h5")
    with h5py.File(path, "r+") as file:
        file["again"] = h5py.SoftLink("/exchange/data")
        file["hard"] = file["exchange/data"]
        file["outer"] = h5py.ExternalLink("other.h5", "/frames")
        file["gone"] = h5py.ExternalLink("gone.h5", "/frames")
        file["text"] = "words"
        file["one"] = 3.0
    scan = read(path)
    assert isinstance(scan, CtAcquisition)
    listed = {source.name: (source.shape, source.kind) for source in scan.sources}
    assert listed["/outer"] == ((12, 3, 16), "uint16")
    assert sum(shape == (12, 3, 16) for shape, _ in listed.values()) == 2
    assert not {"/gone", "/text", "/one"} & set(listed)


def test_of_very_many_datasets_the_largest_are_listed(dataexchange: Maker) -> None:
    path = dataexchange()
    with h5py.File(path, "r+") as file:
        for index in range(300):
            file[f"log/value{index}"] = np.zeros(2)
    scan = read(path)
    assert isinstance(scan, CtAcquisition)
    assert len(scan.sources) == 200
    assert {"/exchange/data", "/exchange/theta"} <= {source.name for source in scan.sources}


@pytest.mark.parametrize("key", [np.s_[::-1], np.s_[[7, 2]], np.s_[np.array([3, 3, 0]), 1], np.s_[-1]])
def test_any_order_of_views_can_be_asked_for(dataexchange: Maker, key: object) -> None:
    scan = read(dataexchange())
    assert isinstance(scan, CtAcquisition)
    assert np.array_equal(scan.projections[key], np.asarray(scan.projections[:])[key])
