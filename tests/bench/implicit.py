"""Measure what a training step through the equilibrium node costs, beside the same step by two other libraries.

    python tests/bench/implicit.py [--modality ct|mri] [--side 96] [--batch 2] [--device cpu|cuda] [--json]

The step is recorrupted consistency plus equivariance (two solves, the second on what the first gave) with all draws
fixed. Every contender sees the same map T, the same start and the same draws, and is held against the gradient found
in double precision with tight tolerances. Tolerances are tightened until a gradient error is met, each time the one of
the forward or adjoint solve that lowers the error more; the first settings that meet it are timed, all contenders in
turn, and their peak memory is taken.

The other two are restated here from their sources, not imported:

* deepinv 0.5.0 (as at 3f832a7c): `deepinv/optim/fixed_point.py` lines 169-260 (Anderson step: absolute `eps` added to
  the Gram matrix, damping `beta`) and 329-366 (loop; no stop before the third step); `deepinv/optim/optimizers.py`
  lines 48-80 (defaults), 706-742 (stop on the step length relative to the iterate, mean over the batch), 744-827
  (`DEQ_additional_step`: a tracked step and a second graph `f0`, both alive until the hook on the first has solved the
  adjoint system by the forward solve's loop and threshold, started from the gradient).
* torchdeq 0.1.0 (as at 4f6bd5fa): `torchdeq/solver/anderson.py` lines 62-112 (two plain steps first, absolute `lam`,
  stop on the worst sample), `torchdeq/solver/fp_iter.py` lines 54-78, `torchdeq/solver/utils.py` lines 34-129 (best
  iterate kept by multiplication with a mask), `torchdeq/grad.py` lines 155-181 (a tracked step, and one more graph
  built in the backward pass, whose system is solved from zero), `torchdeq/core.py` lines 72-80 and 226 (defaults;
  without `ift` the gradient is that of one step). `lam` of the adjoint solve cannot be set there.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from equipoise_engine.classical import starting_image
from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.device import device_name
from equipoise_engine.equilibrium import BackwardReport, BackwardSettings, ForwardSettings
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.groups import Transform, rotation_angles
from equipoise_engine.krylov import gmres
from equipoise_engine.losses import Reconstruction, equivariance, measurement_consistency, recorrupt
from equipoise_engine.model import EquilibriumModel
from equipoise_engine.mri import CartesianPhysics, undersampling_mask
from equipoise_engine.networks import as_channels, from_channels
from equipoise_engine.operators import Physics, norms
from equipoise_engine.phantoms import random_coil_maps, random_phase, simulate_kspace, tissue_images
from equipoise_engine.reproduce.part import peak_memory
from equipoise_engine.solve import Anderson, Solution, Stop
from equipoise_engine.weights import read_checkpoint
from equipoise_resources import weights_path

TARGETS = (0.05, 0.01)
FORWARD = tuple(10 ** (-k / 2) for k in range(6, 14))
ADJOINT = tuple(10 ** (-k / 2) for k in range(2, 8))
LARGEST_SOLVE = 300
LARGEST_ADJOINT = 100
LARGEST_WORK = 600
"""Evaluations and products of a step; tolerances that need more are not tried further."""
PICARD = Anderson(memory=0)
Row = dict[str, Any]
Map = Callable[[Tensor], Tensor]


# --- the problem ---


@dataclass(frozen=True)
class Problem:
    """A training step: the model, recorrupted measurements, the half held against, fresh noise, and the transform."""

    model: EquilibriumModel
    physics: Physics
    given: Tensor
    target: Tensor
    noise: Tensor
    transform: Transform

    def double(self) -> Problem:
        """Return the same in double precision."""

        def wide(t: Tensor) -> Tensor:
            return t.to(torch.complex128 if t.is_complex() else torch.float64)

        model = copy.deepcopy(self.model).double()
        return replace(self, model=model, given=wide(self.given), target=wide(self.target), noise=wide(self.noise))

    def loss(self, reconstruct: Reconstruction) -> Tensor:
        """Return the training loss `()`."""
        x_hat = reconstruct(self.given, self.physics)
        consistency = measurement_consistency(x_hat, self.target, self.physics).mean()
        return (
            consistency
            + equivariance(
                x_hat, self.physics, reconstruct, transform=self.transform, corrupt=lambda measured: self.noise
            ).mean()
        )


def build_problem(modality: str, side: int, batch: int, device: torch.device) -> Problem:
    """Return the step on tissue-like phantoms with the shipped weights; sparse views, or a quarter of k-space."""
    generator = torch.Generator().manual_seed(0)
    images = tissue_images(batch, side, generator)
    step_rad = None
    if modality == "ct":
        views = 5 * side // 16
        step_rad = math.pi / views
        angles = np.linspace(0, np.pi, views, endpoint=False)
        physics: Physics = TomographyPhysics(ParallelBeam(angles, 1.0, (side - 1) / 2), side)
        y = physics.forward(images)
        level = 0.005 * float(y.max())
        y = y + level * physics.noise_like(y, generator)
    else:
        maps = random_coil_maps(4, side, generator)
        mask = torch.from_numpy(undersampling_mask(np.ones((side, side), dtype=np.bool_), 4, centre_lines=side // 12))
        physics = CartesianPhysics(maps[None], mask)
        level = 0.01
        y = simulate_kspace(images * random_phase(batch, side, generator), maps, level, generator) * mask
    given, target = recorrupt(y, level * physics.noise_like(y, generator))
    fresh = level * physics.noise_like(y, generator)
    turn = Transform(angle_rad=rotation_angles(batch, generator, avoid_step_rad=step_rad))
    model = read_checkpoint(weights_path(modality)).model(device)
    return Problem(model, physics.to(device), given.to(device), target.to(device), fresh.to(device), turn.to(device))


# --- the contenders ---


class Contender(Protocol):
    """Makes the reconstruction of one step; `products` then counts adjoint products, one a sample each."""

    def start(self, model: EquilibriumModel, work: Work) -> Reconstruction:
        """Return the reconstruction, which adds its vector-Jacobian products to the work."""


@dataclass
class Work:
    """Evaluations of T and vector-Jacobian products of adjoint solves, each counted once a sample."""

    evaluations: int = 0
    products: int = 0
    reports: list[BackwardReport] = field(default_factory=list)


@dataclass(frozen=True)
class Equipoise:
    """The node of this project; per-sample stopping, Anderson acceleration, GMRES."""

    forward: ForwardSettings
    backward: BackwardSettings

    def start(self, model: EquilibriumModel, work: Work) -> Reconstruction:
        """Return the reconstruction."""

        def reconstruct(y: Tensor, physics: Physics, copies: int = 1) -> Tensor:
            report = BackwardReport()
            solver = replace(self.forward, stop=replace(self.forward.stop, copies=copies))
            value, _ = model(y, physics, solver=solver, backward=self.backward, report=report)
            work.reports.append(report)
            result: Tensor = value
            return result

        return reconstruct


def bordered_weights(differences: Tensor, added: float) -> Tensor:
    """Return the weights `(batch, memory)` of least ||sum a_i G_i||^2 + added ||a||^2 whose sum is one.

    From the bordered linear system in the precision of the iterates, as both other libraries do.
    """
    batch, memory, _ = differences.shape
    system = differences.new_zeros((batch, memory + 1, memory + 1))
    system[:, 0, 1:] = system[:, 1:, 0] = 1
    identity = torch.eye(memory, dtype=differences.dtype, device=differences.device)
    system[:, 1:, 1:] = torch.bmm(differences, differences.mT) + added * identity
    right = differences.new_zeros((batch, memory + 1, 1))
    right[:, 0] = 1
    weights: Tensor = torch.linalg.solve(system, right)[:, 1:, 0]
    return weights


class _Ring:
    """The last iterates and their images, flattened `(batch, memory, value)`."""

    def __init__(self, like: Tensor, memory: int) -> None:
        self.points = like.new_zeros((like.shape[0], memory, like[0].numel()))
        self.values = torch.zeros_like(self.points)

    def put(self, index: int, x: Tensor, value: Tensor) -> None:
        slot = index % self.points.shape[1]
        self.points[:, slot], self.values[:, slot] = x.flatten(1), value.flatten(1)

    def mix(self, count: int, added: float, share: float) -> Tensor:
        """Return the mixture of `count` values and points, flattened `(batch, value)`; `share` of the values."""
        points, values = self.points[:, :count], self.values[:, :count]
        weights = bordered_weights(values - points, added)[:, None]
        return share * (weights @ values)[:, 0] + (1 - share) * (weights @ points)[:, 0]


def graph_map(model: EquilibriumModel, y: Tensor, physics: Physics) -> Map:
    """Return x -> T(x, y) on real channels `(batch, channel, y, x)`, as both other libraries iterate."""
    function = model.map(physics)
    return lambda x: as_channels(function.step(from_channels(x), y))


def start_of(y: Tensor, physics: Physics) -> Tensor:
    """Return where all contenders start `(batch, channel, y, x)`."""
    with torch.no_grad():
        return as_channels(starting_image(physics, y.detach())).contiguous()


@dataclass(frozen=True)
class Deepinv:
    """deepinv's DEQ; the values here are its defaults. `eps` and `eps_backward` of None leave out the acceleration."""

    thres_conv: float = 1e-5
    early_stop: bool = False
    max_iter: int = 100
    max_iter_backward: int = 50
    eps: float | None = None
    eps_backward: float | None = None

    def start(self, model: EquilibriumModel, work: Work) -> Reconstruction:
        """Return the reconstruction."""

        def reconstruct(y: Tensor, physics: Physics, copies: int = 1) -> Tensor:
            step = graph_map(model, y, physics)
            with torch.no_grad():
                x = self._iterate(step, start_of(y, physics), self.max_iter, self.early_stop, 10, 0.9, self.eps)
            value = step(x)
            point = value.detach().clone().requires_grad_()
            second = step(point)

            def solve_adjoint(u: Tensor) -> Tensor:
                def product(v: Tensor) -> Tensor:
                    work.products += v.shape[0]
                    image: Tensor = torch.autograd.grad(second, point, v, retain_graph=True)[0]
                    return image + u

                return self._iterate(product, u, self.max_iter_backward, True, 5, 1.0, self.eps_backward)

            value.register_hook(solve_adjoint)  # type: ignore[no-untyped-call]
            return from_channels(value)

        return reconstruct

    def _iterate(
        self, function: Map, x: Tensor, max_iter: int, early: bool, memory: int, beta: float, eps: float | None
    ) -> Tensor:
        ring = None if eps is None else _Ring(x, memory)
        for index in range(max_iter):
            before, x = x, function(x)
            if ring is not None and eps is not None:
                ring.put(index, before, x)
                x = ring.mix(min(index + 1, memory), eps, beta).view_as(x)
            change = (before - x).flatten(1).norm(dim=-1) / (x.flatten(1).norm(dim=-1) + 1e-6)
            if early and index > 1 and change.mean() < self.thres_conv:
                break
        return x


class _SolvedInBackward(torch.autograd.Function):
    """torchdeq's node after the tracked step: builds the graph at its value anew and solves the adjoint system."""

    @staticmethod
    def forward(ctx: Any, step: Map, value: Tensor, solver: Callable[[Map, Tensor], Tensor], work: Work) -> Tensor:
        ctx.rest = (step, solver, work)
        ctx.save_for_backward(value.detach())
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None, None]:
        step, solver, work = ctx.rest
        (u,) = gradients
        point = ctx.saved_tensors[0].clone().requires_grad_()
        with torch.enable_grad():
            value = step(point)

        def product(v: Tensor) -> Tensor:
            work.products += v.shape[0]
            image: Tensor = torch.autograd.grad(value, point, v, retain_graph=True)[0]
            return image + u

        return None, solver(product, torch.zeros_like(u)), None, None


@dataclass(frozen=True)
class Torchdeq:
    """torchdeq's DEQ; the values here are its defaults. Anderson's `lam` can be set for the forward solve alone."""

    ift: bool = False
    f_anderson: bool = False
    b_anderson: bool = False
    f_max_iter: int = 40
    b_max_iter: int = 40
    f_tol: float = 1e-3
    b_tol: float = 1e-6
    relative: bool = False
    lam: float = 1e-4

    def start(self, model: EquilibriumModel, work: Work) -> Reconstruction:
        """Return the reconstruction."""

        def forward_solver(step: Map, x: Tensor) -> Tensor:
            if self.f_anderson:
                return self._anderson(step, x, self.f_max_iter, self.f_tol, self.lam)
            return self._picard(step, x, self.f_max_iter, self.f_tol)

        def backward_solver(step: Map, x: Tensor) -> Tensor:
            if self.b_anderson:
                return self._anderson(step, x, self.b_max_iter, self.b_tol, Torchdeq.lam)
            return self._picard(step, x, self.b_max_iter, self.b_tol)

        def reconstruct(y: Tensor, physics: Physics, copies: int = 1) -> Tensor:
            step = graph_map(model, y, physics)
            with torch.no_grad():
                x = forward_solver(step, start_of(y, physics))
            value = step(x.detach())
            if self.ift:
                value = _SolvedInBackward.apply(step, value, backward_solver, work)  # type: ignore[no-untyped-call]
            return from_channels(value)

        return reconstruct

    def _anderson(self, function: Map, x: Tensor, max_iter: int, tol: float, lam: float, memory: int = 6) -> Tensor:
        ring, best = _Ring(x, memory), _Best(x, self.relative)
        first = function(x)
        ring.put(0, x, first)
        ring.put(1, first, function(first))
        for index in range(2, max_iter):
            point = ring.mix(min(index, memory), lam, 1.0).view_as(x)
            value = function(point)
            ring.put(index, point, value)
            if best.take(point, value) < tol:
                break
        return best.value

    def _picard(self, function: Map, x: Tensor, max_iter: int, tol: float) -> Tensor:
        best, value = _Best(x, self.relative), x
        for _ in range(max_iter):
            point, value = value, function(value)
            if best.take(point, value) < tol:
                break
        return best.value


class _Best:
    """The image of least residual of each sample, as torchdeq keeps it."""

    def __init__(self, x: Tensor, relative: bool) -> None:
        self.value, self.relative = x, relative
        self.residual = torch.full((x.shape[0],), 1e8, dtype=x.dtype, device=x.device)

    def take(self, point: Tensor, value: Tensor) -> Tensor:
        """Take T(x) in if it is better, and return the worst sample's residual `()`."""
        size = (value - point).flatten(1).norm(dim=1)
        if self.relative:
            size = size / (value.flatten(1).norm(dim=1) + 1e-9)
        better = size < self.residual
        wide = better.reshape(-1, *([1] * (value.ndim - 1)))
        self.value = (wide * value + ~wide * self.value).clone()
        self.residual = better * size + ~better * self.residual
        worst: Tensor = size.max()
        return worst


# --- measuring ---


@dataclass(frozen=True)
class Measurement:
    """One step: its gradient's distance from the exact one, and its work a sample."""

    error: float
    cosine: float
    length: float
    evaluations: float
    products: float

    @property
    def work(self) -> float:
        """Evaluations and products together: either takes about one pass through the network and one through A."""
        return self.evaluations + self.products


@dataclass(frozen=True)
class Bench:
    """A problem and its exact gradient `(parameter,)`."""

    problem: Problem
    exact: Tensor

    def gradient(self, contender: Contender, work: Work | None = None) -> Tensor:
        """Return the gradient of the step `(parameter,)`, float64."""
        return gradient(self.problem, contender, work or Work())

    def measure(self, contender: Contender) -> Measurement:
        """Take one step."""
        work = Work()
        batch = self.problem.given.shape[0]

        def count(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            work.evaluations += given[0].shape[0]

        hook = self.problem.model.denoiser.register_forward_pre_hook(count)
        found = self.gradient(contender, work)
        hook.remove()
        # a solve of a part of the batch costs that part of a product
        share = (contender.backward.samples_at_once or batch) / batch if isinstance(contender, Equipoise) else 1.0
        products = work.products / batch + share * sum(sum(report.steps) for report in work.reports)
        return Measurement(
            float((found - self.exact).norm() / self.exact.norm()),
            float(found @ self.exact / (found.norm() * self.exact.norm())),
            float(found.norm() / self.exact.norm()),
            work.evaluations / batch,
            products,
        )

    def seconds(self, contenders: Sequence[Contender], repeats: int) -> list[float]:
        """Return the median time of a step of each, taken in turn."""
        times: list[list[float]] = [[] for _ in contenders]
        for _ in range(repeats):
            for kept, contender in zip(times, contenders, strict=True):
                _wait(self.problem)
                began = time.perf_counter()
                self.gradient(contender)
                _wait(self.problem)
                kept.append(time.perf_counter() - began)
        return [statistics.median(kept) for kept in times]

    def peak_mib(self, contender: Contender) -> float:
        """Return the most memory that a step holds beyond what was held before it."""
        return peak_memory(lambda: self.gradient(contender), self.problem.given.device) / 2**20


def gradient(problem: Problem, contender: Contender, work: Work) -> Tensor:
    """Return the gradient of the step `(parameter,)`, float64."""
    parameters = list(problem.model.parameters())
    found = torch.autograd.grad(problem.loss(contender.start(problem.model, work)), parameters)
    return torch.cat([part.flatten().double() for part in found])


def _wait(problem: Problem) -> None:
    if problem.given.is_cuda:
        torch.cuda.synchronize(problem.given.device)


Family = tuple[Callable[[Sequence[float]], Contender], Sequence[Sequence[float]]]
"""A contender by its tolerances, and the values to try of each, from loose to tight."""


@dataclass(frozen=True)
class Setting:
    """A contender with its tolerances, and what it gave."""

    tolerances: tuple[float, ...]
    contender: Contender
    measured: Measurement


def tightened(bench: Bench, family: Family) -> list[Setting | None]:
    """Return the first settings that meet each of `TARGETS`, None where the ladders or `LARGEST_WORK` end before.

    Each step down takes the ladder that lowers the error more.
    """
    build, ladders = family

    def at(place: Sequence[int]) -> Setting:
        tolerances = tuple(ladder[index] for ladder, index in zip(ladders, place, strict=True))
        contender = build(tolerances)
        return Setting(tolerances, contender, bench.measure(contender))

    place: tuple[int, ...] = (0,) * len(ladders)
    current = at(place)
    open_ladders = set(range(len(ladders)))
    found: list[Setting | None] = []
    for target in TARGETS:
        while current.measured.error > target:
            moves = {}
            for moved in sorted(open_ladders):
                if place[moved] + 1 == len(ladders[moved]):
                    open_ladders.remove(moved)
                    continue
                move = tuple(index + (one == moved) for one, index in enumerate(place))
                moves[move] = at(move)
                if moves[move].measured.work > LARGEST_WORK:
                    open_ladders.remove(moved)
                    del moves[move]
            if not moves:
                break
            place, current = min(moves.items(), key=lambda tried: tried[1].measured.error)
        found.append(current if current.measured.error <= target else None)
    return found


# --- the questions ---


def ours(tolerances: Sequence[float], samples_at_once: int = 0) -> Contender:
    """Return the node at a forward and an adjoint tolerance."""
    forward, adjoint = tolerances
    return Equipoise(
        ForwardSettings(stop=Stop(forward, LARGEST_SOLVE)),
        BackwardSettings(tolerance=adjoint, max_steps=LARGEST_ADJOINT, samples_at_once=samples_at_once),
    )


def against_others(bench: Bench, repeats: int) -> list[Row]:
    """Compare the step at equal gradient error, and with the settings that each library has by itself."""
    most = LARGEST_SOLVE
    one = Deepinv(early_stop=True, max_iter=most, max_iter_backward=most)
    two = Torchdeq(ift=True, relative=True, f_max_iter=most, b_max_iter=most)

    def deepinv(eps: float | None, eps_backward: float | None) -> Family:
        return lambda t: replace(one, thres_conv=t[0], eps=eps, eps_backward=eps_backward), (FORWARD,)

    def torchdeq(lam: float, f_anderson: bool, b_anderson: bool) -> Family:
        given = replace(two, lam=lam, f_anderson=f_anderson, b_anderson=b_anderson)
        return lambda t: replace(given, f_tol=t[0], b_tol=t[1]), (FORWARD, ADJOINT)

    families = {
        "equipoise": (ours, (FORWARD, ADJOINT)),
        "equipoise, a sample at a time": (lambda t: ours(t, 1), (FORWARD, ADJOINT)),
        "deepinv, plain": deepinv(None, None),
        "deepinv, Anderson, its eps": deepinv(0.1, 1e-4),
        "deepinv, Anderson, eps 1e-10": deepinv(1e-10, 1e-10),
        "torchdeq, plain": torchdeq(1e-4, False, False),
        "torchdeq, Anderson, its lam": torchdeq(1e-4, True, True),
        "torchdeq, Anderson, lam 1e-10; plain": torchdeq(1e-10, True, False),
    }
    swept = {}
    for name, family in families.items():
        print(f"tightening {name}", file=sys.stderr, flush=True)
        swept[name] = tightened(bench, family)
    listed = [
        (f"error {target:.0%}", name, found[index])
        for index, target in enumerate(TARGETS)
        for name, found in swept.items()
    ]
    shipped: dict[str, Contender] = {
        "equipoise": Equipoise(ForwardSettings(stop=Stop(1e-3, 40)), BackwardSettings()),
        "deepinv": Deepinv(),
        "deepinv, as its demo_DEQ": Deepinv(max_iter=20, max_iter_backward=20, eps=0.1, eps_backward=1e-4),
        "torchdeq": Torchdeq(),
        "torchdeq, ift": Torchdeq(ift=True),
    }
    listed += [
        ("defaults", name, Setting((), contender, bench.measure(contender))) for name, contender in shipped.items()
    ]
    running = [setting.contender for _, _, setting in listed if setting is not None]
    seconds = iter(bench.seconds(running, repeats))
    rows: list[Row] = []
    own: dict[str, Row] = {}
    for at, name, setting in listed:
        row: Row = {"at": at, "by": name}
        if setting is None:
            row["tolerances"] = "not reached"
        else:
            measured = setting.measured
            row |= {"tolerances": " ".join(f"{t:.0e}" for t in setting.tolerances)}
            row |= {"error": measured.error, "cosine": measured.cosine}
            row |= {"T": measured.evaluations, "VJP": measured.products}
            row |= {"seconds": next(seconds), "peak_mib": bench.peak_mib(setting.contender)}
            base = own.setdefault(at, row) if name == "equipoise" else own.get(at)
            if base is not None:
                row |= {f"{key} ratio": row[key] / base[key] for key in ("seconds", "peak_mib")}
        rows.append(row)
    return rows


def acceleration(bench: Bench, exact: Exact) -> list[Row]:
    """Count steps of Picard, Anderson and GMRES at equal residuals."""
    problem = bench.problem
    model, physics = problem.model, problem.physics
    rows: list[Row] = []
    for tolerance in (1e-3, 1e-4, 1e-5):
        steps = {}
        for name, method in (("Picard", PICARD), ("Anderson", Anderson())):
            solution = _solve(problem, problem.given, method, tolerance)
            steps[name] = float(solution.steps.double().mean())
        rows.append(
            {"solve": "x = T(x, y)", "tolerance": tolerance} | steps | {"ratio": steps["Picard"] / steps["Anderson"]}
        )
    point = exact.x_hat.clone().requires_grad_()
    value = model.map(physics).step(point, problem.given)

    def transposed(v: Tensor) -> Tensor:
        product: Tensor = torch.autograd.grad(value, point, v, retain_graph=True)[0]
        return product

    u = exact.again - exact.turned
    for tolerance in (1e-1, 1e-2, 1e-3):
        term, picard = u, 0
        while bool((norms(term) > tolerance * norms(u)).any()) and picard < 4 * LARGEST_SOLVE:
            term, picard = transposed(term), picard + 1
        krylov = gmres(lambda v: v - transposed(v), u, tolerance=tolerance, max_steps=LARGEST_ADJOINT).steps
        rows.append(
            {"solve": "(I - J^T) v = u", "tolerance": tolerance}
            | {"Picard": picard, "GMRES": krylov, "ratio": picard / krylov}
        )
    return rows


def _solve(problem: Problem, y: Tensor, method: Anderson, tolerance: float, start: Tensor | None = None) -> Solution:
    with torch.no_grad():
        solver = ForwardSettings(method, Stop(tolerance, 4 * LARGEST_SOLVE))
        _, solution = problem.model(y, problem.physics, solver=solver, start=start)
    result: Solution = solution
    return result


def warm_start(bench: Bench) -> list[Row]:
    """Compare warm and cold starts: of the adjoint solves, and of the forward solve after a step of the optimiser."""
    rows: list[Row] = []
    forward = ForwardSettings(stop=Stop(1e-4, LARGEST_SOLVE))
    for tolerance in (1e-1, 1e-2, 1e-3):
        found = [
            bench.measure(Equipoise(forward, BackwardSettings("implicit", tolerance, LARGEST_ADJOINT, warm_start=warm)))
            for warm in (False, True)
        ]
        rows.append(_warm_row("adjoint, span of forward steps", tolerance, [f.products for f in found]))
    problem = bench.problem
    model = copy.deepcopy(problem.model)
    cached = _solve(problem, problem.given, Anderson(), 1e-4).value
    loss = replace(problem, model=model).loss(ours((1e-4, 1e-2)).start(model, Work()))
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    moved = replace(problem, model=model)
    for tolerance in (1e-3, 1e-4):
        steps = [
            float(_solve(moved, moved.given, Anderson(), tolerance, start).steps.double().mean())
            for start in (None, cached)
        ]
        rows.append(_warm_row("forward, image of the step before", tolerance, steps))
    return rows


def _warm_row(solve: str, tolerance: float, steps: Sequence[float]) -> Row:
    cold, warm = steps
    return {"solve": solve, "tolerance": tolerance, "cold": cold, "warm": warm, "ratio": cold / warm}


@dataclass(frozen=True)
class Exact:
    """The converged images of the step, in its precision: x_hat, T_g x_hat, A T_g x_hat + e, and f of that."""

    x_hat: Tensor
    turned: Tensor
    measured: Tensor
    again: Tensor


def solve_exactly(problem: Problem) -> Exact:
    """Return the images of the step, found in double precision."""
    wide = problem.double()
    x_hat = _solve(wide, wide.given, Anderson(memory=8), 1e-8).value
    turned = wide.transform.cropped(wide.transform.apply(x_hat))
    measured = wide.physics.forward(turned) + wide.noise
    again = _solve(wide, measured, Anderson(memory=8), 1e-8).value
    image = torch.complex64 if x_hat.is_complex() else torch.float32
    data = problem.given.dtype
    return Exact(x_hat.to(image), turned.to(image), measured.to(data), again.to(image))


def second_solve(problem: Problem, exact: Exact) -> list[Row]:
    """Count steps of the second solve from y and from T_g x_hat, and the equivariance loss they report."""
    whole = (exact.again - exact.turned).abs().square().sum()
    rows: list[Row] = []
    for name, method in (("Picard", PICARD), ("Anderson", Anderson())):
        for tolerance in (1e-3, 1e-4, 1e-5):
            row: Row = {"method": name, "tolerance": tolerance}
            for start, image in (("y", None), ("T_g x", exact.turned)):
                solution = _solve(problem, exact.measured, method, tolerance, image)
                row[f"steps from {start}"] = float(solution.steps.double().mean())
                row[f"loss from {start}"] = float((solution.value - exact.turned).abs().square().sum() / whole)
            rows.append(row)
    return rows


def modes(bench: Bench, repeats: int) -> list[Row]:
    """Hold the truncated gradients against the exact one, all at the same well converged images."""
    settings = {
        "implicit 1e-1": BackwardSettings(tolerance=1e-1, max_steps=LARGEST_ADJOINT),
        "implicit 1e-2": BackwardSettings(tolerance=1e-2, max_steps=LARGEST_ADJOINT),
        **{f"neumann {k}": BackwardSettings("neumann", max_steps=k) for k in (1, 3, 5, 10, 20, 50)},
        "jacobian-free": BackwardSettings("jacobian-free"),
    }
    forward = ForwardSettings(stop=Stop(1e-5, LARGEST_SOLVE))
    contenders = [Equipoise(forward, backward) for backward in settings.values()]
    seconds = bench.seconds(contenders, repeats)
    rows: list[Row] = []
    for name, contender, took in zip(settings, contenders, seconds, strict=True):
        found = bench.measure(contender)
        rows.append(
            {"mode": name, "cosine": found.cosine, "length ratio": found.length, "error": found.error}
            | {"VJP": found.products, "seconds": took}
        )
    return rows


def run(modality: str, side: int, batch: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """Return the tables by name."""
    problem = build_problem(modality, side, batch, device)
    tight = Equipoise(
        ForwardSettings(Anderson(memory=8), Stop(1e-8, 2 * LARGEST_SOLVE)), BackwardSettings("implicit", 1e-6, 200)
    )
    bench = Bench(problem, gradient(problem.double(), tight, Work()))
    exact = solve_exactly(problem)
    about = {"modality": modality, "side": side, "batch": batch, "measured": list(problem.given.shape[1:])}
    return {
        "problem": [about | {"device": device_name(device), "torch": torch.__version__}],
        "against others at equal gradient error": against_others(bench, repeats),
        "acceleration": acceleration(bench, exact),
        "warm start": warm_start(bench),
        "second solve": second_solve(problem, exact),
        "backward modes": modes(bench, repeats),
    }


def table(rows: Iterable[Row]) -> str:
    """Return the rows as aligned columns, one for each key."""
    listed = list(rows)
    names = list(dict.fromkeys(key for row in listed for key in row))
    cells = [names] + [[_cell(row.get(name, "")) for name in names] for row in listed]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modality", choices=("ct", "mri"), default="ct")
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    tables = run(given.modality, given.side, given.batch, torch.device(given.device), given.repeats)
    if given.json:
        print(json.dumps(tables))
        return
    for name, rows in tables.items():
        print(f"\n{name}\n{table(rows)}")


if __name__ == "__main__":
    main()
