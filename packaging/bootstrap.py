#!/usr/bin/env python3
"""Install Equipoise into `.venv` beside this folder, then run it or its tests. Needs only Python itself.

    python3 packaging/bootstrap.py demo [FOLDER] [ARGUMENTS]   install, then work on the sample scans
    python3 packaging/bootstrap.py test [ARGUMENTS]            install with the test tools, then check
    python3 packaging/bootstrap.py install [--test]            install only

The second call finds its own stamp and starts at once. On Debian and Ubuntu, run as root, it also installs
the system libraries that Qt needs; elsewhere it names them.
"""

# Older Pythons must be able to read this file, so that they give a sentence instead of a syntax error.
from __future__ import annotations

import collections
import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
NEWEST = (3, 13)
WINDOWS = sys.platform == "win32"

# Library that Qt loads, and the Debian package that brings it.
QT_LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libfontconfig.so.1": "libfontconfig1",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libdbus-1.so.3": "libdbus-1-3",
}
QT_X11_LIBRARIES = {
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
}

NETWORK_SIGNS = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "Connection refused",
    "Connection reset",
    "Connection aborted",
    "getaddrinfo failed",
    "Read timed out",
)

# Runs in the venv; a computation on the device is the only proof that this build has code for it.
TORCH_REPORT = """
import json, torch
report = {"version": torch.__version__, "cuda": torch.version.cuda, "devices": [], "trouble": ""}
if torch.cuda.is_available():
    built = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        try:
            usable = torch.ones(8, device=f"cuda:{index}").sum().item() == 8
        except Exception as error:
            usable, report["trouble"] = False, str(error).splitlines()[0]
        name, architecture = torch.cuda.get_device_name(index), f"sm_{major}{minor}"
        report["devices"].append(
            {"name": name, "architecture": architecture, "built": architecture in built, "usable": usable}
        )
print(json.dumps(report))
"""


class BootstrapError(Exception):
    """Something that the person at the keyboard has to put right; says what."""


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


# --- Python and the virtual environment -----------------------------------------------------------


def suitable(version: Sequence[int]) -> bool:
    """Return whether a Python of this version can run Equipoise."""
    return OLDEST <= tuple(version[:2]) <= NEWEST


def find_python() -> list[str]:
    """Return the command of a suitable Python: the running one, else the newest of those on PATH.

    Raises
    ------
    BootstrapError
        There is none.
    """
    if suitable(sys.version_info[:2]):
        return [sys.executable]
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        candidates = [[f"python3.{minor}"]]
        if WINDOWS:
            candidates.append(["py", f"-3.{minor}"])
        for command in candidates:
            path = shutil.which(command[0])
            if path and _version_of([path, *command[1:]]) == (3, minor):
                return [path, *command[1:]]
    raise BootstrapError(
        f"Equipoise needs Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}, this is Python "
        f"{platform.python_version()}; install a suitable Python and call it by its name, "
        f"as python{OLDEST[0]}.{OLDEST[1]} packaging/bootstrap.py"
    )


def _version_of(command: list[str]) -> tuple[int, ...]:
    code = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([*command, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        return tuple(int(part) for part in done.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()


def venv_python(venv: Path) -> Path:
    """Return the path of the interpreter inside a virtual environment."""
    return venv / "Scripts" / "python.exe" if WINDOWS else venv / "bin" / "python"


def venv_version(venv: Path) -> str:
    """Return the Python version of a virtual environment, empty where it is not one."""
    try:
        text = (venv / "pyvenv.cfg").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    found = re.search(r"^version(?:_info)?\s*=\s*([0-9.]+)", text, re.MULTILINE)
    return found.group(1) if found and venv_python(venv).exists() else ""


def make_venv(venv: Path) -> None:
    """Make a virtual environment with pip, unless there is a whole one of a suitable Python.

    Raises
    ------
    BootstrapError
        Python cannot make one; says the command that mends it.
    """
    version = venv_version(venv)
    if version and suitable(_numbers(version)) and _has_pip(venv):
        return
    python = find_python()
    # Debian and Ubuntu ship Python without the part that makes environments
    if not _has_ensurepip(python):
        install_debian_packages([_venv_package(python)], "this Python cannot make virtual environments")
    if venv.exists():
        say(f"Replacing {venv} ({f'it is of Python {version}' if version else 'it is incomplete'}) ...")
    else:
        say(f"Making {venv} ...")
    status, tail = run_quietly([*python, "-m", "venv", "--clear", str(venv)], "making it")
    if status or not _has_pip(venv):
        raise BootstrapError(f"The virtual environment {venv} could not be made:\n{tail}")


def _has_ensurepip(python: list[str]) -> bool:
    return run_quietly([*python, "-c", "import ensurepip"], "")[0] == 0


def _venv_package(python: list[str]) -> str:
    """Return the Debian package that lets this Python make virtual environments."""
    if Path(python[0]).resolve() == Path("/usr/bin/python3").resolve():
        return "python3-venv"
    return "python{}.{}-venv".format(*_version_of(python))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part)


def _has_pip(venv: Path) -> bool:
    return run_quietly([str(venv_python(venv)), "-m", "pip", "--version"], "")[0] == 0


# --- running things -------------------------------------------------------------------------------


def clean_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a program in the venv: nothing of another Python may leak in."""
    outside = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    environment = {name: value for name, value in os.environ.items() if name not in outside}
    environment.update(extra or {})
    return environment


def run(command: list[str], extra: dict[str, str] | None = None) -> int:
    """Run a program in the repository with this terminal and return its exit status."""
    process = subprocess.Popen(command, cwd=ROOT, env=clean_environment(extra))
    try:
        status = process.wait()
    except KeyboardInterrupt:
        # the terminal has interrupted the program, too; it may need a moment to save
        try:
            process.wait(timeout=20)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()
        raise
    return status if status >= 0 else 128 - status


def run_quietly(command: list[str], activity: str, extra: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a program without showing its output; return its exit status and its last lines.

    With an `activity`, a sign of life is printed every 30 seconds.
    """
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=clean_environment(extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        return 127, f"  {command[0]}: {error.strerror}"
    lines: collections.deque[str] = collections.deque(maxlen=25)
    assert process.stdout is not None
    stream = process.stdout

    def collect() -> None:
        with stream:
            for line in stream:
                lines.append("  " + line.decode("utf-8", "replace").rstrip())

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    began = time.monotonic()
    try:
        while True:
            reader.join(30)
            if not reader.is_alive():
                break
            if activity:
                latest = lines[-1].strip()[:70] if lines else ""
                say(f"  still {activity}, {time.monotonic() - began:.0f} s  {latest}")
        status = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    finally:
        if process.poll() is None:
            process.kill()
    return status, "\n".join(lines)


# --- system libraries -----------------------------------------------------------------------------


def display_wanted() -> bool:
    """Return whether Qt will open real windows through X11."""
    chosen = os.environ.get("QT_QPA_PLATFORM", "")
    return bool(os.environ.get("DISPLAY")) and not os.environ.get("WAYLAND_DISPLAY") and chosen in ("", "xcb")


def missing_libraries(libraries: dict[str, str]) -> dict[str, str]:
    """Return those of the libraries that cannot be loaded."""
    missing = {}
    for library, package in libraries.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing[library] = package
    return missing


def check_libraries(with_window: bool) -> None:
    """Make sure that Qt can load what it needs from the system (Linux only).

    Raises
    ------
    BootstrapError
        A library is missing; says the command that installs it.
    """
    if not sys.platform.startswith("linux"):
        return
    wanted = {**QT_LIBRARIES, **(QT_X11_LIBRARIES if with_window and display_wanted() else {})}
    missing = missing_libraries(wanted)
    if not missing:
        return
    install_debian_packages(sorted(set(missing.values())), f"Qt needs {', '.join(missing)}")
    left = missing_libraries(missing)
    if left:
        raise BootstrapError(f"Qt needs {', '.join(left)}, which still cannot be loaded after the installation.")


def debian_like() -> bool:
    """Return whether this is Debian, Ubuntu or a relative with apt-get."""
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return False
    families = re.findall(r'^ID(?:_LIKE)?="?([^"\n]*)', text, re.MULTILINE)
    return bool({"debian", "ubuntu"} & set(" ".join(families).split())) and shutil.which("apt-get") is not None


def may_install() -> bool:
    """Return whether this is root on a system with apt-get."""
    return not WINDOWS and os.geteuid() == 0 and debian_like()


def install_debian_packages(packages: list[str], reason: str) -> None:
    """Install system packages as root on Debian or Ubuntu.

    Raises
    ------
    BootstrapError
        Not root, not such a system, or apt-get failed; says the command.
    """
    command = f"apt-get install -y --no-install-recommends {' '.join(packages)}"
    if not may_install():
        where = "Run" if debian_like() else "On Debian or Ubuntu run"
        raise BootstrapError(
            f"{reason[0].upper()}{reason[1:]}. {where}\n\n    sudo {command}\n\nand start again."
            + ("" if debian_like() else " Elsewhere install the packages that bring the same files.")
        )
    say(f"{reason[0].upper()}{reason[1:]}: installing {' '.join(packages)} ...")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    # an old package list may name files that are gone; without a network the install below says so
    updated, update_tail = run_quietly(["apt-get", "update"], "reading package lists", quiet)
    status, tail = run_quietly(command.split(), "installing system packages", quiet)
    if status:
        raise BootstrapError(
            f"{reason[0].upper()}{reason[1:]}, and apt-get could not install it. Run\n\n    {command}\n\n"
            f"and start again. Its last lines:\n{update_tail if updated else ''}\n{tail}"
        )


def add_dicom_validator() -> None:
    """Install dciodvfy, which checks the exported DICOM, where that is possible; say so where it is not."""
    if shutil.which("dciodvfy"):
        return
    if may_install():
        try:
            install_debian_packages(["dicom3tools"], "the DICOM tests need dciodvfy")
        except BootstrapError as error:
            say(str(error))
    if not shutil.which("dciodvfy"):
        say("dciodvfy (Debian package dicom3tools) is not installed: the tests that call it will be skipped.")


# --- installing -----------------------------------------------------------------------------------


def wanted_stamp(root: Path, version: str, extras: list[str]) -> dict[str, object]:
    """Return what describes an installation; two that are equal need not be repeated."""
    digest = hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()
    return {"project": digest, "python": version, "root": str(root), "extras": sorted(extras)}


def read_stamp(venv: Path) -> dict[str, object]:
    """Return the stamp of the last complete installation, empty where there is none."""
    try:
        stamp = json.loads((venv / "equipoise-stamp.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(venv: Path, stamp: dict[str, object]) -> None:
    """Write the stamp, whole or not at all."""
    partial = venv / "equipoise-stamp.json.partial"
    partial.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    os.replace(partial, venv / "equipoise-stamp.json")


def covers(stamp: dict[str, object], wanted: dict[str, object]) -> bool:
    """Return whether a stamped installation already has everything that is wanted."""
    had, needed = stamp.get("extras"), wanted["extras"]
    if not isinstance(had, list) or not isinstance(needed, list) or not set(needed) <= set(had):
        return False
    return all(stamp.get(name) == wanted[name] for name in wanted if name != "extras")


def install(extras: list[str]) -> Path:
    """Make `.venv` and install the project into it, unless that has been done; return the venv's interpreter.

    Raises
    ------
    BootstrapError
        It cannot be done here; says why and what to do.
    """
    venv = ROOT / ".venv"
    stamp = read_stamp(venv)
    if covers(stamp, wanted_stamp(ROOT, venv_version(venv), extras)):
        report_torch(venv, stamp)
        return venv_python(venv)
    make_venv(venv)
    # what an earlier call installed is kept: `demo` after `test` must not make `test` install again
    had = stamp.get("extras")
    extras = sorted({*extras, *(had if isinstance(had, list) else [])})
    # from here until it is written again there is no stamp, so an interrupted installation is repeated
    (venv / "equipoise-stamp.json").unlink(missing_ok=True)
    target = ".[" + ",".join(extras) + "]" if extras else "."
    say(f"Installing Equipoise and its libraries into {venv} (once; some minutes) ...")
    command = [str(venv_python(venv)), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    began = time.monotonic()
    status, tail = run_quietly([*command, "-e", target], "installing", {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    if status:
        raise BootstrapError(explain_pip(status, tail))
    stamp = wanted_stamp(ROOT, venv_version(venv), extras)
    say(f"  installed in {time.monotonic() - began:.0f} s")
    report_torch(venv, stamp)
    return venv_python(venv)


def explain_pip(status: int, tail: str) -> str:
    """Return a sentence for a failed installation, and the last lines of pip below it."""
    if any(sign in tail for sign in NETWORK_SIGNS):
        reason = (
            "The Python packages could not be downloaded: there is no way to the package index. Check the "
            "network (and the proxy, HTTPS_PROXY) and start again; what is already there is kept"
        )
    elif "No space left on device" in tail:
        reason = f"The disk of {ROOT} is full; a complete installation takes about 2 GB (8 GB with CUDA)"
    elif "Permission denied" in tail:
        reason = f"The installation was not allowed to write; check the owner of {ROOT / '.venv'}"
    else:
        reason = f"pip ended with exit status {status}"
    return f"{reason}. Its last lines:\n{tail}"


def report_torch(venv: Path, stamp: dict[str, object]) -> None:
    """Say which torch build is installed and whether a GPU can be used; stamp it.

    Starting torch takes seconds, and a CPU build cannot come to use a GPU: for it the stamp is trusted.
    """
    known = stamp.get("torch")
    if not (isinstance(known, dict) and known.get("cuda") is None and "version" in known):
        command = [str(venv_python(venv)), "-W", "ignore", "-c", TORCH_REPORT]
        done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True)
        try:
            known = json.loads(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            raise BootstrapError(
                f"torch is installed but does not start:\n{done.stderr.strip()[-2000:]}\nDelete {venv} and start again."
            ) from None
        write_stamp(venv, {**stamp, "torch": known})
    for line in describe_torch(known):
        say(line)


def describe_torch(report: dict[str, object]) -> list[str]:
    """Return the lines that tell a person what torch can do here."""
    cuda, devices = report["cuda"], report.get("devices")
    lines = [f"torch {report['version']}, {'build for CUDA ' + str(cuda) if cuda else 'build for the CPU'}"]
    if isinstance(devices, list) and devices:
        for device in devices:
            state = "usable" if device["usable"] else "NOT usable with this build"
            if device["usable"] and not device["built"]:
                state += ", through a compatible architecture"
            lines.append(f"GPU {device['name']} ({device['architecture']}): {state}")
        if report.get("trouble"):
            lines.append(f"  {report['trouble']}")
    elif cuda:
        lines.append("No GPU can be used: the NVIDIA driver or the device is missing. The CPU computes.")
    elif shutil.which("nvidia-smi"):
        lines.append("There is an NVIDIA GPU, but this torch is built for the CPU, which computes.")
    else:
        lines.append("No GPU is used; the CPU computes.")
    return lines


# --- commands -------------------------------------------------------------------------------------


def demo(arguments: list[str]) -> int:
    """Open, reconstruct, adapt and export the sample scans; leave the window open where there is a screen."""
    check_libraries(with_window=True)
    python = install([])
    folder, rest = ROOT / "demo-output", arguments
    if arguments and not arguments[0].startswith("-"):
        folder, rest = Path(arguments[0]).absolute(), arguments[1:]
    extra = {}
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not screen and "QT_QPA_PLATFORM" not in os.environ:
        say("There is no display: the demo runs offscreen and saves a picture of the window.")
        extra["QT_QPA_PLATFORM"] = "offscreen"
    return run([str(python), "-m", "equipoise", "--demo", str(folder), *rest], extra)


def test(arguments: list[str]) -> int:
    """Run the style check, the type check and the tests; stop at the first that fails."""
    check_libraries(with_window=False)
    add_dicom_validator()
    python = install(["test"])
    extra = {} if "QT_QPA_PLATFORM" in os.environ else {"QT_QPA_PLATFORM": "offscreen"}
    for step in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"], ["pytest", *arguments]):
        say(f"\n== {' '.join(step)}")
        status = run([str(python), "-m", *step], extra)
        if status:
            say(f"== {step[0]} failed with exit status {status}")
            return status
    return 0


def main(arguments: list[str]) -> int:
    """Run a command of this script and return the exit status."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    try:
        if command == "demo":
            return demo(rest)
        if command == "test":
            return test(rest)
        if command == "install" and rest in ([], ["--test"]):
            check_libraries(with_window=True)
            python = install(["test"] if rest else [])
            say(f"Start it with: {python} -m equipoise")
            return 0
    except BootstrapError as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr, flush=True)
        return 130
    wanted = command in ("-h", "--help", "help")
    print(__doc__.strip(), file=sys.stdout if wanted else sys.stderr)
    return 0 if wanted else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
