"""What every projector of slices does."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from equipoise_engine.errors import BadInput


class Projector(ABC):
    """A projector of slices and its exact transpose, for one geometry and one image grid, without autograd.

    Parameters
    ----------
    shape
        Rows and columns of an image.
    detector
        Views and columns of a sinogram.

    Attributes
    ----------
    shape
        Rows and columns of an image.
    range
        Views and columns of a sinogram.
    engine
        "matrix-free" or "sparse".
    """

    engine: str

    def __init__(self, shape: tuple[int, int], detector: tuple[int, int]) -> None:
        self.shape = shape
        self.range = detector

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Memory that this projector holds."""

    def forward(self, x: Tensor) -> Tensor:
        """Return line integrals `(batch, view, column)` of x `(batch, y, x)`, float32 or float64, in mm times its unit.

        Raises
        ------
        BadInput
            x has another shape or type.
        """
        return self._forward(_checked(x, self.shape, "an image"))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the transpose `(batch, y, x)` of `forward` at y `(batch, view, column)`, float32 or float64.

        Raises
        ------
        BadInput
            y has another shape or type.
        """
        return self._adjoint(_checked(y, self.range, "a sinogram"))

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _adjoint(self, y: Tensor) -> Tensor: ...


def _checked(values: Tensor, shape: tuple[int, int], name: str) -> Tensor:
    if values.ndim != 3 or tuple(values.shape[1:]) != shape:
        raise BadInput(f"{name} of shape {tuple(values.shape)} is not (batch, {shape[0]}, {shape[1]})")
    if values.dtype not in (torch.float32, torch.float64):
        raise BadInput(f"{name} of {values.dtype} is neither float32 nor float64")
    return values.detach()
