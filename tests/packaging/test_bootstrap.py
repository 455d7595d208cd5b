"""The bootstrap: parts alone, and the whole with a small project that needs no network."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "packaging" / "bootstrap.py"
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")


@pytest.fixture(scope="module")
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("equipoise_bootstrap", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_older_python_can_read_it_and_nothing_but_the_standard_library_is_used() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 8))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_versions_agree_with_the_project(bootstrap: ModuleType) -> None:
    versions = [(3, 10), (3, 11), (3, 12), (3, 13), (3, 14), (4, 0)]
    assert [version for version in versions if bootstrap.suitable(version)] == versions[1:4]
    assert 'requires-python = ">=3.11,<3.14"' in (SCRIPT.parents[1] / "pyproject.toml").read_text("utf-8")


@LINUX
def test_another_python_on_the_path_is_taken(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 2, "final", 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    # one that does not run, and one that is not what it is called, are passed over
    for name, text in (("python3.13", "exit 1"), ("python3.12", "echo 3 9"), ("python3.11", "echo 3 11")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    assert bootstrap.find_python() == [str(tmp_path / "python3.11")]
    (tmp_path / "python3.11").unlink()
    with pytest.raises(bootstrap.BootstrapError, match=r"needs Python 3\.11 to 3\.13"):
        bootstrap.find_python()


def test_version_of_a_virtual_environment(bootstrap: ModuleType, tmp_path: Path) -> None:
    assert bootstrap.venv_version(tmp_path) == ""
    python = bootstrap.venv_python(tmp_path)
    python.parent.mkdir()
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.12.4\n", encoding="utf-8")
    # without its interpreter it is none
    assert bootstrap.venv_version(tmp_path) == ""
    python.touch()
    assert bootstrap.venv_version(tmp_path) == "3.12.4"
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nversion_info = 3.11.2\n", encoding="utf-8")
    assert bootstrap.venv_version(tmp_path) == "3.11.2"


def test_a_stamp_covers_what_it_names_only(bootstrap: ModuleType, tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text("one", encoding="utf-8")
    had = bootstrap.wanted_stamp(tmp_path, "3.11.7", ["test"])
    bootstrap.write_stamp(tmp_path, had)
    read = bootstrap.read_stamp(tmp_path)
    assert bootstrap.covers(read, had)
    assert bootstrap.covers(read, bootstrap.wanted_stamp(tmp_path, "3.11.7", []))
    assert not bootstrap.covers(read, bootstrap.wanted_stamp(tmp_path, "3.11.7", ["other"]))
    assert not bootstrap.covers(read, bootstrap.wanted_stamp(tmp_path, "3.12.0", []))
    assert not bootstrap.covers({}, had)
    project.write_text("two", encoding="utf-8")
    assert not bootstrap.covers(read, bootstrap.wanted_stamp(tmp_path, "3.11.7", []))
    (tmp_path / "equipoise-stamp.json").write_text('{"half', encoding="utf-8")
    assert bootstrap.read_stamp(tmp_path) == {}


@pytest.mark.parametrize(
    ("tail", "sentence"),
    [
        ("WARNING: Retrying ... Temporary failure in name resolution", "could not be downloaded"),
        ("OSError: [Errno 28] No space left on device", "disk"),
        ("ERROR: [Errno 13] Permission denied: '/x/.venv'", "owner"),
        ("ERROR: something else", "pip ended with exit status 2"),
    ],
)
def test_a_failed_installation_is_explained(bootstrap: ModuleType, tail: str, sentence: str) -> None:
    text = bootstrap.explain_pip(2, tail)
    assert sentence in text.splitlines()[0]
    assert text.endswith(tail)


def test_what_torch_can_do_is_told(bootstrap: ModuleType) -> None:
    gpu = {"name": "NVIDIA H200", "architecture": "sm_90", "built": True, "usable": True}
    lines = bootstrap.describe_torch({"version": "2.8.0+cu128", "cuda": "12.8", "devices": [gpu]})
    assert lines == ["torch 2.8.0+cu128, build for CUDA 12.8", "GPU NVIDIA H200 (sm_90): usable"]
    old = {"name": "Old", "architecture": "sm_35", "built": False, "usable": False}
    report = {"version": "2", "cuda": "12", "devices": [old], "trouble": "no kernel image"}
    assert bootstrap.describe_torch(report)[1:] == [
        "GPU Old (sm_35): NOT usable with this build",
        "  no kernel image",
    ]
    assert "driver" in bootstrap.describe_torch({"version": "2", "cuda": "12", "devices": []})[1]
    assert "CPU" in bootstrap.describe_torch({"version": "2", "cuda": None, "devices": []})[0]


def test_the_torch_report_runs_here() -> None:
    code = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    report = next(
        ast.literal_eval(node.value)
        for node in code.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TORCH_REPORT"
    )
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == {"version", "cuda", "devices", "trouble"}


@LINUX
def test_missing_libraries_are_named_with_the_command(bootstrap: ModuleType) -> None:
    wanted = {"libc.so.6": "libc6", "libequipoise-none.so.1": "libnone1"}
    missing = bootstrap.missing_libraries(wanted)
    assert missing == {"libequipoise-none.so.1": "libnone1"}
    user = os.geteuid()
    if user == 0:
        # somebody who may not install anything
        os.seteuid(65534)
    try:
        with pytest.raises(bootstrap.BootstrapError) as caught:
            bootstrap.install_debian_packages(sorted(missing.values()), "Qt needs it")
    finally:
        os.seteuid(user)
    assert "sudo apt-get install -y --no-install-recommends libnone1" in str(caught.value)


def test_the_libraries_of_this_machine_suffice(bootstrap: ModuleType) -> None:
    if sys.platform.startswith("linux"):
        assert bootstrap.missing_libraries(bootstrap.QT_LIBRARIES) == {}


def test_exit_statuses(bootstrap: ModuleType) -> None:
    assert bootstrap.run([sys.executable, "-c", "raise SystemExit(5)"]) == 5
    status, tail = bootstrap.run_quietly([sys.executable, "-c", "for k in range(99): print(k)\nexit(3)"], "")
    assert status == 3
    assert tail.splitlines() == [f"  {k}" for k in range(74, 99)]
    assert bootstrap.run_quietly(["/no/such/program"], "")[0] == 127
    if sys.platform != "win32":
        assert bootstrap.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"]) == 143


def test_without_a_command_it_says_how_to_use_it() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "bootstrap.py demo" in done.stderr
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "bootstrap.py test" in done.stdout


# A project that builds without a network: its backend lies beside it, and its torch only tells its version.
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "equipoise"
version = "0.0.1"
"""
BACKEND = """
import time, zipfile
from pathlib import Path
def get_requires_for_build_editable(config_settings=None):
    return []
def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    Path("builds.txt").open("a").write("x")
    if Path("hang").exists():
        time.sleep(120)
    if Path("fail").exists():
        raise RuntimeError("the backend has failed on purpose")
    name, info = "equipoise-0.0.1-py3-none-any.whl", "equipoise-0.0.1.dist-info"
    with zipfile.ZipFile(Path(wheel_directory) / name, "w") as wheel:
        wheel.writestr("equipoise.pth", str(Path.cwd() / "source"))
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: equipoise\\nVersion: 0.0.1\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""
TORCH = """
__version__ = "0.0+cpu"
class version: cuda = None
class cuda:
    @staticmethod
    def is_available(): return False
"""
APP = "import os, sys; print('demo', sys.argv[1:], os.environ.get('QT_QPA_PLATFORM')); sys.exit(7)"


@LINUX
@pytest.mark.long
def test_installing_once_failing_and_being_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "packaging").mkdir()
    (tmp_path / "source" / "equipoise").mkdir(parents=True)
    script = shutil.copy(SCRIPT, tmp_path / "packaging")
    files = {"pyproject.toml": PROJECT, "backend.py": BACKEND, "source/torch.py": TORCH}
    for name, text in {**files, "source/equipoise/__main__.py": APP}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    stamp, builds = tmp_path / ".venv" / "equipoise-stamp.json", tmp_path / "builds.txt"
    command = [sys.executable, str(script), "demo"]

    first = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert first.returncode == 7, first.stdout + first.stderr
    assert f"demo ['--demo', '{tmp_path / 'demo-output'}'] offscreen" in first.stdout
    assert "torch 0.0+cpu, build for the CPU" in first.stdout
    assert builds.read_text() == "x"

    began = time.monotonic()
    second = subprocess.run(
        [*command, "other", "--seed", "3"], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert time.monotonic() - began < 3
    assert f"demo ['--demo', '{tmp_path / 'other'}', '--seed', '3']" in second.stdout
    assert "torch 0.0+cpu" in second.stdout
    assert builds.read_text() == "x"

    (tmp_path / "pyproject.toml").write_text(PROJECT + "# changed\n", encoding="utf-8")
    (tmp_path / "fail").touch()
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 1
    assert "pip ended with exit status" in failed.stderr
    assert not stamp.exists()
    (tmp_path / "fail").unlink()

    (tmp_path / "hang").touch()
    before = builds.stat().st_size
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while builds.stat().st_size == before and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == "Interrupted."
    assert not stamp.exists()
    (tmp_path / "hang").unlink()

    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 7
    assert stamp.exists()


@LINUX
def test_a_python_without_venv_is_told_the_package(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # as Debian's Python without python3-venv
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\n[ "$2" = "import ensurepip" ] && exit 1\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(bootstrap, "may_install", lambda: False)
    with pytest.raises(bootstrap.BootstrapError, match="cannot make virtual environments") as caught:
        bootstrap.make_venv(tmp_path / ".venv")
    assert "apt-get install -y --no-install-recommends python3." in str(caught.value)
    assert "-venv" in str(caught.value)
    assert not (tmp_path / ".venv").exists()
