"""What is compared: the methods, and the sizes of the problem; plain records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from equipoise_engine.errors import BadInput

MODALITIES = ("ct", "mri")
LEARNED = ("ei-unet", "ei-unrolled", "deq-sup-id", "deq-ei-jfb", "deq-ei-id", "deq-es-id")
CONTROL = "deq-mc-id"
"""Trained without the equivariance term: not in the table, only beside deq-ei-id in the diagnostics."""
DENOISER = "denoiser"
METHODS = {"ct": ("fbp", "tv", "pnp", *LEARNED), "mri": ("zerofilled", "wavelet", "pnp", *LEARNED)}
TITLES = {
    "fbp": "filtered back-projection",
    "zerofilled": "zero-filled transform",
    "tv": "total variation (strength by oracle)",
    "wavelet": "L1-wavelet (strength by oracle)",
    "pnp": "plug-and-play / RED with the denoiser (map, weight and stopping by oracle)",
    "ei-unet": "U-Net on the analytic image, equivariant imaging",
    "ei-unrolled": "unrolled, equal parameters, equivariant imaging",
    "deq-sup-id": "equilibrium model, supervised, implicit gradient",
    "deq-ei-jfb": "equilibrium model, equivariant imaging, Jacobian-free gradient",
    "deq-ei-id": "equilibrium model, equivariant imaging, implicit gradient",
    "deq-es-id": "equilibrium model, equivariant splitting, implicit gradient",
    CONTROL: "equilibrium model, data term alone, implicit gradient (control)",
    DENOISER: "denoiser of generated images",
}


@dataclass(frozen=True)
class Preset:
    """The sizes of one comparison.

    Parameters
    ----------
    side
        Of the images in pixels.
    views
        Equally spaced over half a turn (CT).
    acceleration, centre_lines, coils
        One of how many phase-encoding lines is measured, how many of them in the middle, and by how many coils (MRI).
    noise
        Standard deviation of white noise in the measurements, relative to the largest one (CT), or to the brightest
        pixel for an orthonormal transform, of real and imaginary part each (MRI).
    training_images, test_images
        Whose measurements, drawn once, are trained on and tested on.
    steps, batch, learning_rate, equivariance_weight, contraction_weight
        Of the training, the same for all learned methods; the rate falls to zero by a cosine.
    widths
        Channels of the network's levels.
    tolerance, max_steps, backward_steps
        Of the fixed-point solves of the training, and the limit of the implicit gradient.
    unrolled_steps
        Of the unrolled method.
    test_tolerance, test_max_steps
        Of the fixed-point solves of the evaluation.
    curve_every
        Steps between the points of the training curve.
    denoise_steps, denoise_batch
        Of the training of the denoiser that all learned methods start from.
    classical_steps
        Limit of the iterations of the classical method.
    data_seed
        Of objects, noise and sampling; the seeds of the runs change the training only.
    """

    modality: str
    side: int
    views: int = 0
    acceleration: int = 0
    centre_lines: int = 0
    coils: int = 1
    noise: float = 0.005
    training_images: int = 64
    test_images: int = 8
    steps: int = 250
    batch: int = 4
    learning_rate: float = 5e-4
    equivariance_weight: float = 0.2
    contraction_weight: float = 0.02
    widths: tuple[int, int, int] = (16, 32, 64)
    tolerance: float = 1e-4
    max_steps: int = 80
    backward_steps: int = 40
    unrolled_steps: int = 10
    test_tolerance: float = 1e-4
    test_max_steps: int = 400
    curve_every: int = 50
    denoise_steps: int = 1000
    denoise_batch: int = 6
    classical_steps: int = 200
    data_seed: int = 20251118

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise BadInput(f"unknown modality {self.modality!r}", f"Choose one of {', '.join(MODALITIES)}.")


_TINY = Preset(
    "ct",
    16,
    views=6,
    training_images=4,
    test_images=2,
    steps=2,
    max_steps=5,
    backward_steps=3,
    unrolled_steps=2,
    test_max_steps=20,
    curve_every=1,
    denoise_steps=4,
    denoise_batch=2,
    classical_steps=10,
)
PRESETS: dict[tuple[str, str], Preset] = {
    ("ct", "tiny"): _TINY,
    ("mri", "tiny"): replace(_TINY, modality="mri", views=0, acceleration=2, centre_lines=4),
    ("ct", "quick"): Preset("ct", 64, views=20, noise=0.002),
    ("mri", "quick"): Preset(
        "mri",
        64,
        acceleration=4,
        centre_lines=6,
        coils=8,
        noise=0.005,
        tolerance=3e-4,
        max_steps=60,
        backward_steps=30,
        denoise_steps=2000,
    ),
    ("ct", "paper"): Preset(
        "ct",
        256,
        views=50,
        noise=0.002,
        training_images=200,
        test_images=20,
        steps=2000,
        batch=4,
        widths=(32, 64, 128),
        curve_every=100,
        denoise_steps=8000,
        denoise_batch=16,
        test_tolerance=1e-5,
    ),
    ("mri", "paper"): Preset(
        "mri",
        256,
        acceleration=4,
        centre_lines=20,
        noise=0.01,
        training_images=200,
        test_images=20,
        steps=2000,
        batch=4,
        widths=(32, 64, 128),
        curve_every=100,
        denoise_steps=8000,
        denoise_batch=16,
        test_tolerance=1e-5,
    ),
}
PRESET_NAMES = tuple(sorted({name for _, name in PRESETS}))


@dataclass(frozen=True)
class Part:
    """One method trained and tested once, in a process of its own.

    Parameters
    ----------
    method
        A name in `TITLES`.
    seed
        Of the training.
    from_scratch
        Start learned methods from an untrained network instead of the denoiser.
    device
        "cpu" or "cuda".
    """

    preset: Preset
    method: str
    seed: int
    from_scratch: bool
    device: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.method}-{self.seed}"

    @property
    def settings(self) -> str:
        """A hash of what its result depends on, the sources too; a part with the same one is not run again."""
        text = json.dumps({"sources": _sources(), **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def needs_denoiser(self) -> bool:
        """Whether the denoiser must have been trained before."""
        return self.method == "pnp" or (self.method in (*LEARNED, CONTROL) and not self.from_scratch)


@cache
def _sources() -> str:
    """Return a hash of the sources of the engine."""
    root = Path(__file__).resolve().parent.parent
    every = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        every.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return every.hexdigest()


def plan(preset: Preset, methods: Sequence[str], seeds: int, *, from_scratch: bool, device: str) -> tuple[Part, ...]:
    """Return all parts of a comparison of some methods, the denoiser first and what takes longest before the rest.

    Methods that do not train have one part; the denoiser is shared by all seeds.
    """
    order = ("deq-es-id", "deq-ei-id", "deq-sup-id", CONTROL, "ei-unrolled", "deq-ei-jfb", "ei-unet")
    trained = [method for method in order if method in methods or (method == CONTROL and "deq-ei-id" in methods)]
    others = [method for method in methods if method not in LEARNED]
    parts = [Part(preset, method, seed, from_scratch, device) for method in trained for seed in range(seeds)]
    parts += [Part(preset, method, 0, from_scratch, device) for method in reversed(others)]
    if any(part.needs_denoiser for part in parts):
        parts.insert(0, Part(preset, DENOISER, 0, from_scratch, device))
    return tuple(parts)
