"""Measures of a trained reconstruction: is its denoiser a proximal map, is it equivariant, does its iteration contract.

All take plain maps between batches of images `(batch, y, x)`, float32, float64 or complex. A complex image is a pair of
reals: inner products are Re <a, b>, a Jacobian J is that of the real map, and its transpose is J^T.

A map P is the proximal map of a convex function if and only if it is nonexpansive and the gradient of a convex function
(J. J. Moreau 1965, doi:10.24033/bsmf.1625), that of any function if and only if it is the gradient of a convex one
(R. Gribonval, M. Nikolova 2020, doi:10.1007/s10851-020-00951-y). What is measured at some points can refute this, and
can be consistent with it; it cannot prove it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from itertools import combinations

import torch
from scipy.special import stdtrit
from torch import Tensor

from equipoise_engine.classical import conjugate_gradients
from equipoise_engine.errors import BadInput, NumericalTrouble, Unsupported
from equipoise_engine.groups import rotate
from equipoise_engine.operators import Physics, norms
from equipoise_engine.solve import Outcome

Map = Callable[[Tensor], Tensor]
"""A map of images `(batch, y, x)` to images, sample by sample."""

_TINY = torch.finfo(torch.float64).tiny
# evaluations of a network at two points agree to about this many units of rounding
_ROUNDING = 50


# --- what a measurement says, and how sure it is ---------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over independent probes.

    Parameters
    ----------
    mean, standard_error
        NaN error for a single probe.
    low, high
        Interval that holds the expectation with 95 % confidence (Student's t).
    least, greatest
        The extreme probes.
    probes
        How many there are.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    least: float
    greatest: float
    probes: int

    @staticmethod
    def of(values: Tensor) -> Estimate:
        """Return the estimate from independent values, any shape."""
        values = values.detach().double().reshape(-1).cpu()
        return Estimate._around(float(values.mean()), values, values)

    @staticmethod
    def of_ratio(above: Tensor, below: Tensor) -> Estimate:
        """Return the estimate of E[above] / E[below] from independent pairs `(probe,)`, nonnegative; 0 for 0 / 0.

        The error is that of the linearised ratio.
        """
        above, below = above.detach().double().cpu(), below.detach().double().cpu()
        ratio = float(above.sum() / below.sum().clamp(min=_TINY))
        linear = ratio + (above - ratio * below) / below.mean().clamp(min=_TINY)
        return Estimate._around(ratio, linear, above / below.clamp(min=_TINY))

    @staticmethod
    def _around(mean: float, values: Tensor, shown: Tensor) -> Estimate:
        count = values.numel()
        error = float(values.std() / math.sqrt(count)) if count > 1 else math.nan
        half = float(stdtrit(count - 1, 0.975)) * error if count > 1 else math.nan
        return Estimate(mean, error, mean - half, mean + half, float(shown.min()), float(shown.max()), count)

    def root(self) -> Estimate:
        """Return the estimate of the square root of the expectation; a mean below zero has the root zero."""
        mean, low, high, least, greatest = (
            math.sqrt(max(value, 0.0)) if not math.isnan(value) else math.nan
            for value in (self.mean, self.low, self.high, self.least, self.greatest)
        )
        width = self.high - self.low
        error = self.standard_error * (high - low) / width if width else 0.0
        return Estimate(mean, error, low, high, least, greatest, self.probes)

    def __str__(self) -> str:
        if math.isnan(self.standard_error):
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} (95 %: {self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Rate:
    """How often something was violated.

    Parameters
    ----------
    violations, probes
        Counts.
    low, high
        Interval that holds the probability with 95 % confidence (E. B. Wilson 1927, doi:10.2307/2276774).
    """

    violations: int
    probes: int
    low: float
    high: float

    @staticmethod
    def of(violated: Tensor) -> Rate:
        """Return the rate for independent outcomes `(probe,)`, bool."""
        count, hits, z = violated.numel(), int(violated.sum()), 1.959964
        centre = (hits + z**2 / 2) / (count + z**2)
        half = z / (count + z**2) * math.sqrt(hits * (count - hits) / count + z**2 / 4)
        return Rate(hits, count, max(0.0, centre - half), min(1.0, centre + half))

    def __str__(self) -> str:
        share = 100 * self.violations / self.probes
        return f"{share:.3g} % of {self.probes} (95 %: {100 * self.low:.3g} to {100 * self.high:.3g} %)"


def plain(record: object) -> object:
    """Return a record of this module as what JSON knows: dictionaries, lists, numbers, texts; None for NaN."""
    if is_dataclass(record) and not isinstance(record, type):
        return {field.name: plain(getattr(record, field.name)) for field in fields(record)}
    if isinstance(record, Mapping):
        return {str(name): plain(value) for name, value in record.items()}
    if isinstance(record, (tuple, list)):
        return [plain(value) for value in record]
    if isinstance(record, Enum):
        return record.value
    if isinstance(record, float) and not math.isfinite(record):
        return None
    return record


# --- Jacobians -------------------------------------------------------------------------------------------------------


class _Jacobian:
    """J of a map at a batch of points: products with J and J^T, from one graph.

    J v is the gradient of <J^T u, v> in u, so it is exact and works for maps that differentiate inside, which forward
    mode does not.

    Parameters
    ----------
    difference
        0, or the length, relative to the point, of a central difference that gives J v instead: for maps whose
        gradient cannot be differentiated again, as an implicit one.
    """

    def __init__(self, function: Map, points: Tensor, difference: float = 0.0) -> None:
        self._function, self._points, self._difference = function, points.detach(), difference
        with torch.enable_grad():
            self._x = self._points.clone().requires_grad_()
            self._value = function(self._x)
            if self._value.shape != points.shape or not self._value.requires_grad:
                raise BadInput(
                    f"the map gives {tuple(self._value.shape)} for {tuple(points.shape)}, or no gradient",
                    "A map of images to images of the same shape that can be differentiated is needed.",
                )
            if not bool(torch.isfinite(self._value).all()):
                raise NumericalTrouble("the map gives values that are not finite; it has no Jacobian there")
            self._probe = torch.zeros_like(self._value, requires_grad=True)
            if not difference:
                (self._pulled,) = torch.autograd.grad(self._value, self._x, self._probe, create_graph=True)
        if not difference:
            self._check()

    def _check(self) -> None:
        """Raise Unsupported unless <w, J v> = <J^T w, v>: torch may leave out a second derivative without a word."""
        generator = torch.Generator().manual_seed(0)
        v, w = _normal(self._points, generator), _normal(self._points, generator)
        if self._pulled.requires_grad:
            forward, backward = self(v), self.transposed(w)
            apart = (_dots(w, forward) - _dots(backward, v)).abs()
            size = norms(w) * norms(forward) + norms(backward) * norms(v)
            if not bool((apart > 100 * torch.finfo(v.dtype).eps * size).any()):
                return
        raise Unsupported("the gradient of the map cannot be differentiated again", "Set a length for differences.")

    def transposed(self, u: Tensor) -> Tensor:
        """Return J^T u."""
        product: Tensor = torch.autograd.grad(self._value, self._x, u, retain_graph=True)[0].detach()
        return product

    def __call__(self, v: Tensor) -> Tensor:
        """Return J v."""
        if self._difference:
            size = self._difference * norms(self._points) / norms(v).clamp(min=_TINY)
            move = _wide(size, v) * v
            with torch.no_grad():
                change = self._function(self._points + move) - self._function(self._points - move)
            return change / _wide(2 * size.clamp(min=_TINY), v)
        # nothing at all where the way back to u is cut
        (product,) = torch.autograd.grad(self._pulled, self._probe, v, retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if product is None else product.detach()

    def symmetrised(self, v: Tensor) -> Tensor:
        """Return (J + J^T) v / 2."""
        return (self(v) + self.transposed(v)) / 2

    def squared(self, v: Tensor) -> Tensor:
        """Return J^T J v."""
        return self.transposed(self(v))


def _arnoldi(apply: Map, start: Tensor, steps: int) -> list[Tensor]:
    """Return, for each sample, the Hessenberg matrix `(depth + 1, depth)`, float64, of its Krylov space.

    Every vector is made orthogonal to all earlier ones twice. For a symmetric map this is Lanczos' method with full
    reorthogonalisation. A sample whose space is invariant under the map ends early. Source: W. E. Arnoldi 1951,
    doi:10.1090/qam/42792.
    """
    real = torch.view_as_real(start) if start.is_complex() else start
    flat = real.reshape(start.shape[0], -1)
    batch, size = flat.shape
    steps = min(steps, size)
    hessenberg = torch.zeros((batch, steps + 1, steps), dtype=torch.float64, device=start.device)
    depth = torch.full((batch,), steps, device=start.device)
    scale = torch.zeros(batch, dtype=torch.float64, device=start.device)
    basis = flat.new_zeros((batch, steps + 1, size))
    basis[:, 0] = flat / _wide(norms(flat), flat)
    for step in range(steps):
        last = basis[:, step].reshape(real.shape)
        vector = apply(torch.view_as_complex(last) if start.is_complex() else last)
        moved = (torch.view_as_real(vector) if start.is_complex() else vector).reshape(batch, -1)
        scale = torch.maximum(scale, norms(moved))
        kept = basis[:, : step + 1]
        for _ in range(2):
            overlap = kept @ moved[:, :, None]
            hessenberg[:, : step + 1, step] += overlap[:, :, 0].double()
            moved = moved - (overlap.transpose(1, 2) @ kept)[:, 0]
        length = norms(moved)
        hessenberg[:, step + 1, step] = length
        going = (length > 10 * torch.finfo(flat.dtype).eps * scale) & (depth == steps)
        depth = torch.where(going | (depth < steps), depth, step + 1)
        if not bool(going.any()):
            break
        # what is left of an invariant space is rounding
        basis[:, step + 1] = torch.where(going[:, None], moved / _wide(length.clamp(min=_TINY), moved), 0)
    return [matrix[: int(one) + 1, : int(one)].cpu() for matrix, one in zip(hessenberg, depth, strict=True)]


def _symmetric_ends(matrices: list[Tensor]) -> tuple[Tensor, Tensor, float]:
    """Return the smallest and largest Ritz values `(batch,)` of a symmetric map, and the largest of their residuals."""
    smallest, largest, residual = [], [], 0.0
    for matrix in matrices:
        square = matrix[:-1]
        values, vectors = torch.linalg.eigh((square + square.T) / 2)
        smallest.append(values[0])
        largest.append(values[-1])
        residual = max(residual, float(matrix[-1, -1] * vectors[-1, [0, -1]].abs().max()))
    return torch.stack(smallest), torch.stack(largest), residual


@torch.no_grad()
def asymmetry(
    function: Map, images: Tensor, generator: torch.Generator, *, probes: int = 8, difference: float = 0.0
) -> Estimate:
    """Return E ||J v - J^T v||^2 / (E ||J v||^2 + E ||J^T v||^2), v with random signs, J the Jacobian at the images.

    0 for a symmetric Jacobian, so for a gradient field; 1 where J and J^T have nothing in common; 2 for an
    antisymmetric one. It is ||J - J^T||^2 / (2 ||J||^2) in Frobenius norms, twice the share of ||J||^2 that the
    antisymmetric part has. The error is that over the images; for a single image, that over its probes.

    Source: expectations as in M. F. Hutchinson 1990, doi:10.1080/03610919008812866.

    Parameters
    ----------
    function
        The denoiser, or any other map of images to images.
    images
        Where J is taken `(batch, y, x)`.
    probes
        Vectors v for each image.
    difference
        0 for exact J v; else the relative length of a central difference, for a map whose gradient has no gradient.
    """
    jacobian = _Jacobian(function, images, difference)
    above, below = [], []
    for _ in range(probes):
        v = _signs(images, generator)
        forward, backward = jacobian(v), jacobian.transposed(v)
        above.append(norms(forward - backward) ** 2)
        below.append(norms(forward) ** 2 + norms(backward) ** 2)
    return Estimate.of_ratio(_independent(torch.stack(above, 1)), _independent(torch.stack(below, 1)))


@dataclass(frozen=True)
class Spectrum:
    """Extreme eigenvalues over some images; probes are images.

    Parameters
    ----------
    smallest, largest
        Eigenvalues of the symmetric part (J + J^T) / 2. The true ones lie outside: smallest is an upper bound of the
        smallest, largest a lower bound of the largest.
    norm
        ||J||_2, from below.
    residual
        Each value is within this distance of an eigenvalue (of J^T J for the square of the norm).
    steps
        Dimension of the Krylov spaces.
    """

    smallest: Estimate
    largest: Estimate
    norm: Estimate
    residual: float
    steps: int


@torch.no_grad()
def symmetric_spectrum(
    function: Map, images: Tensor, generator: torch.Generator, *, steps: int = 40, difference: float = 0.0
) -> Spectrum:
    """Return the ends of the spectrum of (J + J^T) / 2 and the norm of J at each image.

    By Lanczos' method with full reorthogonalisation; on J^T J its space holds the iterate of the power method, so the
    norm is never below what as many power iterations find.

    Parameters
    ----------
    images
        Where J is taken `(batch, y, x)`.
    steps
        Of Lanczos' method, one product with J and one with J^T each, for either spectrum.
    difference
        As in `asymmetry`.
    """
    jacobian = _Jacobian(function, images, difference)
    smallest, largest, residual = _symmetric_ends(_arnoldi(jacobian.symmetrised, _normal(images, generator), steps))
    _, square, other = _symmetric_ends(_arnoldi(jacobian.squared, _normal(images, generator), steps))
    return Spectrum(
        Estimate.of(smallest),
        Estimate.of(largest),
        Estimate.of(square.clamp(min=0).sqrt()),
        max(residual, other),
        steps,
    )


# --- properties of pairs and cycles of images ------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """How often an inequality was violated beyond rounding, and the value that it bounds."""

    rate: Rate
    value: Estimate


@dataclass(frozen=True)
class Pairwise:
    """Inequalities between D(a), D(b), a and b over pairs of images.

    Parameters
    ----------
    monotone
        <D(a) - D(b), a - b> / ||a - b||^2 is not negative.
    nonexpansive
        ||D(a) - D(b)|| / ||a - b|| is at most one.
    firmly_nonexpansive
        (<D(a) - D(b), a - b> - ||D(a) - D(b)||^2) / ||a - b||^2 is not negative.
    """

    monotone: Check
    nonexpansive: Check
    firmly_nonexpansive: Check


@torch.no_grad()
def pairwise(function: Map, pairs: tuple[Tensor, Tensor]) -> Pairwise:
    """Return how often the map violates what a proximal map satisfies for each pair of images.

    Parameters
    ----------
    pairs
        First and second images, each `(pair, y, x)`.

    Raises
    ------
    BadInput
        The images of a pair are equal, or the shapes differ.
    """
    first, second = pairs
    if first.shape != second.shape:
        raise BadInput(f"first images of shape {tuple(first.shape)}, second ones of shape {tuple(second.shape)}")
    return _pairwise(first, second, function(first), function(second))


def _pairwise(first: Tensor, second: Tensor, at_first: Tensor, at_second: Tensor) -> Pairwise:
    apart, moved = first - second, at_first - at_second
    distance = norms(apart)
    if not bool((distance > 0).all()):
        raise BadInput("the two images of a pair are equal")
    expansion = norms(moved) / distance
    inner = _dots(moved, apart) / distance**2
    # differences of nearly equal images lose digits
    size = norms(first) + norms(second) + norms(at_first) + norms(at_second)
    rounding = _ROUNDING * torch.finfo(first.dtype).eps * size / distance * expansion.clamp(min=1)
    firm = inner - expansion**2
    return Pairwise(
        Check(Rate.of(inner < -rounding), Estimate.of(inner)),
        Check(Rate.of(expansion > 1 + rounding), Estimate.of(expansion)),
        Check(Rate.of(firm < -rounding), Estimate.of(firm)),
    )


@dataclass(frozen=True)
class Cycles:
    """Closed ways through images.

    Parameters
    ----------
    monotone
        sum <D(a_i), a_i - a_i+1> / sum ||a_i - a_i+1||^2 over each cycle is not negative, by length of the cycle.
    integral
        |line integral of D| / integral of ||D|| along straight edges, 0 for a gradient field.
    quadrature_error
        Largest difference of such an integral, so divided, from the one with half the panels.
    lengths
        Number of images in the cycles.
    """

    monotone: Mapping[int, Check]
    integral: Estimate
    quadrature_error: float
    lengths: tuple[int, ...]


@torch.no_grad()
def cyclic(
    function: Map,
    images: Tensor,
    generator: torch.Generator,
    *,
    lengths: Sequence[int] = (3, 4, 5),
    cycles: int = 20,
    loops: int = 4,
    panels: int = 8,
) -> Cycles:
    """Return whether the map is cyclically monotone, and its integrals along closed loops.

    Cyclic monotonicity for all cycles makes a map the (sub)gradient of a convex function (R. T. Rockafellar 1966,
    doi:10.2140/pjm.1966.17.497).

    Parameters
    ----------
    images
        What the cycles are drawn from `(batch, y, x)`; cycles longer than the batch are left out.
    cycles, loops
        Number of cycles of each length that are tested, and of those along which the map is integrated.
    panels
        Of the Clenshaw-Curtis rule on each edge, a multiple of four: exact for polynomials up to that degree.

    Raises
    ------
    BadInput
        Fewer images than the shortest cycle needs, or `panels` is no multiple of four.
    """
    usable = tuple(length for length in lengths if 3 <= length <= images.shape[0])
    if not usable:
        raise BadInput(f"{images.shape[0]} images are too few for cycles of {tuple(lengths)}, of at least 3 images")
    if panels < 4 or panels % 4:
        raise BadInput(f"{panels} panels on each edge; a multiple of 4 is needed")
    values = _by_parts(function, images)
    fine, coarse = _clenshaw_curtis(panels), _clenshaw_curtis(panels // 2)
    along = ((1 - torch.cos(torch.pi * torch.arange(1, panels, dtype=torch.float64) / panels)) / 2).to(images.device)
    monotone, integrals, errors = {}, [], [0.0]
    for length in usable:
        sums, bounds = [], []
        for number in range(cycles):
            chosen = torch.randperm(images.shape[0], generator=generator)[:length].to(images.device)
            here, field = images[chosen], values[chosen]
            edges = here.roll(-1, 0) - here
            # the edges of a closed way add up to nothing, so any constant may be taken from D
            inner = _dots(field - field[:1], -edges)
            steps = norms(edges)
            whole = (steps**2).sum()
            sums.append(inner.sum() / whole)
            bounds.append(_ROUNDING * torch.finfo(images.dtype).eps * (norms(field) * steps).sum() / whole)
            if number >= loops:
                continue
            total, half, size = 0.0, 0.0, 0.0
            for start, edge, first, last in zip(here, edges, field, field.roll(-1, 0), strict=True):
                between = start + along.to(images.real.dtype)[:, None, None] * edge
                on_edge = torch.cat([first[None], _by_parts(function, between), last[None]])
                tangential = _dots(on_edge - field[:1], edge[None].expand_as(on_edge)).cpu()
                total += float(fine @ tangential)
                half += float(coarse @ tangential[::2])
                size += float((fine @ norms(on_edge).cpu()) * norms(edge[None]).cpu())
            integrals.append(abs(total) / max(size, _TINY))
            errors.append(abs(total - half) / max(size, _TINY))
        found = torch.stack(sums)
        monotone[length] = Check(Rate.of(found < -torch.stack(bounds)), Estimate.of(found))
    return Cycles(monotone, Estimate.of(torch.tensor(integrals, dtype=torch.float64)), max(errors), usable)


def _clenshaw_curtis(panels: int) -> Tensor:
    """Return the weights `(panels + 1,)`, float64, on [0, 1] for nodes (1 - cos(pi k / panels)) / 2, panels even.

    Source: J. Waldvogel 2006, doi:10.1007/s10543-006-0045-4.
    """
    node = torch.arange(panels + 1, dtype=torch.float64)
    order = torch.arange(1, panels // 2 + 1, dtype=torch.float64)
    share = torch.where(order == panels // 2, 1.0, 2.0) / (4 * order**2 - 1)
    weights = 1 - (share * torch.cos(2 * torch.pi * node[:, None] * order / panels)).sum(1)
    ends = (node == 0) | (node == panels)
    return weights / panels / torch.where(ends, 2.0, 1.0)


# --- the evidence for a proximal map ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProximalSettings:
    """How much is measured for a `ProximalReport`.

    Parameters
    ----------
    noise
        Of the noisy copies of the images, relative to the root mean square of each.
    probes, steps, cycles, loops, panels
        As in `asymmetry`, `symmetric_spectrum` and `cyclic`.
    tolerance
        What counts as zero: of the share of the antisymmetric part in the norm of the Jacobian, of a negative
        eigenvalue, and of an excess of the largest singular value over one.
    difference
        As in `asymmetry`.
    """

    noise: float = 0.05
    probes: int = 8
    steps: int = 40
    cycles: int = 20
    loops: int = 4
    panels: int = 8
    tolerance: float = 1e-5
    difference: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """Whether the measurements are consistent with a property, in a sentence with the numbers."""

    consistent: bool
    words: str


@dataclass(frozen=True)
class ProximalReport:
    """The evidence for and against a map being a proximal map.

    Pairs, cycles and noisy copies share images, so their intervals say little about further images where these are few.

    Parameters
    ----------
    asymmetry, spectrum
        At the images and their noisy copies.
    pairs
        By kind: "images" among each other, "noisy" and "transformed" an image and its copy.
    cycles
        Through images and copies.
    verdicts
        By property: symmetric, monotone, nonexpansive, firmly_nonexpansive, cyclically_monotone, conservative, and
        what follows: proximal (map of some function), proximal_convex.
    """

    asymmetry: Estimate
    spectrum: Spectrum
    pairs: Mapping[str, Pairwise]
    cycles: Cycles
    verdicts: Mapping[str, Verdict]


@torch.no_grad()
def proximal_report(
    function: Map,
    images: Tensor,
    generator: torch.Generator,
    *,
    transforms: Sequence[Transform] = (),
    settings: ProximalSettings | None = None,
) -> ProximalReport:
    """Return all measurements of this module about a proximal map, with a verdict on each property.

    Parameters
    ----------
    function
        The denoiser D. It has to take batches of any size.
    images
        Points of interest `(batch, y, x)`, at least two: reconstructions, true images, or random ones.
    transforms
        Give further copies of the images.

    Raises
    ------
    BadInput
        Fewer than two images.
    """
    settings = settings or ProximalSettings()
    count = images.shape[0]
    if count < 2:
        raise BadInput(f"{count} image; pairs need at least 2")
    images = images.detach()
    noise = _normal(images, generator)
    noisy = images + _wide(settings.noise * norms(images) / norms(noise), noise) * noise
    pool = torch.cat([images, noisy, *(transform.apply(images) for transform in transforms)])
    values = _by_parts(function, pool)
    couples = torch.tensor(list(combinations(range(count), 2)), device=pool.device)
    own = torch.arange(count, device=pool.device)
    index = {"images": (couples[:, 0], couples[:, 1]), "noisy": (own, own + count)}
    if transforms:
        copies = torch.arange(2 * count, pool.shape[0], device=pool.device)
        # a transform may leave an image as it is
        copies = copies[norms(pool[copies] - pool[copies % count]) > 0]
        if copies.numel():
            index["transformed"] = (copies % count, copies)
    pairs = {name: _pairwise(pool[a], pool[b], values[a], values[b]) for name, (a, b) in index.items()}
    points = pool[: 2 * count]
    skew = asymmetry(function, points, generator, probes=settings.probes, difference=settings.difference)
    spectrum = symmetric_spectrum(function, points, generator, steps=settings.steps, difference=settings.difference)
    cycles = cyclic(function, pool, generator, cycles=settings.cycles, loops=settings.loops, panels=settings.panels)
    return ProximalReport(
        skew, spectrum, pairs, cycles, _verdicts(skew, spectrum, pairs, cycles, settings.tolerance, pool.dtype)
    )


def _verdicts(
    skew: Estimate,
    spectrum: Spectrum,
    pairs: Mapping[str, Pairwise],
    cycles: Cycles,
    tolerance: float,
    dtype: torch.dtype,
) -> dict[str, Verdict]:
    def of_pairs(name: str) -> tuple[bool, str]:
        checks: dict[str, Check] = {kind: getattr(pair, name) for kind, pair in pairs.items()}
        broken = [f"{check.rate} pairs ({kind})" for kind, check in checks.items() if check.rate.violations]
        total = sum(check.rate.probes for check in checks.values())
        return not broken, f"violated in {', '.join(broken)}" if broken else f"no violation in {total} pairs"

    def verdict(name: str, holds: bool, words: str) -> Verdict:
        return Verdict(holds, f"{'Consistent with' if holds else 'Not'} {name} at the points tested: {words}.")

    antisymmetric = math.sqrt(max(skew.mean, 0.0) / 2)
    symmetric = antisymmetric <= tolerance
    monotone, in_pairs = of_pairs("monotone")
    monotone = monotone and spectrum.smallest.least >= -tolerance
    nonexpansive, by_distance = of_pairs("nonexpansive")
    nonexpansive = nonexpansive and spectrum.norm.greatest <= 1 + tolerance
    firm, by_both = of_pairs("firmly_nonexpansive")
    firm = firm and monotone and nonexpansive
    broken = [
        f"{check.rate} cycles of {length} images" for length, check in cycles.monotone.items() if check.rate.violations
    ]
    tested = sum(check.rate.probes for check in cycles.monotone.values())
    limit = cycles.quadrature_error + 2 * torch.finfo(dtype).eps
    conservative = cycles.integral.mean <= limit
    ends = f"smallest eigenvalue of the symmetric part {spectrum.smallest.least:.3g} (0 or more is allowed)"
    largest = f"largest singular value {spectrum.norm.greatest:.6g} (1 or less is allowed)"
    result = {
        "symmetric": verdict(
            "a symmetric Jacobian",
            symmetric,
            f"asymmetry {skew}; the antisymmetric part is {100 * antisymmetric:.2g} % of the Jacobian",
        ),
        "monotone": verdict("a monotone map", monotone, f"{in_pairs}; {ends}"),
        "nonexpansive": verdict("a nonexpansive map", nonexpansive, f"{by_distance}; {largest}"),
        "firmly_nonexpansive": verdict("a firmly nonexpansive map", firm, f"{by_both}; {ends}; {largest}"),
        "cyclically_monotone": verdict(
            "a cyclically monotone map",
            not broken,
            f"violated in {', '.join(broken)}" if broken else f"no violation in {tested} cycles",
        ),
        "conservative": verdict(
            "a gradient field",
            conservative,
            f"loop integral {cycles.integral}, quadrature and rounding error {limit:.2g}",
        ),
    }
    gradient = ["symmetric", "monotone", "cyclically_monotone", "conservative"]
    for name, what, needed in (
        ("proximal", "the proximal map of some function", gradient),
        (
            "proximal_convex",
            "the proximal map of a convex function",
            [*gradient, "nonexpansive", "firmly_nonexpansive"],
        ),
    ):
        against = [other.replace("_", " ") for other in needed if not result[other].consistent]
        result[name] = verdict(
            what,
            not against,
            f"it is not {', not '.join(against)}" if against else "nothing measured speaks against it",
        )
    return result


# --- equivariance ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transform:
    """T_g and the inverse of it, on images `(batch, y, x)`."""

    apply: Map
    undo: Map


def quarter_turns_and_flips() -> tuple[Transform, ...]:
    """Return the seven quarter turns and flips of a square image that change it; exact."""

    def made(turns: int, flip: bool) -> Transform:
        def apply(image: Tensor) -> Tensor:
            return torch.rot90(image.flip(-1) if flip else image, turns, (-2, -1))

        def undo(image: Tensor) -> Tensor:
            turned = torch.rot90(image, -turns, (-2, -1))
            return turned.flip(-1) if flip else turned

        return Transform(apply, undo)

    return tuple(made(turns, flip) for flip in (False, True) for turns in range(4) if turns or flip)


def rotations(angles_rad: Sequence[float]) -> tuple[Transform, ...]:
    """Return rotations by angles in radians, interpolated (`groups.rotate`)."""

    def made(angle: float) -> Transform:
        def turned(image: Tensor, by: float) -> Tensor:
            return rotate(image, torch.full((image.shape[0],), by, dtype=image.real.dtype, device=image.device))

        return Transform(lambda image: turned(image, angle), lambda image: turned(image, -angle))

    return tuple(made(angle) for angle in angles_rad)


@dataclass(frozen=True)
class EquivarianceError:
    """Relative errors, root mean square over transforms and images; probes are images, or transforms for one image.

    Parameters
    ----------
    error
        What is left of `raw` without `floor`: the root of the mean difference of their squares, zero if negative.
    raw
        As measured.
    floor
        What interpolation alone explains: the round trip T_g^-1 T_g interpolates twice, so half of the squared change
        that it makes, on each side of the comparison where one interpolation enters.
    """

    error: Estimate
    raw: Estimate
    floor: Estimate


def _whole(image: Tensor) -> Tensor:
    return image


@torch.no_grad()
def equivariance_error(
    function: Map, images: Tensor, transforms: Mapping[str, Sequence[Transform]], *, seen: Map = _whole
) -> dict[str, EquivarianceError]:
    """Return ||F(T_g x) - T_g F(x)|| / ||F(x)|| for each group of transforms.

    With F = D this is the equivariance error of the denoiser, with F(x) = f(A x) and true images x that of the
    reconstruction. One interpolation enters before F and one after it; the floor is that of both round trips,
    (||F(T_g^-1 T_g x) - F(x)||^2 + ||T_g^-1 T_g F(x) - F(x)||^2) / 2, which takes one more F for each transform that is
    not exact.

    Parameters
    ----------
    images
        x `(batch, y, x)`.
    transforms
        By name of the group; exact and interpolated transforms should have groups of their own.
    seen
        Gives the part of an image that counts in all norms, as `Physics.seen`.
    """
    value = function(images)

    def change(transform: Transform) -> tuple[Tensor, list[Tensor]]:
        moved = transform.apply(images)
        back, turned = transform.undo(moved), transform.apply(value)
        before = function(back) - value if bool((back != images).any()) else torch.zeros_like(value)
        return function(moved) - turned, [before, transform.undo(turned) - value]

    return _equivariance(change, value, transforms, seen)


@torch.no_grad()
def equivariance_gap(
    function: Map, images: Tensor, transforms: Mapping[str, Sequence[Transform]], *, seen: Map = _whole
) -> dict[str, EquivarianceError]:
    """Return ||F(T_g x) - T_g x|| / ||x|| for each group of transforms, with F(x) = f(A x) and x a reconstruction f(y).

    Needs no true images. One interpolation enters, that of x: the floor is ||T_g^-1 T_g x - x||^2 / 2. Source: D. Chen,
    J. Tachella, M. E. Davies 2021, arXiv:2103.14756, eq. 8.

    Parameters
    ----------
    images, transforms, seen
        As in `equivariance_error`.
    """

    def change(transform: Transform) -> tuple[Tensor, list[Tensor]]:
        moved = transform.apply(images)
        return function(moved) - moved, [transform.undo(moved) - images]

    return _equivariance(change, images, transforms, seen)


def _equivariance(
    change: Callable[[Transform], tuple[Tensor, list[Tensor]]],
    value: Tensor,
    transforms: Mapping[str, Sequence[Transform]],
    seen: Map,
) -> dict[str, EquivarianceError]:
    """Return the errors from the difference and the changes by round trips, all `(batch, y, x)`, of each transform."""
    size = norms(seen(value)).clamp(min=_TINY)
    result = {}
    for name, group in transforms.items():
        if not group:
            raise BadInput(f"the group {name!r} has no transform")
        raw, floor = [], []
        for transform in group:
            difference, trips = change(transform)
            raw.append((norms(seen(difference)) / size) ** 2)
            floor.append(torch.stack([(norms(seen(trip)) / size) ** 2 for trip in trips]).sum(0) / 2)
        measured, trip = _independent(torch.stack(raw, 1)), _independent(torch.stack(floor, 1))
        result[name] = EquivarianceError(
            Estimate.of(measured - trip).root(), Estimate.of(measured).root(), Estimate.of(trip).root()
        )
    return result


# --- convergence -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contraction:
    """The Jacobian J of the iteration at a point, over the images of a batch.

    Parameters
    ----------
    radius
        Spectral radius: plain iterations near the solution converge if it is below one, and by this factor a step.
    norm
        ||J||_2, from below: the iteration contracts every distance near the point if it is below one.
    residual
        Of the eigenpairs (lambda, q) behind the radius, the largest ||J q - lambda q|| / ||q||.
    """

    radius: Estimate
    norm: Estimate
    residual: float


@torch.no_grad()
def contraction(
    step: Map, x_star: Tensor, generator: torch.Generator, *, steps: int = 40, difference: float = 0.0
) -> Contraction:
    """Return how the map T contracts at its fixed points, from Krylov spaces of dT/dx and of its square.

    Parameters
    ----------
    step
        x -> T(x, y).
    x_star
        The fixed points `(batch, y, x)`.
    steps
        Dimension of the Krylov spaces.
    difference
        As in `asymmetry`.
    """
    jacobian = _Jacobian(step, x_star, difference)
    radii, residual = [], 0.0
    for matrix in _arnoldi(jacobian, _normal(x_star, generator), steps):
        values, vectors = torch.linalg.eig(matrix[:-1])
        leading = int(values.abs().argmax())
        radii.append(values[leading].abs())
        residual = max(residual, float(matrix[-1, -1] * vectors[-1, leading].abs()))
    _, square, _ = _symmetric_ends(_arnoldi(jacobian.squared, _normal(x_star, generator), steps))
    return Contraction(Estimate.of(torch.stack(radii)), Estimate.of(square.clamp(min=0).sqrt()), residual)


def residual_ratio(residuals: Tensor) -> Estimate:
    """Return the factor by which the residuals of a solve fell a step, over the later half of the steps of each sample.

    For plain iterations it tends to the spectral radius; an accelerated solve is faster. What follows the last change
    of a residual is left out: there the sample had stopped.

    Parameters
    ----------
    residuals
        `(step, batch)`, as in `Solution.residuals`.

    Raises
    ------
    BadInput
        A sample has fewer than two different residuals.
    """
    factors = []
    for column in residuals.detach().double().cpu().T:
        changes = torch.nonzero(column.diff())
        if changes.numel() == 0:
            raise BadInput(f"a rate needs at least two different residuals, of {residuals.shape[0]} steps")
        last = int(changes[-1]) + 1
        first = last // 2
        factors.append((column[last] / column[first].clamp(min=_TINY)) ** (1 / (last - first)))
    return Estimate.of(torch.stack(factors))


@dataclass(frozen=True)
class StartSensitivity:
    """How solves from different starts differ; probes are pairs of starts of one image.

    Parameters
    ----------
    distance
        ||x_a - x_b|| / ||x|| between solutions, with ||x|| the root mean square norm of the two.
    start_distance
        The same between the starts.
    """

    distance: Estimate
    start_distance: Estimate


@torch.no_grad()
def start_sensitivity(solve_from: Map, starts: Sequence[Tensor]) -> StartSensitivity:
    """Return how far apart the solutions from different starts are; next to nothing for a unique fixed point.

    Parameters
    ----------
    solve_from
        Gives the solutions `(batch, y, x)` for starts of the same shape.
    starts
        At least two.
    """
    if len(starts) < 2:
        raise BadInput(f"{len(starts)} start; at least 2 are needed")

    def distances(images: Sequence[Tensor]) -> Estimate:
        apart = [
            norms(a - b) / ((norms(a) ** 2 + norms(b) ** 2) / 2).sqrt().clamp(min=_TINY)
            for a, b in combinations(images, 2)
        ]
        return Estimate.of(torch.stack(apart))

    return StartSensitivity(distances([solve_from(start) for start in starts]), distances(starts))


# --- gradients -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GradientComparison:
    """A gradient u beside the exact one v; probes are draws.

    Parameters
    ----------
    cosine
        <u, v> / (||u|| ||v||).
    norm_ratio
        ||u|| / ||v||.
    """

    cosine: Estimate
    norm_ratio: Estimate


def gradient_cosines(gradient_of_mode: Mapping[str, Callable[[], Tensor]], exact: str) -> dict[str, GradientComparison]:
    """Return how each backward mode's gradient compares with the exact one.

    Parameters
    ----------
    gradient_of_mode
        Gives, by name of the mode, gradients of the same loss `(parameter,)`, or of several draws of it
        `(draw, parameter)`.
    exact
        The mode that is compared with.

    Raises
    ------
    BadInput
        There is no such mode, or a gradient has another shape than the exact one.
    """
    if exact not in gradient_of_mode:
        raise BadInput(f"no mode {exact!r} among {sorted(gradient_of_mode)}")
    right = _rows(gradient_of_mode[exact]())
    result = {}
    for name, gradient in gradient_of_mode.items():
        left = right if name == exact else _rows(gradient())
        if left.shape != right.shape:
            raise BadInput(
                f"the gradient of {name!r} has shape {tuple(left.shape)}, the exact one {tuple(right.shape)}"
            )
        cosine = _dots(left, right) / (norms(left) * norms(right)).clamp(min=_TINY)
        ratio = norms(left) / norms(right).clamp(min=_TINY)
        result[name] = GradientComparison(Estimate.of(cosine), Estimate.of(ratio))
    return result


# --- where the error lies --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ErrorParts:
    """The error e = x_hat - x of reconstructions relative to ||x||; probes are images.

    Parameters
    ----------
    null
        ||(I - A^+ A) e|| / ||x||: the part that the measurements do not see.
    range
        ||A^+ A e|| / ||x||: the part that they see.
    total
        ||e|| / ||x||.
    remaining
        Largest ||A (e - A^+ A e)|| / ||A e||, zero for an exact projection. What measurements see only weakly takes
        many steps to be found, and counts as null until then.
    outcome
        How the projection stopped.
    """

    null: Estimate
    range: Estimate
    total: Estimate
    remaining: float
    outcome: Outcome


@torch.no_grad()
def error_parts(x_hat: Tensor, x: Tensor, physics: Physics, *, steps: int = 100, tolerance: float = 1e-4) -> ErrorParts:
    """Return how much of the error of reconstructions the measurements see.

    A^+ A e is the solution of least norm of A z = A e, found by conjugate gradients on the normal equations from zero.

    Parameters
    ----------
    x_hat, x
        Reconstructions and true images `(batch, y, x)`.
    steps, tolerance
        Of the conjugate gradients; the tolerance is that of the gradient relative to the first one.
    """
    error = x_hat - x
    measured = physics.forward(error)
    solved = conjugate_gradients(physics, measured, damping=0.0, tolerance=tolerance, max_steps=steps)
    null = error - solved.image
    size = norms(x).clamp(min=_TINY)
    remaining = norms(physics.forward(null)) / norms(measured).clamp(min=_TINY)
    return ErrorParts(
        Estimate.of(norms(null) / size),
        Estimate.of(norms(solved.image) / size),
        Estimate.of(norms(error) / size),
        float(remaining.max()),
        solved.outcome,
    )


# --- batches of images as vectors ------------------------------------------------------------------------------------


def _dots(left: Tensor, right: Tensor) -> Tensor:
    """Return Re <left, right> of each sample `(batch,)`, float64."""
    product = (left.conj() * right).real if left.is_complex() else left * right
    return product.reshape(left.shape[0], -1).double().sum(1)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """Return one value a sample, real of the precision of `like`, to be multiplied with it."""
    return values.to(like.real.dtype).reshape(-1, *([1] * (like.ndim - 1)))


def _independent(values: Tensor) -> Tensor:
    """Return one mean for each image of `(image, probe)`; for a single image, its probes."""
    return values.mean(1) if values.shape[0] > 1 else values[0]


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal values, of real and imaginary part each, shaped as `like`."""
    real = torch.view_as_real(like) if like.is_complex() else like
    drawn = torch.randn(real.shape, generator=generator, dtype=torch.float64).to(real)
    return torch.view_as_complex(drawn) if like.is_complex() else drawn


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw 1 or -1, for real and imaginary part each, shaped as `like`."""
    real = torch.view_as_real(like) if like.is_complex() else like
    drawn = (2 * torch.randint(2, real.shape, generator=generator) - 1).to(real)
    return torch.view_as_complex(drawn) if like.is_complex() else drawn


def _by_parts(function: Map, images: Tensor, size: int = 8) -> Tensor:
    """Return F(images), a few at a time to bound the memory."""
    return torch.cat([function(images[first : first + size]) for first in range(0, images.shape[0], size)])


def _rows(gradients: Tensor) -> Tensor:
    """Return gradients as `(draw, parameter)`, for one or for several draws."""
    return gradients.detach().reshape(-1, gradients.shape[-1])
