"""The wire: the golden JSON of each message, and what is refused."""

from __future__ import annotations

import io
import json
import math
import struct
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise_engine import protocol
from equipoise_engine.recipe import (
    AngleRange,
    FlatField,
    Known,
    NegativeLog,
    Recipe,
    Rings,
    Role,
    Selection,
    Source,
    Span,
)

GOLDEN = Path(__file__).parent / "golden"
RECONSTRUCT = protocol.ReconstructSettings(
    method="tv",
    iterations=120,
    tolerance=1e-4,
    strength=0.02,
    weighting="counts",
    nonnegative=False,
    footprint="strip",
    views_every=3,
    slices=(3, 9),
)
FINE_TUNE = protocol.FineTuneSettings(steps=40, learning_rate=1e-4, batch=4, accelerate=4, seed=7)
RECIPE = Recipe(
    known=Known(
        roles=(Role(role="darks", source="/exchange/data_dark#0:5"),),
        angles=AngleRange(start_deg=0.0, stop_deg=180.0, inclusive=True),
        centre_px=296.5,
    ),
    selection=Selection(rows=Span(first=1, last=2), bin=2),
    steps=(FlatField(), NegativeLog(), Rings(method="fitting")),
)
SOURCES = (Source(name="/exchange/data", shape=(181, 2, 640), kind="float32"),)
SCAN = protocol.ScanFacts(
    scan="scan-1",
    path="/data/tooth.h5",
    kind="ct",
    format="Data Exchange",
    state="counts",
    shape=(181, 2, 640),
    slices=2,
    geometry=(("views", "181"), ("pixel", "0.05 mm")),
    matched=(
        protocol.MatchFact(
            role="projections", source="/exchange/data", shape=(181, 2, 640), reason="the standard's name"
        ),
    ),
    warnings=("no pixel size: lengths count pixels",),
    methods=("fbp", "cgls", "tv", "deq"),
    recipe=RECIPE,
    full_shape=(181, 4, 1280),
    guessed=("state",),
    sources=SOURCES,
    memory=protocol.MemoryFacts(
        host_bytes=2**28, host_free=2**33, device_bytes=0, device_free=0, disk_bytes=2**22, text="it fits"
    ),
)
RESULT = protocol.ResultFacts(
    result="run-1",
    scan="scan-1",
    method="tv",
    label="TV",
    shape=(6, 640, 640),
    first_slice=3,
    voxel_mm=(0.05, 0.05, 0.05),
    calibrated=True,
    unit="1/mm",
    outcome="max_steps",
    iterations=120,
    data_residual=0.0125,
    seconds=3.5,
    low=-0.25,
    high=1.75,
)
# The shape in the header of a message that carries pixels.
SHAPES = {"Slice": (2, 3), "Seen": (2, 3)}
EXAMPLES: list[protocol.Request | protocol.Event] = [
    protocol.Hello(version=1),
    protocol.Open(path="/data/tooth.h5", recipe=RECIPE),
    protocol.OpenReference(path="/data/series", scan="scan-1"),
    protocol.Look(path="/data/tooth.h5", recipe=RECIPE, what="sinogram", index=1, stage=2),
    protocol.FindCentre(path="/data/tooth.h5", recipe=RECIPE, first_px=280.0, last_px=310.0),
    protocol.Reconstruct(scan="scan-1", settings=RECONSTRUCT, preview_slice=4),
    protocol.FineTune(scans=("scan-1", "scan-2"), settings=FINE_TUNE, out="/work/tooth.safetensors"),
    protocol.ReadSlice(result="run-1", index=4, step=17),
    protocol.Export(result="run-1", path="/work/tooth.tif", format="tiff"),
    protocol.Cancel(job=3, keep=True),
    protocol.GetStatus(),
    protocol.Forget(key="scan-1"),
    protocol.Quit(),
    protocol.Ready(version=1, package="0.1.0", device="CPU, 2 threads", python="3.11.7", torch="2.13.0+cpu", threads=2),
    protocol.Status(device="CPU", host_used=2**30, host_total=2**34, device_used=0, device_total=0, running=3),
    protocol.Opened(facts=SCAN),
    protocol.Needed(
        path="/data/scan.h5", recipe=Recipe(), missing=("angles",), sources=SOURCES, message="scan.h5 has no angles"
    ),
    protocol.Loaded(facts=RESULT),
    protocol.Seen(
        path="/data/tooth.h5",
        what="sinogram",
        index=1,
        coil=0,
        stage=2,
        caption="row 1 (view, column), attenuation",
        count=2,
        low=0.0,
        high=1.5,
    ),
    protocol.CentreFound(
        path="/data/tooth.h5",
        centre_px=296.0,
        confidence=0.75,
        text="rotation centre 296.0 px",
        tilt_deg=0.25,
        tilt_error_deg=0.125,
        estimates=(
            protocol.CentreEstimate(
                method="opposite views",
                centre_px=296.0,
                confidence=0.75,
                at_edge=False,
                text="likeness 0.9",
                positions_px=(295.0, 296.0, 297.0),
                metric=(0.5, 0.25, 0.5),
            ),
        ),
    ),
    protocol.Working(stage="read", done=3, total=181),
    protocol.Started(run="run-1", scan="scan-1", settings=RECONSTRUCT, preview_slice=4, total=120),
    protocol.Step(run="run-1", step=17, data_residual=0.5, fixed_point_residual=0.125),
    protocol.Reconstructed(facts=RESULT),
    protocol.Trained(
        step=5,
        total=40,
        terms=(("loss", 0.75), ("measurement", 0.5), ("equivariance", 0.25)),
        forward_steps=12.5,
        backward_steps=8.0,
        seconds=6.25,
    ),
    protocol.Tuned(path="/work/tooth.safetensors", steps=2, seconds=9.5, losses=(0.75, 0.5), stopped=True),
    protocol.Advice(text="The group flip brings no information for this scan's geometry."),
    protocol.Slice(result="run-1", index=4, step=None, low=0.0, high=1.5),
    protocol.Exported(path="/work/tooth.tif", files=("/work/tooth.tif",), bytes=9830400),
    protocol.Finished(seconds=3.5, cancelled=False),
    protocol.Failed(
        kind="bad-input",
        message="no views in /data/tooth.h5",
        hint="choose another file",
        details="Traceback",
    ),
]


def name_of(example: protocol.Request | protocol.Event) -> str:
    return type(example).__name__


def frame_of(example: protocol.Request | protocol.Event, job: int = 7, pixels: protocol.Pixels | None = None) -> bytes:
    stream = io.BytesIO()
    protocol.write(stream, job, example, pixels)
    return stream.getvalue()


def raw_frame(head: bytes, body: bytes = b"", magic: bytes = b"EQP1", sizes: tuple[int, int] | None = None) -> bytes:
    return struct.pack("<4sIQ", magic, *(sizes or (len(head), len(body)))) + head + body


def test_each_message_has_an_example_and_a_golden_file() -> None:
    types = {kind.__name__ for kind in (*get_args(protocol.Request), *get_args(protocol.Event))}
    assert {name_of(example) for example in EXAMPLES} == types
    assert {path.stem for path in GOLDEN.glob("*.json")} == types


def test_golden_version() -> None:
    # whoever changes a golden file must also change VERSION, unless no release has been made with it
    assert protocol.VERSION == 1
    assert protocol.Hello().version == protocol.VERSION


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_golden(example: protocol.Request | protocol.Event) -> None:
    shape = SHAPES.get(name_of(example))
    pixels = None if shape is None else np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    frame = frame_of(example, 7, pixels)
    head_size = struct.unpack_from("<I", frame, 4)[0]
    golden = json.loads((GOLDEN / f"{name_of(example)}.json").read_text(encoding="utf-8"))
    assert json.loads(frame[16 : 16 + head_size]) == golden
    # and back, from the golden text
    text = json.dumps(golden).encode()
    if isinstance(example, protocol.Request):
        assert protocol.read_request(io.BytesIO(raw_frame(text))) == (7, example)
    else:
        body = b"" if pixels is None else pixels.tobytes()
        read = protocol.read_event(io.BytesIO(raw_frame(text, body)))
        assert read is not None
        assert read[:2] == (7, example)
        assert (read[2] is None) == (pixels is None)
        if pixels is not None:
            np.testing.assert_array_equal(read[2], pixels)


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_unknown_field_is_refused(example: protocol.Request | protocol.Event) -> None:
    golden = json.loads((GOLDEN / f"{name_of(example)}.json").read_text(encoding="utf-8"))
    golden["message"]["surprise"] = 1
    read = protocol.read_request if isinstance(example, protocol.Request) else protocol.read_event
    with pytest.raises(protocol.ProtocolError, match="surprise"):
        read(io.BytesIO(raw_frame(json.dumps(golden).encode())))


@pytest.mark.parametrize(
    "head",
    [
        b'{"id": 1, "message": {"type": "Telepathy"}}',
        b'{"id": 1, "message": {}}',
        b'{"id": 1}',
        b'{"id": 1, "message": {"type": "Quit"}, "extra": 0}',
        b'{"id": 1, "message": {"type": "Open", "path": 5}}',
        b'{"id": 1, "message": {"type": "Cancel", "job": "3"}}',
        b'{"id": 1, "message": {"type": "Ready"',
        b"not json",
        b"",
        b"\xff\xfe",
        b"[" * 10_000,
    ],
)
def test_what_is_no_message_is_refused(head: bytes) -> None:
    with pytest.raises(protocol.ProtocolError, match="not a request"):
        protocol.read_request(io.BytesIO(raw_frame(head)))
    with pytest.raises(protocol.ProtocolError, match="not an event"):
        protocol.read_event(io.BytesIO(raw_frame(head)))


def test_a_request_is_no_event() -> None:
    with pytest.raises(protocol.ProtocolError, match="Quit"):
        protocol.read_event(io.BytesIO(frame_of(protocol.Quit())))
    with pytest.raises(protocol.ProtocolError, match="Finished"):
        protocol.read_request(io.BytesIO(frame_of(protocol.Finished())))


class CountingStream(io.BytesIO):
    """A stream that remembers the largest read that was asked of it."""

    largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.largest = max(self.largest, size or 0)
        return super().read(size)


@pytest.mark.parametrize("sizes", [(protocol.MAX_HEADER + 1, 0), (2, protocol.MAX_PIXELS + 4), (2, 2**64 - 1)])
def test_sizes_are_checked_before_anything_is_read(sizes: tuple[int, int]) -> None:
    stream = CountingStream(raw_frame(b"{}", sizes=sizes))
    with pytest.raises(protocol.ProtocolError, match="exceeds"):
        protocol.read_event(stream)
    assert stream.largest == 16


def test_too_large_a_frame_is_not_written() -> None:
    stream = io.BytesIO()
    with pytest.raises(ValueError, match="exceeds"):
        protocol.write(stream, 1, protocol.Open(path="x" * (protocol.MAX_HEADER + 1)))
    assert stream.getvalue() == b""


def test_every_truncation_is_noticed() -> None:
    pixels = np.ones((2, 3), dtype=np.float32)
    frame = frame_of(protocol.Slice(result="r", index=0, step=None, low=0.0, high=1.0), 1, pixels)
    for length in range(1, len(frame)):
        with pytest.raises(protocol.ProtocolError, match="before the end"):
            protocol.read_event(io.BytesIO(frame[:length]))
    assert protocol.read_event(io.BytesIO(b"")) is None
    assert protocol.read_event(io.BytesIO(frame)) is not None


def test_wrong_magic_is_refused() -> None:
    for text in (b"Last login: Monday morning\n", raw_frame(b"{}", magic=b"EQP2")):
        with pytest.raises(protocol.ProtocolError, match="starts with"):
            protocol.read_request(io.BytesIO(text))


@pytest.mark.parametrize("shape", ["[2, 4]", "[3, 2, 1]", "[-2, -3]", "[0, 6]", "null", "[6]"])
def test_pixels_must_have_their_shape(shape: str) -> None:
    head = '{"id": 1, "message": {"type": "Finished"}, "shape": %s}' % shape  # noqa: UP031 - braces in JSON
    with pytest.raises(protocol.ProtocolError):
        protocol.read_event(io.BytesIO(raw_frame(head.encode(), bytes(24))))


def test_a_request_carries_no_pixels() -> None:
    frame = frame_of(protocol.Quit(), 1, np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(protocol.ProtocolError, match="no pixels"):
        protocol.read_request(io.BytesIO(frame))


@pytest.mark.parametrize("shape", [(6,), (1, 2, 3), ()])
def test_only_a_slice_is_written(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not a slice"):
        frame_of(protocol.Finished(), 1, np.zeros(shape, dtype=np.float32))


def test_pixels_may_have_any_layout_in_memory() -> None:
    pixels = np.arange(24, dtype=np.float64).reshape(4, 6)[::2, ::-3].T
    read = protocol.read_event(io.BytesIO(frame_of(protocol.Finished(), 1, pixels)))  # type: ignore[arg-type]
    assert read is not None
    assert read[2] is not None
    assert read[2].dtype == np.dtype("<f4")
    np.testing.assert_array_equal(read[2], pixels)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_diverged_residual_arrives(value: float) -> None:
    # JSON has no such numbers, and a run that diverges must not end the engine
    step = protocol.Step(run="r", step=1, data_residual=value, fixed_point_residual=0.5)
    read = protocol.read_event(io.BytesIO(frame_of(step)))
    assert read is not None
    assert isinstance(read[1], protocol.Step)
    np.testing.assert_equal(read[1].data_residual, value)
    trained = protocol.Trained(step=1, total=0, terms=(("nan", value),), forward_steps=1, backward_steps=1, seconds=0)
    read = protocol.read_event(io.BytesIO(frame_of(trained)))
    assert read is not None
    assert isinstance(read[1], protocol.Trained)
    assert read[1].terms[0][0] == "nan"
    np.testing.assert_equal(read[1].terms[0][1], value)


class Version(str):
    """As torch.__version__ is: text to everybody but the encoder."""


def test_numbers_of_numpy_and_kinds_of_text_travel_as_plain_values() -> None:
    step = protocol.Step(
        run=Version("r"),
        step=np.int64(3),  # type: ignore[arg-type]
        data_residual=np.float64(0.5),
        fixed_point_residual=np.float32("nan"),  # type: ignore[arg-type]
    )
    read = protocol.read_event(io.BytesIO(frame_of(step)))
    assert read is not None
    assert isinstance(read[1], protocol.Step)
    assert (read[1].run, read[1].step, read[1].data_residual) == ("r", 3, 0.5)
    assert math.isnan(read[1].fixed_point_residual)
    opened = protocol.Open(path="p", recipe=Recipe(known=Known(centre_px=np.float64(0.5))))
    assert protocol.read_request(io.BytesIO(frame_of(opened))) == (
        7,
        protocol.Open(path="p", recipe=Recipe(known=Known(centre_px=0.5))),
    )
    with pytest.raises(TypeError, match="object cannot be sent"):
        frame_of(protocol.Working(stage=object(), done=1, total=2))  # type: ignore[arg-type]


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        protocol.Cancel(job=1).job = 2  # type: ignore[misc]


numbers = st.integers(-(2**62), 2**62)
texts = st.text(max_size=40)
floats = st.floats(width=64)
requests = st.one_of(
    st.builds(
        protocol.Open,
        path=texts,
        recipe=st.builds(
            Recipe,
            known=st.builds(Known, centre_px=st.none() | st.floats(allow_nan=False, allow_infinity=False)),
            steps=st.none() | st.lists(st.sampled_from([FlatField(), NegativeLog(floor=0.01), Rings()])).map(tuple),
        ),
    ),
    st.builds(protocol.ReadSlice, result=texts, index=numbers, step=st.none() | numbers),
    st.builds(protocol.Cancel, job=numbers, keep=st.booleans()),
    st.builds(protocol.Forget, key=texts),
)
events = st.one_of(
    st.builds(protocol.Failed, kind=texts, message=texts, hint=texts, details=texts),
    st.builds(protocol.Step, run=texts, step=numbers, data_residual=floats, fixed_point_residual=floats),
    st.builds(protocol.Exported, path=texts, files=st.lists(texts).map(tuple), bytes=numbers),
    st.builds(protocol.Slice, result=texts, index=numbers, step=st.none() | numbers, low=floats, high=floats),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(numbers, requests), max_size=4))
def test_requests_come_back_in_order(sent: list[tuple[int, protocol.Request]]) -> None:
    stream = io.BytesIO()
    for job, request in sent:
        protocol.write(stream, job, request)
    stream.seek(0)
    assert [protocol.read_request(stream) for _ in range(len(sent) + 1)] == [*sent, None]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(numbers, events, st.none() | st.tuples(st.integers(0, 5), st.integers(0, 5))), max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_events_come_back_in_order(sent: list[tuple[int, protocol.Event, tuple[int, int] | None]], seed: int) -> None:
    stream = io.BytesIO()
    random = np.random.default_rng(seed)
    pictures = [None if shape is None else random.random(shape, dtype=np.float32) for _, _, shape in sent]
    for (job, event, _), pixels in zip(sent, pictures, strict=True):
        protocol.write(stream, job, event, pixels)
    stream.seek(0)
    for (job, event, _), pixels in zip(sent, pictures, strict=True):
        frame = protocol.read_event(stream)
        assert frame is not None
        assert frame[0] == job
        # NaN differs from itself, so compare the text
        assert msgspec.json.encode(frame[1]) == msgspec.json.encode(event)
        if pixels is None:
            assert frame[2] is None
        else:
            np.testing.assert_array_equal(frame[2], pixels)
    assert protocol.read_event(stream) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.booleans())
def test_arbitrary_bytes_never_do_worse_than_a_protocol_error(data: bytes, with_magic: bool) -> None:
    stream = io.BytesIO(raw_frame(data) if with_magic else data)
    try:
        frame = protocol.read_event(stream)
    except protocol.ProtocolError:
        return
    assert frame is None
    assert data == b""
