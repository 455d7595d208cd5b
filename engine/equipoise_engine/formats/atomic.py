"""Writing files and folders so that the old ones survive any error: the final name comes last."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from equipoise_engine.errors import BadInput, EquipoiseError
from equipoise_engine.progress import Cancelled

MARGIN_BYTES = 1 << 20
"""Room asked for beyond what a result is estimated to take."""


@contextmanager
def new_file(path: Path, needed: int) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`; when the block ends well, it becomes `path`.

    The block writes and compares. When it raises, the temporary file is removed and an older
    `path` stays as it was.

    Parameters
    ----------
    needed
        Estimated size in bytes.

    Raises
    ------
    BadInput
        The folder is missing, read-only or too full, `path` is a folder, or the system refuses to write.
    """
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; a file is to be written", "Give a file name.")
    _check_folder(path.parent, needed)
    temporary = path.parent / f".{path.name[:100]}.{uuid.uuid4().hex[:8]}.part"
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except (EquipoiseError, Cancelled):
        raise
    except (OSError, RuntimeError) as error:
        raise _write_error(path, needed, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, needed: int, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; when the block ends well, it becomes `path`.

    Parameters
    ----------
    needed
        Estimated size in bytes of what goes into it.
    ours
        Whether a file that is already in `path` was written by us and may be replaced.

    Raises
    ------
    BadInput
        `path` is a file or a folder with other things in it, its parent is missing, read-only or too full,
        or the system refuses to write.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path}: is a file; a folder is to be written", "Give the name of a folder.")
    _check_folder(path.parent, needed)
    if path.is_dir():
        foreign = sorted(item.name for item in path.iterdir() if not (item.is_file() and ours(item)))
        if foreign:
            raise BadInput(
                f"{path}: holds {len(foreign)} things that were not exported from here, as {foreign[0]}",
                "Choose an empty folder, or a new name.",
            )
    mark = uuid.uuid4().hex[:8]
    temporary = path.parent / f".{path.name[:100]}.{mark}.part"
    old = path.parent / f".{path.name[:100]}.{mark}.old"
    try:
        temporary.mkdir()
        yield temporary
        for item in temporary.iterdir():
            sync(item)
        sync(temporary)
        if path.is_dir():
            os.rename(path, old)
        try:
            os.rename(temporary, path)
        except OSError:
            if old.is_dir():
                os.rename(old, path)
            raise
        sync(path.parent)
    except (EquipoiseError, Cancelled):
        raise
    except (OSError, RuntimeError) as error:
        raise _write_error(path, needed, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.is_dir():
            shutil.rmtree(old, ignore_errors=True)


def reserve(path: Path, size: int) -> None:
    """Make a file of `size` bytes, so that a drive that cannot take it says so before work begins."""
    with path.open("wb") as stream:
        stream.truncate(size)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(stream.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folder for this
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


def _check_folder(folder: Path, needed: int) -> None:
    if not folder.is_dir():
        raise BadInput(f"{folder}: there is no such folder", "Make the folder first, or choose another one.")
    if not os.access(folder, os.W_OK):
        raise BadInput(f"{folder}: the folder is read-only", "Choose another folder.")
    free = shutil.disk_usage(folder).free
    if needed + MARGIN_BYTES > free:
        raise BadInput(
            f"{folder}: the result needs {needed + MARGIN_BYTES} bytes; {free} bytes are free",
            "Make room, or choose another drive.",
        )


def _write_error(path: Path, needed: int, error: Exception) -> BadInput:
    """Return one clear message for what the operating system said."""
    code = getattr(error, "errno", None)
    if code is None:
        # HDF5 and pydicom put the number into their text; numpy only says that a write fell short.
        found = re.search(r"errno = (\d+)|\[Errno (\d+)\]", str(error))
        if found:
            code = int(found.group(1) or found.group(2))
        elif "requested and" in str(error):
            code = errno.ENOSPC if shutil.disk_usage(path.parent).free < MARGIN_BYTES else errno.EFBIG
    match code:
        case errno.ENOSPC | errno.EDQUOT:
            free = shutil.disk_usage(path.parent).free
            return BadInput(
                f"{path}: the drive is full (about {needed} bytes needed, {free} bytes free)",
                "Make room, or choose another drive.",
            )
        case errno.EFBIG:
            return BadInput(
                f"{path}: the file system does not take a file of about {needed} bytes",
                "Choose another drive, or export fewer slices.",
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return BadInput(f"{path}: no permission to write here", "Choose another folder.")
        case _:
            reason = os.strerror(code) if code is not None else str(error)
            return BadInput(f"{path}: cannot be written ({reason})", "Choose another folder.")
