"""The client against real processes that behave, break, crash, hang and die."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest

from equipoise_engine import protocol
from equipoise_engine.client import Client, EngineLost, describe_exit, engine_command

# A small engine: answers Hello, ReadSlice and Open, and ends on Quit or the end of its input.
ENGINE = """
import os, resource, signal, sys, time
import numpy as np
from equipoise_engine import protocol as p
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
def answer(job, event, pixels=None):
    p.write(sys.stdout.buffer, job, event, pixels)
while (frame := p.read_request(sys.stdin.buffer)) is not None:
    job, request = frame
    match request:
        case p.Hello():
            answer(job, p.Ready(version=1, package="0", device="none", python="3", torch="0", threads=1))
        case p.ReadSlice(index=index):
            picture = np.full((3, 5), index, dtype=np.float32)
            answer(job, p.Slice(result="r", index=index, step=None, low=0.0, high=1.0), picture)
        case p.Open(path=path):
            exec(path)
        case p.Quit():
            break
"""
WITH_PROCESS_GROUPS = pytest.mark.skipif(sys.platform == "win32", reason="signals and process groups")


@dataclass
class Heard:
    """Everything that a client reported."""

    events: list[tuple[int, protocol.Event | EngineLost, protocol.Pixels | None]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def on_event(self, job: int, event: protocol.Event | EngineLost, pixels: protocol.Pixels | None) -> None:
        with self.changed:
            self.events.append((job, event, pixels))
            self.changed.notify_all()

    def on_log(self, line: str) -> None:
        with self.changed:
            self.log.append(line)
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 15.0) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, seconds), (self.events, self.log)

    def lost(self, seconds: float = 15.0) -> EngineLost:
        """Return the one EngineLost, which must be the last event."""
        self.wait_for(lambda: any(isinstance(event, EngineLost) for _, event, _ in self.events), seconds)
        time.sleep(0.1)
        losses = [event for _, event, _ in self.events if isinstance(event, EngineLost)]
        assert len(losses) == 1
        assert self.events[-1] == (0, losses[0], None)
        return losses[0]


Start = Callable[..., tuple[Client, Heard]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a client of `python -c script`; it is killed after the test."""
    clients: list[Client] = []

    def start_client(script: str = ENGINE, argv: list[str] | None = None) -> tuple[Client, Heard]:
        heard = Heard()
        clients.append(Client(argv or [sys.executable, "-c", script], heard.on_event, heard.on_log))
        return clients[-1], heard

    yield start_client
    for client in clients:
        client.kill()
        client.close(5)
        assert not psutil.pid_exists(client.pid)


def test_answers_carry_the_id_of_their_request(start: Start) -> None:
    client, heard = start()
    hello = client.send(protocol.Hello())
    slices = [client.send(protocol.ReadSlice(result="r", index=index)) for index in range(20)]
    heard.wait_for(lambda: len(heard.events) == 21)
    job, ready, pixels = heard.events[0]
    assert job == hello
    assert isinstance(ready, protocol.Ready)
    assert pixels is None
    assert len({hello, *slices}) == 21
    for index, (job, event, pixels) in enumerate(heard.events[1:]):
        assert job == slices[index]
        assert isinstance(event, protocol.Slice)
        assert pixels is not None
        np.testing.assert_array_equal(pixels, np.full((3, 5), index, dtype=np.float32))
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < 5
    assert heard.lost() == EngineLost("the engine has ended", (), expected=True)


def test_end_of_input_ends_the_engine_in_order(start: Start) -> None:
    # an engine that ends by itself, without being asked, is lost as well
    client, heard = start("import sys; sys.exit(0)")
    lost = heard.lost()
    assert lost.cause == "the engine has ended"
    assert not lost.expected
    client.send(protocol.GetStatus())
    client.close()


def test_exit_status_is_named(start: Start) -> None:
    client, heard = start()
    client.send(protocol.Hello())
    client.send(protocol.Open(path="sys.exit(3)"))
    lost = heard.lost()
    assert lost.cause == "the engine ended with exit status 3"
    assert not lost.expected
    assert isinstance(heard.events[0][1], protocol.Ready)


@WITH_PROCESS_GROUPS
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("SIGSEGV", "the engine crashed (SIGSEGV)"),
        ("SIGABRT", "the engine crashed (SIGABRT)"),
        ("SIGTERM", "the engine was ended by SIGTERM"),
        ("SIGKILL", "the engine was killed (SIGKILL); the system does this when memory runs out"),
    ],
)
def test_signal_is_named(start: Start, name: str, sentence: str) -> None:
    client, heard = start()
    client.send(protocol.Open(path=f"os.kill(os.getpid(), signal.{name})"))
    assert heard.lost() == EngineLost(sentence, (), expected=False)


@WITH_PROCESS_GROUPS
@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        ("sys.exit(3)", "the engine ended with exit status 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the engine crashed (SIGSEGV)"),
        ("sys.exit(0)", "the engine's answer was broken: stream ended"),
    ],
)
def test_death_within_a_frame_is_told_by_the_death(start: Start, end: str, sentence: str) -> None:
    half = "sys.stdout.buffer.write(b'EQP1' + bytes([200, 0, 0, 0])); sys.stdout.flush(); "
    client, heard = start()
    client.send(protocol.Open(path=half + end))
    assert sentence in heard.lost().cause


def test_a_print_into_the_pipe_is_told_and_the_engine_ended(start: Start) -> None:
    client, heard = start()
    client.send(protocol.Open(path="print('Welcome to the machine!', flush=True); time.sleep(600)"))
    lost = heard.lost()
    assert lost.cause.startswith("the engine's answer was broken: frame starts with b'Welc'")
    assert not lost.expected
    client.close(1)


def test_an_endless_flood_of_garbage_is_ended(start: Start) -> None:
    _, heard = start("import sys\nwhile True: sys.stdout.buffer.write(b'x' * 65536)")
    assert "the engine's answer was broken" in heard.lost().cause


def test_an_engine_that_only_closes_its_output_is_ended(start: Start) -> None:
    client, heard = start()
    client.send(protocol.Open(path="os.close(1); time.sleep(600)"))
    assert "closed its side of the pipe" in heard.lost().cause


def test_send_never_waits_and_close_kills_after_the_deadline(start: Start) -> None:
    client, heard = start("import time; time.sleep(600)")
    slowest = 0.0
    for _ in range(40):
        began = time.monotonic()
        # in all far more than a pipe holds
        client.send(protocol.Open(path="x" * 500_000))
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 0.2
    began = time.monotonic()
    client.close(timeout=1.0)
    assert 0.9 < time.monotonic() - began < 6
    assert not psutil.pid_exists(client.pid)
    assert heard.lost() == EngineLost("the engine was ended by this program", (), expected=True)


def test_kill_ends_at_once_and_is_not_taken_for_lack_of_memory(start: Start) -> None:
    client, heard = start()
    client.send(protocol.Hello())
    heard.wait_for(lambda: len(heard.events) == 1)
    client.send(protocol.Open(path="time.sleep(600)"))
    client.kill()
    assert heard.lost(3) == EngineLost("the engine was ended by this program", (), expected=True)


@WITH_PROCESS_GROUPS
def test_kill_reaches_an_engine_behind_a_shell(start: Start) -> None:
    # as behind a wrapper script that does not use exec
    assert "'" not in ENGINE
    client, heard = start(argv=["sh", "-c", f"{sys.executable} -c '{ENGINE}'; exit 0"])
    client.send(protocol.Hello())
    heard.wait_for(lambda: len(heard.events) == 1)
    family = psutil.Process(client.pid).children(recursive=True)
    assert family
    client.kill()
    assert heard.lost(5).expected
    _, alive = psutil.wait_procs(family, timeout=3)
    assert not alive


def test_log_lines_arrive_and_the_last_ones_come_with_the_loss(start: Start) -> None:
    script = "import sys\nfor k in range(100): sys.stderr.write(f'line {k} \\u00e9\\n')\nsys.exit(5)"
    _, heard = start(script)
    lost = heard.lost()
    assert heard.log == [f"line {k} \u00e9" for k in range(100)]
    assert lost.log == tuple(heard.log[-40:])
    assert lost.cause == "the engine ended with exit status 5"


def test_log_that_is_not_text_does_no_harm(start: Start) -> None:
    _, heard = start("import sys; sys.stderr.buffer.write(b'\\xff\\xfe broken\\nlast')")
    heard.lost()
    assert heard.log == ["\ufffd\ufffd broken", "last"]


def test_a_command_that_does_not_exist_is_an_os_error() -> None:
    heard = Heard()
    with pytest.raises(OSError, match="no-such-engine"):
        Client(["/no/such/place/no-such-engine"], heard.on_event)
    assert heard.events == []


def test_close_may_be_called_twice_and_after_the_loss(start: Start) -> None:
    client, heard = start()
    client.close()
    client.close()
    client.kill()
    assert heard.lost().expected


def test_the_engine_of_this_installation() -> None:
    assert engine_command() == [sys.executable, "-m", "equipoise_engine", "serve"]


def test_unknown_signal_numbers_are_described() -> None:
    assert describe_exit(-63) != describe_exit(-62)
    assert "signal" in describe_exit(-200)
