"""Physics whose measurements are left out as a whole: views of a rotating scanner, readouts of a trajectory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import CtGeometry
from equipoise_engine.operators import Physics


class UnitPhysics(Physics):
    """Physics of measurements that come in units; noise within one is correlated, so none is split."""

    unit: str
    """What a unit is called."""
    unit_axis: int
    """Axis of the units in measurements, the batch being axis 0."""

    @property
    def units(self) -> int:
        """Number of units."""
        return int(self.range[self.unit_axis - 1])

    def part(self, y: Tensor, kept: Tensor) -> Tensor:
        """Return the kept units of y `(batch, ..., unit, ...)`."""
        chosen = torch.nonzero(kept.to(y.device)).flatten()
        return y.index_select(self.unit_axis, chosen)

    def withheld(self, y: Tensor, kept: Tensor) -> Tensor:
        """Return y `(batch, ..., unit, ...)` with zeros in the kept units."""
        return y * ~kept.to(y.device).reshape(-1, *([1] * (y.ndim - 1 - self.unit_axis)))

    def random_split(self, generator: torch.Generator, share: float = 0.6) -> Tensor:
        """Draw which units to keep `(unit,)`, bool.

        Raises
        ------
        BadInput
            Fewer than two units.
        """
        units = self.units
        if units < 2:
            raise BadInput(f"a scan of one {self.unit} cannot be split", f"Use a scan with at least two {self.unit}s.")
        kept = torch.zeros(units, dtype=torch.bool)
        kept[torch.randperm(units, generator=generator)[: min(max(1, round(share * units)), units - 1)]] = True
        return kept


_Geometry = TypeVar("_Geometry", bound=CtGeometry)


class ScannerPhysics(UnitPhysics, Generic[_Geometry]):
    """Physics of a scanner that turns about the object; all slices of a scan share it."""

    complex_image = False
    unit, unit_axis = "view", 1
    geometry: _Geometry

    @cached_property
    @abstractmethod
    def _weight(self) -> Tensor:
        """The spectrum of W `(frequency,)`, so scaled that ||A^H W A|| = 1."""

    @abstractmethod
    def _with_angles(self, angle_rad: NDArray[np.float64]) -> Self:
        """Return the physics of other views of the same image."""

    def select(self, slices: Tensor) -> Self:
        """Return this physics: all slices of a scan share it."""
        return self

    def joined(self, others: Sequence[Physics]) -> Self:
        """Return this physics: all slices of a scan share it."""
        return self

    def to(self, device: torch.device) -> Self:
        """Return this physics: it takes its device from its argument."""
        return self

    def thinned(self, kept: Tensor) -> Self:
        """Return the physics of some of the views; `kept (view,)` bool."""
        return self._with_angles(self.geometry.angle_rad[kept.cpu().numpy()])

    def turned(self, angle_rad: float) -> Self:
        """Return the physics of an object turned counter-clockwise: every view comes from an angle that much less."""
        turned = self._with_angles(self.geometry.angle_rad - angle_rad)
        # the spectrum of A^H W A turns with the views, so the scale of W stays
        turned._weight = self._weight
        return turned
