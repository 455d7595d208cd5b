"""Weights and training state on disk: safetensors with a manifest, written atomically. No pickle."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.model import Architecture, EquilibriumModel

FORMAT = "equipoise-equilibrium-1"


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and what is needed to go on training them bit for bit.

    Parameters
    ----------
    architecture
        Of the network.
    weights
        Parameters by name.
    optimiser
        State of the optimiser by name; empty where training cannot be continued.
    random
        State of the random generator `(bytes,)`, uint8; empty where there is none.
    step
        Optimiser steps taken.
    manifest
        Settings, hashes of the data, versions, losses. JSON values only.
    """

    architecture: Architecture
    weights: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    random: Tensor
    step: int
    manifest: dict[str, Any]

    def model(self, device: torch.device | None = None) -> EquilibriumModel:
        """Return the network with these weights, on `device`."""
        model = EquilibriumModel(self.architecture)
        model.load_state_dict(self.weights)
        # the layout that convolutions are quickest in, on CPU and GPU
        arranged: EquilibriumModel = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return arranged if device is None else arranged.to(device)

    def without_training_state(self) -> Checkpoint:
        """Return the weights and the manifest alone, as they are shipped."""
        return replace(self, optimiser={}, random=torch.empty(0, dtype=torch.uint8))


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; an earlier file of that name survives any error.

    Raises
    ------
    BadInput
        The folder does not exist or cannot be written.
    """
    tensors = {f"weights/{name}": value for name, value in checkpoint.weights.items()}
    tensors |= {f"optimiser/{name}": value for name, value in checkpoint.optimiser.items()}
    if checkpoint.random.numel():
        tensors["random"] = checkpoint.random
    metadata = {
        "format": FORMAT,
        "architecture": json.dumps(asdict(checkpoint.architecture)),
        "step": str(checkpoint.step),
        "manifest": json.dumps(checkpoint.manifest, sort_keys=True),
    }
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise BadInput(
            f"cannot write the weights to {path}: {reason}", "Choose a folder that can be written."
        ) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    BadInput
        The file does not exist or does not hold weights of this program.
    """
    if not path.is_file():
        raise BadInput(f"there is no file of weights at {path}")
    try:
        with safe_open(str(path), framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path.name} is not a safetensors file or is cut short: {error}") from error
    if metadata.get("format") != FORMAT:
        raise BadInput(
            f"{path.name} holds no weights of an equilibrium model "
            f"(format {metadata.get('format')!r}, needs {FORMAT!r})"
        )
    try:
        shape = json.loads(metadata["architecture"])
        # files of before there was a choice name neither network nor map
        architecture = Architecture(
            int(shape["image_channels"]),
            _three(shape["widths"]),
            str(shape.get("network", Architecture.network)),
            str(shape.get("fixed_point", Architecture.fixed_point)),
        )
        checkpoint = Checkpoint(
            architecture,
            _part(tensors, "weights/"),
            _part(tensors, "optimiser/"),
            tensors.get("random", torch.empty(0, dtype=torch.uint8)),
            int(metadata["step"]),
            json.loads(metadata["manifest"]),
        )
        checkpoint.model()
    except BadInput as error:
        raise BadInput(f"{path.name}: {error.message}", error.hint) from error
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise BadInput(f"{path.name}: its manifest and its weights do not fit together: {error}") from error
    return checkpoint


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _three(values: list[int]) -> tuple[int, int, int]:
    first, second, third = (int(v) for v in values)
    return first, second, third
