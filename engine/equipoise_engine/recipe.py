"""The recipe of a scan: what its files do not say, which part of it is taken, and how it is prepared.

A recipe is the same in the window, on the command line and in a file (JSON): `Recipe.known` tells how the files are
read, `Recipe.selection` which views, rows and columns are taken, `Recipe.steps` what is then done to the numbers, in
order. The limits of each value stand with it and are checked wherever a recipe comes in.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

VERSION: Literal[1] = 1


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A value inside a recipe."""


Length = Annotated[float, Meta(gt=0, le=1e9)]
"""Millimetres."""
Count = Annotated[int, Meta(ge=0, le=1 << 31)]

# --- what the files do not say --------------------------------------------------------------------


class AngleRange(_Part, frozen=True):
    """Evenly spaced projection angles in degrees, counter-clockwise."""

    start_deg: Annotated[float, Meta(ge=-36000, le=36000)]
    stop_deg: Annotated[float, Meta(ge=-36000, le=36000)]
    inclusive: bool = False
    """Whether the last view lies at the end; otherwise one step before it."""


class Beam(_Part, frozen=True):
    """Lengths of a diverging beam."""

    source_axis_mm: Length
    source_detector_mm: Length
    pixel_mm: Length
    """Side of a detector element."""


class Role(_Part, frozen=True):
    """Which part of the files has a role, in place of what the reader would take.

    `source` is a dataset of an HDF5 file (`/entry/data`), a variable of a MATLAB file, a file or a pattern of file
    names beside the scan (`flats/*.tif`), or nothing where the frames stand among the projections; `#A:B` or `#A:B:C`
    after it takes the frames A to B - 1, every C-th. An empty source says that the scan has no such part.
    """

    role: str
    """projections, flats, darks, angles, monitor (CT); kspace, trajectory, density, noise, interference (MRI)."""
    source: str


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the files that may have a role, as a reader lists them."""

    name: str
    """As `Role.source` names it."""
    shape: tuple[int, ...] = ()
    kind: str = ""
    """Type of its values, for people."""


class Known(_Part, frozen=True):
    """What the user knows about a scan that its files may not say, or say wrongly."""

    roles: tuple[Role, ...] = ()
    layout: Literal["", "projections", "sinograms"] = ""
    """What one image of a stack is: a projection `(row, column)` or a sinogram `(view, column)`."""
    transposed: bool = False
    """Rows and columns of every image are swapped, as of a detector that lies on its side, or of a sinogram whose
    columns are views."""
    state: Literal["", "counts", "transmission", "attenuation"] = ""
    """What the numbers mean."""
    angles: AngleRange | None = None
    clockwise: bool = False
    """Turn all angles the other way."""
    centre_px: float | None = None
    """Detector column of the rotation axis, counted in the file: before anything is cropped or binned."""
    pixel_mm: Length | None = None
    """Side of a detector element of a parallel beam."""
    beam: Beam | None = None
    matrix: tuple[Annotated[int, Meta(ge=16, le=16384)], Annotated[int, Meta(ge=16, le=16384)]] | None = None
    """Rows and columns of images along a trajectory (MRI)."""
    keep_oversampling: bool = False
    """Keep the readout as wide as it was sampled (MRI)."""


# --- which part of it is taken ----------------------------------------------------------------------


class Span(_Part, frozen=True):
    """Indices from `first` to before `last`, every `step`-th; `last` None goes to the end."""

    first: Count = 0
    last: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    step: Annotated[int, Meta(ge=1, le=1 << 20)] = 1


class Selection(_Part, frozen=True):
    """Which part of a scan is taken."""

    views: Span = Span()
    """CT."""
    rows: Span = Span()
    """Detector rows (CT) or slices (MRI)."""
    columns: Span = Span()
    """Detector columns (CT); their step must be 1."""
    bin: Annotated[int, Meta(ge=1, le=64)] = 1
    """Detector elements (CT) put together along columns, and along rows where there are so many."""


# --- how it is prepared -----------------------------------------------------------------------------


class _Step(_Part, frozen=True, tag_field="step"):
    """One step of the preparation; its tag is its name everywhere."""


class FlatField(_Step, frozen=True, tag="flat-field"):
    """From counts to transmission: (counts - dark) / (open beam - dark).

    Without open-beam frames the brightest pixels of each slice are the open beam. Views in which the beam was off are
    made up from those before and after.
    """

    average: Annotated[
        Literal["mean", "median"], Meta(title="Average", description="How open-beam and dark frames are put together.")
    ] = "mean"
    monitor: Annotated[
        bool,
        Meta(title="Monitor", description="Divide each view by the beam monitor, where the scan has one."),
    ] = True


class DeadPixels(_Step, frozen=True, tag="dead-pixels"):
    """Detector elements that see nothing, much too much, or always the same are made up from their neighbours.

    Values that are not finite are made up as well, here or later.
    """

    dead_below: Annotated[
        float,
        Meta(ge=0, le=1, title="Dead below", description="Share of the row's median beam below which one is dead."),
    ] = 0.01
    hot_above: Annotated[
        float,
        Meta(
            ge=0,
            le=1000,
            title="Hot above",
            description="Robust standard deviations from its neighbours, averaged over all views, above which one is"
            " hot; 0 looks for none.",
        ),
    ] = 0.0
    still_below: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            title="Still below",
            description="Share of what its neighbours on both sides vary by over the views, below which one is dead; 0"
            " looks for none.",
        ),
    ] = 0.05


class Zingers(_Step, frozen=True, tag="zingers"):
    """Bright specks of single views, as stray photons leave, are replaced by the median around them.

    A speck stands out from what is around it, and from the same elements in the views before and after.
    """

    threshold: Annotated[
        float,
        Meta(gt=0, le=1000, title="Threshold", description="Robust standard deviations above the median around it."),
    ] = 8.0
    size: Annotated[int, Meta(ge=3, le=31, title="Size", description="Side of the median, in elements; odd.")] = 3


class PhaseRetrieval(_Step, frozen=True, tag="phase"):
    """Paganin's single-distance phase retrieval of a homogeneous object, on transmission.

    In a diverging beam the distance counts for as much less as the object is enlarged.

    Paganin et al. 2002, doi:10.1046/j.1365-2818.2002.01010.x.
    """

    delta_beta: Annotated[float, Meta(gt=0, le=1e6, title="δ/β", description="Refraction over absorption.")] = 100.0
    energy_kev: Annotated[float, Meta(gt=0, le=1e4, title="Energy", description="Of the photons, in keV.")] = 20.0
    distance_mm: Annotated[
        float, Meta(gt=0, le=1e6, title="Distance", description="From the object to the detector, in mm.")
    ] = 100.0
    pixel_mm: Annotated[
        float, Meta(ge=0, le=100, title="Pixel", description="Side at the object, in mm; 0 takes the scan's.")
    ] = 0.0


class AirNormalisation(_Step, frozen=True, tag="air"):
    """Each row of each view is scaled so that the columns at its ends, which see air, transmit everything."""

    columns: Annotated[
        int, Meta(ge=1, le=1000, title="Columns", description="Number of columns at the end of a row that see air.")
    ] = 10
    side: Annotated[
        Literal["both", "left", "right"], Meta(title="Side", description="Which end of a row sees air.")
    ] = "both"


class Tilt(_Step, frozen=True, tag="tilt"):
    """Projections are turned to make the rotation axis parallel to the detector's columns.

    They are turned about the middle of the whole detector, also where a part of it is taken; what is cut away cannot
    be turned into view.
    """

    angle_deg: Annotated[
        float,
        Meta(
            ge=-10,
            le=10,
            title="Angle",
            description="Angle from the detector's columns to the axis, in degrees; above 0 where the axis leans to the"
            " right at the top of a projection drawn with row 0 on top and column 0 at the left.",
        ),
    ] = 0.0


class NegativeLog(_Step, frozen=True, tag="log"):
    """From transmission to line integrals of attenuation."""

    floor: Annotated[
        float,
        Meta(ge=0, le=0.5, title="Floor", description="Smallest transmission; 0 takes half a count, or 0.0001."),
    ] = 0.0


class BeamHardening(_Step, frozen=True, tag="beam-hardening"):
    """Attenuation p becomes a1 p + a2 p^2 + ..., as a calibration with steps of one material gives.

    Herman 1979, doi:10.1088/0031-9155/24/1/008.
    """

    coefficients: Annotated[
        tuple[float, ...],
        Meta(min_length=1, max_length=6, title="Coefficients", description="a1, a2, ... of the powers of p."),
    ] = (1.0, 0.0)


class Rings(_Step, frozen=True, tag="rings"):
    """Stripes along the views of a sinogram, which would be rings in the image, are taken out.

    "sorting", "filtering", "fitting" and "all" (the three and dead stripes): Vo et al. 2018, doi:10.1364/OE.26.028396;
    "wavelet-fourier": Münch et al. 2009, doi:10.1364/OE.17.008567; "normalisation": Rivers 1998.
    """

    method: Annotated[
        Literal["sorting", "filtering", "fitting", "all", "wavelet-fourier", "normalisation"],
        Meta(title="Method", description="How stripes are told from the object."),
    ] = "sorting"
    size: Annotated[
        int,
        Meta(
            ge=3,
            le=501,
            title="Size",
            description="Of the median or smoothing across columns, in elements: more than the broadest stripe.",
        ),
    ] = 11
    strength: Annotated[
        float,
        Meta(
            gt=0,
            le=1000,
            title="Strength",
            description="Of the filter along views (filtering, wavelet-fourier), or ratio to the noise that makes a"
            " stripe (all); the other methods have none.",
        ),
    ] = 3.0


class Prewhiten(_Step, frozen=True, tag="prewhiten"):
    """The noise of the coils is made equal and independent.

    Pruessmann et al. 2001, doi:10.1002/mrm.1241.
    """

    source: Annotated[
        Literal["auto", "lines", "edge"],
        Meta(
            title="Noise from", description="Noise lines of the scan, the edge of k-space, or the first that is there."
        ),
    ] = "auto"


class RegressInterference(_Step, frozen=True, tag="interference"):
    """What the reference coils see of outside interference is predicted in the receive coils and taken away.

    Srinivas et al. 2022 (EDITER), doi:10.1002/mrm.28992.
    """

    window: Annotated[
        int,
        Meta(
            ge=1, le=4096, title="Lines", description="About how many lines share one prediction; 1 for each its own."
        ),
    ] = 16
    kernel: Annotated[
        int, Meta(ge=1, le=31, title="Kernel", description="Samples along the readout that predict one; odd.")
    ] = 7


class GhostCorrection(_Step, frozen=True, tag="ghost"):
    """Phases between forward and reversed readouts of EPI are taken out, after its navigator lines.

    Bruder et al. 1992, doi:10.1002/mrm.1910230211.
    """

    order: Annotated[
        Literal["linear", "pointwise"],
        Meta(title="Phase", description="A straight line along the readout, or each position by itself."),
    ] = "linear"


class CompressCoils(_Step, frozen=True, tag="compress"):
    """k-space is put together to fewer, virtual coils. Buehrer et al. 2007, doi:10.1002/mrm.21237."""

    coils: Annotated[int, Meta(ge=1, le=1024, title="Coils", description="Number of virtual coils.")] = 8


CT_STEPS = (
    FlatField,
    DeadPixels,
    Zingers,
    PhaseRetrieval,
    Tilt,
    AirNormalisation,
    NegativeLog,
    BeamHardening,
    Rings,
)
MRI_STEPS = (RegressInterference, GhostCorrection, Prewhiten, CompressCoils)
"""The steps of each modality in their usual order."""

CtStep = (
    FlatField | DeadPixels | Zingers | PhaseRetrieval | Tilt | AirNormalisation | NegativeLog | BeamHardening | Rings
)
MriStep = RegressInterference | GhostCorrection | Prewhiten | CompressCoils
Step = CtStep | MriStep


class Recipe(_Part, frozen=True):
    """How a scan is read, cut and prepared."""

    version: Literal[1] = VERSION
    known: Known = Known()
    selection: Selection = Selection()
    steps: tuple[Step, ...] | None = None
    """None takes the usual steps for the scan."""


def name_of(step: Step | type[Step]) -> str:
    """Return the name of a step or of a kind of step, as "flat-field"."""
    return str(step.__struct_config__.tag)


def with_step(steps: tuple[Step, ...], step: Step) -> tuple[Step, ...]:
    """Return steps with one more: in place of the one of its kind, else where its kind usually stands."""
    kinds = CT_STEPS + MRI_STEPS
    if any(type(other) is type(step) for other in steps):
        return tuple(step if type(other) is type(step) else other for other in steps)
    rank = kinds.index(type(step))
    place = next((i for i, other in enumerate(steps) if kinds.index(type(other)) > rank), len(steps))
    return (*steps[:place], step, *steps[place:])


def reason(error: msgspec.MsgspecError) -> str:
    """Return why something is no recipe, for people: "selection.bin: expected int >= 1"."""
    text, _, place = str(error).replace("`", "").partition(" - at ")
    text = text[:1].lower() + text[1:]
    return f"{place.removeprefix('$').removeprefix('.')}: {text}" if place.strip("$.") else text
