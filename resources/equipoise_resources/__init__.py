"""What ships with the program: sample scans, starting weights, licences."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_HERE = Path(__file__).resolve().parent
SAMPLES = {"ct": "sample_ct.nxs", "mri": "sample_mri.h5"}
WEIGHTS = {"ct": "ct.safetensors", "mri": "mri.safetensors"}


def sample_path(kind: str) -> Path:
    """Return the path of the sample scan of a kind, "ct" or "mri"."""
    return _HERE / "samples" / SAMPLES[kind]


def weights_path(kind: str) -> Path:
    """Return the path of the starting weights of a kind, "ct" or "mri"."""
    return _HERE / "weights" / WEIGHTS[kind]


def licence_text() -> str:
    """Return the licence of the program, empty where it was installed without it."""
    beside = _HERE.parent.parent / "LICENSE"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    try:
        files = distribution("equipoise").files or []
    except PackageNotFoundError:
        return ""
    for file in files:
        if file.name == "LICENSE":
            return file.read_text(encoding="utf-8")
    return ""
