"""Opening HDF5 files that nobody vouches for: no lock, no write, no link followed out of the folder."""

from __future__ import annotations

import os
import struct
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - importing it registers the compression filters
import numpy as np
import psutil
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput, OutOfMemory, Unsupported
from equipoise_engine.formats.indexing import full_key
from equipoise_engine.recipe import Source

SIGNATURE = b"\x89HDF\r\n\x1a\n"
HEAP_WINDOW = 1 << 24
"""Bytes at the beginning and at the end of a file in which collections of texts are checked."""
_COLLECTION = b"GCOL\x01\0\0\0"
MAX_LINKS = 50_000
MAX_LINK_CHAIN = 16
MAX_SOURCES = 200
"""Datasets that are listed for a choice."""
MAX_LOOKED_AT = 20_000
"""Links that are looked at to list them."""

# Sources of virtual datasets are opened by the HDF5 library itself, which takes its locking from here.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")


def is_hdf5(path: Path) -> bool:
    """Whether a file carries the HDF5 signature at a place where it may stand (0, 512, 1024, ...)."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        offset = 0
        while offset + len(SIGNATURE) <= size and offset <= 1 << 20:
            stream.seek(offset)
            if stream.read(len(SIGNATURE)) == SIGNATURE:
                return True
            offset = 512 if offset == 0 else offset * 2
    return False


def open_file(path: Path) -> h5py.File:
    """Return a file opened for reading without a lock.

    Raises
    ------
    BadInput
        It is cut short or damaged.
    """
    _check_heaps(path)
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        reason = _reason(error)
        size = path.stat().st_size
        if "truncated" in reason or "eof" in reason:
            raise BadInput(
                f"{path.name}: the HDF5 file is cut short ({size} bytes on disk; {reason})",
                "Copy or download the file again.",
            ) from error
        raise BadInput(
            f"{path.name}: the HDF5 file of {size} bytes is damaged ({reason})",
            "Copy or download the file again.",
        ) from error


def _check_heaps(path: Path) -> None:
    """Check the collections that texts are kept in: the library never returns from one with an object of no size.

    Source: HDF5 File Format Specification, III.E. Disk Format: Level 1E - Global Heap.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        for start in sorted({0, max(size - HEAP_WINDOW, 0)}):
            stream.seek(start)
            block = stream.read(HEAP_WINDOW)
            at = block.find(_COLLECTION)
            while at >= 0:
                if _endless(block, at):
                    raise BadInput(
                        f"{path.name}: the HDF5 file is damaged (an object of no size in the heap at {start + at})",
                        "Copy or download the file again.",
                    )
                at = block.find(_COLLECTION, at + len(_COLLECTION))


def _endless(block: bytes, at: int) -> bool:
    """Whether the objects of a collection lead to one of number 0 and size 0, which does not lead on."""
    if at + 16 > len(block):
        return False
    end = min(at + int.from_bytes(block[at + 8 : at + 16], "little"), len(block))
    at += 16
    while at + 16 <= end:
        number, _, _, length = struct.unpack_from("<HHIQ", block, at)
        # the remaining free space has number 0, and its size includes this header
        step = length if number == 0 else 16 + -(-length // 8) * 8
        if step == 0:
            return True
        at += step
    return False


def text_of(value: Any) -> str:
    """Return a scalar, a one-element array or bytes as text."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size else ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return str(value).strip()


def read_text(dataset: h5py.Dataset, path: Path) -> str:
    """Return a dataset of one value as text. Raises BadInput where it is damaged."""
    try:
        return text_of(dataset[()])
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise BadInput(f"{path.name}: {dataset.name} cannot be read ({_reason(error)})") from error


def attribute(item: h5py.Dataset | h5py.Group, name: str) -> str:
    """Return an attribute as text, empty where it is missing or unreadable."""
    try:
        value = item.attrs.get(name)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError):
        return ""
    return "" if value is None else text_of(value)


def _reason(error: Exception) -> str:
    """Return the part in brackets of an HDF5 message, else all of it."""
    text = str(error).strip("'\"")
    start, end = text.find("("), text.rfind(")")
    return text[start + 1 : end] if 0 <= start < end else text


# --- finding objects --------------------------------------------------------------------------------


def find(root: h5py.File | h5py.Group, name: str, path: Path) -> h5py.Dataset | h5py.Group | None:
    """Return the object `name`, or None where no such name is in the file.

    Links are followed step by step: soft links inside the file, external links only to files inside the
    folder of `path`, which are opened without a lock as well.

    Raises
    ------
    BadInput
        The name is there, but leads to something missing, damaged or outside the folder.
    """
    return _find(root, name, path, path, 0)


def _find(
    root: h5py.File | h5py.Group, name: str, path: Path, file: Path, chain: int
) -> h5py.Dataset | h5py.Group | None:
    if chain > MAX_LINK_CHAIN:
        raise BadInput(f"{path.name}: {name} goes through more than {MAX_LINK_CHAIN} links")
    here: Any = root.file["/"] if name.startswith("/") else root
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", ".")]
    for position, part in enumerate(parts):
        if not isinstance(here, h5py.Group):
            return None
        where = f"{here.name.rstrip('/')}/{part}"
        rest = "/".join(parts[position + 1 :])
        try:
            link = here.get(part, getlink=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise BadInput(f"{path.name}: {where} is damaged ({_reason(error)})") from error
        if link is None:
            return None
        if isinstance(link, h5py.SoftLink):
            target = _find(here, link.path, path, file, chain + 1)
            if target is None:
                raise BadInput(
                    f"{path.name}: {where} is a link to {link.path}, which is missing from the file",
                    "Ask for a complete copy of the scan.",
                )
        elif isinstance(link, h5py.ExternalLink):
            linked = _inside_folder(link.filename, path, file, where)
            opened = open_file(linked)
            target = _find(opened, "/" + link.path.lstrip("/"), path, linked, chain + 1)
            if target is None:
                raise BadInput(
                    f"{path.name}: {where} is a link to {link.path}, which {link.filename} does not have",
                    "Ask for a complete copy of the scan.",
                )
        else:
            try:
                target = here[part]
            except (KeyError, OSError, RuntimeError, ValueError, TypeError) as error:
                raise BadInput(
                    f"{path.name}: {where} cannot be read ({_reason(error)})",
                    "The file is damaged; copy or download it again.",
                ) from error
        if not isinstance(target, (h5py.Group, h5py.Dataset)):
            return None
        here = target
        if rest and isinstance(here, h5py.Dataset):
            return None
    return here if isinstance(here, (h5py.Group, h5py.Dataset)) else None


def _inside_folder(filename: str, path: Path, file: Path, where: str) -> Path:
    """Return the file that a link names, which must exist and lie in the folder of the scan."""
    folder = path.resolve().parent
    named = Path(filename)
    candidates = [file.resolve().parent / named, file.resolve().parent / named.name]
    outside = False
    for candidate in candidates:
        try:
            resolved = candidate.resolve()
            exists = resolved.is_file()
        except (OSError, RuntimeError, ValueError):
            continue
        if exists and resolved.is_relative_to(folder):
            return resolved
        outside = outside or exists
    if outside:
        raise BadInput(
            f"{path.name}: {where} is stored in {filename}, outside the folder of the scan: not followed",
            f"Copy {named.name} beside {path.name} and open it again.",
        )
    raise BadInput(
        f"{path.name}: {where} is stored in another file, {filename}, which is missing",
        f"Copy {named.name} beside {path.name} and open it again.",
    )


def walk(file: h5py.File, path: Path) -> tuple[str, ...]:
    """Return the full names of all links of a file; soft and external links are named, but not followed.

    Raises
    ------
    BadInput
        The file holds more than `MAX_LINKS` links, or a group of it is damaged.
    """
    names: list[str] = []

    def note(name: str, _link: object) -> bool | None:
        names.append(f"/{name}")
        return True if len(names) > MAX_LINKS else None

    # The library's own visitor notices damage that would crash it when groups are iterated one by one; it answers a
    # name that is not UTF-8 with a SystemError.
    try:
        file.visititems_links(note)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, SystemError) as error:
        raise BadInput(
            f"{path.name}: the HDF5 file is damaged ({_reason(error)})", "Copy or download the file again."
        ) from error
    if len(names) > MAX_LINKS:
        raise BadInput(f"{path.name}: more than {MAX_LINKS} objects; this is not a scan of a known kind")
    return tuple(names)


def try_find(root: h5py.File | h5py.Group, name: str, path: Path) -> h5py.Dataset | h5py.Group | None:
    """Return the object `name`, or None where it is missing, leads nowhere or is damaged."""
    try:
        return find(root, name, path)
    except BadInput:
        return None


def numeric_sources(file: h5py.File, path: Path) -> tuple[Source, ...]:
    """Return the datasets of numbers in a file, each once, by the first of its names; at most `MAX_SOURCES`.

    Links to other files are followed where these exist, also into the groups that they lead to. Of too many datasets
    those with the most axes and values are listed.

    Raises
    ------
    BadInput
        A group of the file is damaged.
    """
    found: dict[tuple[str, str], Source] = {}
    budget = MAX_LOOKED_AT
    for where in walk(file, path):
        budget -= 1
        item = try_find(file, where, path) if budget >= 0 else None
        if isinstance(item, h5py.Dataset):
            _note(found, where, item)
        elif isinstance(item, h5py.Group) and item.file.filename != file.filename:
            inner = _below(item, budget)
            budget -= len(inner)
            for name in inner:
                below = try_find(item, name, path)
                if isinstance(below, h5py.Dataset):
                    _note(found, f"{where}/{name}", below)
    sources = list(found.values())
    if len(sources) > MAX_SOURCES:
        ranked = sorted(sources, key=lambda s: (len(s.shape), np.prod(s.shape, dtype=np.float64)), reverse=True)
        kept = {source.name for source in ranked[:MAX_SOURCES]}
        sources = [source for source in sources if source.name in kept]
    return tuple(sources)


def _below(group: h5py.Group, limit: int) -> list[str]:
    """Return the names of what a group in another file holds, at most `limit`; none where it is damaged."""
    names: list[str] = []

    def note(name: str) -> bool | None:
        names.append(name)
        return True if len(names) >= limit else None

    try:
        group.visit(note)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, SystemError):
        return []
    return names


def _note(found: dict[tuple[str, str], Source], name: str, item: h5py.Dataset) -> None:
    """Add a dataset of several real or complex numbers to those found."""
    try:
        shape, kind = item.shape, item.dtype
    except (OSError, RuntimeError, TypeError, ValueError):
        return
    if shape and kind.kind in "iufcb" and np.prod(shape, dtype=np.float64) > 1:
        key = (str(item.file.filename), str(h5py.h5o.get_info(item.id).addr))
        found.setdefault(key, Source(name, tuple(int(n) for n in shape), str(kind)))


# --- datasets as samples ----------------------------------------------------------------------------


class Stored:
    """An HDF5 dataset that is read by slicing, with the errors of the library turned into ours.

    Parameters
    ----------
    dataset
        The dataset.
    path
        File named in messages.
    frames
        Which indices of the first axis make up this array, `(frame,)`, int64; None takes all.
    dtype
        Type that values are read as; None keeps the stored one.
    add_axis
        Position of an axis of length one that the dataset lacks, as a missing coil axis; None adds none.
    """

    def __init__(
        self,
        dataset: h5py.Dataset,
        path: Path,
        frames: NDArray[np.int64] | None = None,
        *,
        dtype: np.dtype[Any] | None = None,
        add_axis: int | None = None,
    ) -> None:
        self._dataset = dataset
        self._file = dataset.file  # keeps the file open as long as this array lives
        self._path = path
        self._frames = frames
        self._dtype = np.dtype(dtype) if dtype is not None else np.dtype(dataset.dtype)
        self._add_axis = add_axis
        stored = [int(n) for n in dataset.shape]
        if frames is not None:
            stored[0] = int(frames.shape[0])
        if add_axis is not None:
            stored.insert(add_axis, 1)
        self._shape = tuple(stored)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type that values are read as."""
        return self._dtype

    @property
    def name(self) -> str:
        """Name of the dataset in its file."""
        return str(self._dataset.name)

    def __len__(self) -> int:
        return self._shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype=dtype)

    def __getitem__(self, key: Any, /) -> Any:
        """Return the values of integers, slices, an ellipsis, or an index array on the first axis."""
        keys = full_key(key, len(self._shape), f"{self._path.name}:{self.name}")
        added: Any = None
        if self._add_axis is not None:
            added = keys.pop(self._add_axis)
        try:
            values = self._read(keys[0], tuple(keys[1:]))
        except (OSError, RuntimeError) as error:
            raise BadInput(
                f"{self._path.name}: values of {self.name} cannot be read ({_reason(error)})",
                "The file is cut short or damaged; copy or download it again.",
            ) from error
        if self._dtype != values.dtype:
            values = np.asarray(values).astype(self._dtype)
        if self._add_axis is not None:
            # An axis left of it that was indexed with an integer is gone from the values.
            position = self._add_axis - sum(isinstance(k, (int, np.integer)) for k in keys[: self._add_axis])
            values = np.expand_dims(values, position)
            values = values[(slice(None),) * position + (added,)]
        return values

    def _read(self, first: Any, rest: tuple[Any, ...]) -> Any:
        several = np.ndim(first) > 0 or (isinstance(first, slice) and (first.step or 1) < 0)
        if self._frames is None and not several:
            return self._dataset[(first, *rest)]
        chosen = np.arange(self._shape[0])[first] if self._frames is None else self._frames[first]
        if np.ndim(chosen) == 0:
            return self._dataset[(int(chosen), *rest)]
        if chosen.size == 0:
            return self._dataset[(slice(0, 0), *rest)]
        # Runs of neighbouring frames are read in one go: index lists are slow in HDF5 and must be sorted.
        ends = np.flatnonzero(np.diff(chosen) != 1) + 1
        runs = np.split(chosen, ends)
        parts = [self._dataset[(slice(int(run[0]), int(run[-1]) + 1), *rest)] for run in runs]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def check_dataset(item: h5py.Dataset | h5py.Group, path: Path, *, kinds: str, axes: tuple[int, ...]) -> h5py.Dataset:
    """Return `item` as a dataset that can be read.

    Parameters
    ----------
    kinds
        Letters of the numpy kinds that are allowed, as "iuf" or "c".
    axes
        Allowed numbers of axes.

    Raises
    ------
    BadInput
        It is a group, has other axes or values, was never written, or is stored in files that are missing.
    Unsupported
        It is compressed with a filter that is not installed.
    OutOfMemory
        One frame of it is larger than the free memory.
    """
    if not isinstance(item, h5py.Dataset):
        raise BadInput(f"{path.name}: {item.name} is a group where a dataset was expected")
    where = f"{path.name}: {item.name}"
    if item.shape is None or len(item.shape) not in axes:
        wanted = " or ".join(str(n) for n in axes)
        raise BadInput(f"{where} has shape {item.shape}; {wanted} axes are needed")
    if any(n == 0 for n in item.shape):
        raise BadInput(f"{where} is empty: its shape is {item.shape}")
    try:
        kind = item.dtype.kind
    except (TypeError, ValueError) as error:
        raise BadInput(f"{where} has values of an unknown type ({error})") from error
    if kind not in kinds:
        raise BadInput(f"{where} holds values of type {item.dtype}; numbers of kind {_kind_names(kinds)} are needed")
    _check_filters(item, where)
    _check_sources(item, path)
    if not item.is_virtual and not item.external and item.id.get_storage_size() == 0:
        raise BadInput(
            f"{where} of shape {item.shape} was never written: the file holds no values for it",
            "Ask for a complete copy of the scan.",
        )
    frame = int(np.prod(item.shape[1:], dtype=np.float64)) * item.dtype.itemsize
    check_memory(frame, f"one frame of {item.name} in {path.name}, whose declared shape is {item.shape},")
    return item


def _kind_names(kinds: str) -> str:
    names = {"i": "integer", "u": "unsigned integer", "f": "real", "c": "complex", "b": "boolean"}
    return ", ".join(names[letter] for letter in kinds)


def check_memory(needed: int, what: str) -> None:
    """Raise OutOfMemory where `what` needs more bytes than are free."""
    free = int(psutil.virtual_memory().available)
    if needed > free:
        raise OutOfMemory(
            f"{what} takes {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free",
            "Close other programs, or take a computer with more memory.",
        )


def check_members(kind: np.dtype[Any], what: str) -> None:
    """Raise BadInput where the members of a record overlap: the library writes beyond its end when it reads one."""
    end = 0
    for inner, offset, *_ in sorted((kind.fields or {}).values(), key=lambda member: member[1]):
        if offset < end or offset + inner.itemsize > kind.itemsize:
            raise BadInput(f"{what} is damaged: the members of its records overlap", "Copy or download it again.")
        check_members(inner, what)
        end = offset + inner.itemsize


def _check_filters(dataset: h5py.Dataset, where: str) -> None:
    properties = dataset.id.get_create_plist()
    for index in range(properties.get_nfilters()):
        code, _flags, _values, name = properties.get_filter(index)
        if not h5py.h5z.filter_avail(code):
            label = name.decode("utf-8", "replace") or "without a name"
            raise Unsupported(
                f"{where} is compressed with HDF5 filter {code} ({label}), which is not installed",
                "Install the plugin for this filter, or write the file again with gzip compression.",
            )


def _check_sources(dataset: h5py.Dataset, path: Path) -> None:
    """Check that the files a dataset is pieced together from are there: HDF5 itself would fill in zeros."""
    file = Path(dataset.file.filename)
    if dataset.is_virtual:
        for source in dataset.virtual_sources():
            if source.file_name != ".":
                _inside_folder(source.file_name, path, file, str(dataset.name))
    for name, _offset, _size in dataset.external or ():
        _inside_folder(text_of(name), path, file, str(dataset.name))
