"""Everything the user can do, as one table; menus, toolbar and the command palette are made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Protocol

from equipoise.session import Session
from equipoise.settings import Settings
from equipoise.state import EnginePhase, JobPhase, State, active_jobs, slice_count


class Window(Protocol):
    """What commands need of the window."""

    @property
    def session(self) -> Session:
        """The session that the window shows."""
        ...

    def ask_open_file(self) -> None:
        """Let the user choose files and open them."""

    def ask_open_folder(self) -> None:
        """Let the user choose a folder and open it."""

    def open_sample(self, kind: str) -> None:
        """Open the sample scan, "ct" or "mri"."""

    def ask_reference(self, *, folder: bool) -> None:
        """Let the user choose an image volume to compare with, a file or a folder, and open it."""

    def prepare_scan(self) -> None:
        """Show the window that prepares the scan."""

    def reconstruct(self) -> None:
        """Reconstruct with the parameters in the controls."""

    def adapt(self) -> None:
        """Adapt with the parameters in the adapt panel."""

    def ask_export(self, kind: str) -> None:
        """Let the user choose what to export as "tiff" or "dicom", and where to."""

    def reset_zoom(self) -> None:
        """Show the whole slice in all panes."""

    def auto_levels(self) -> None:
        """Choose black and white by the picture."""

    def set_theme(self, theme: str) -> None:
        """Change the colours: "light", "dark" or "system"."""

    def toggle_full_screen(self) -> None:
        """Fill the screen, or stop doing so."""

    def reset_layout(self) -> None:
        """Put all panels back to where they were at first."""

    def show_palette(self) -> None:
        """Show all commands, to be searched."""

    def show_preferences(self) -> None:
        """Let the user change the preferences."""

    def copy_system_info(self) -> None:
        """Copy versions and the machine for a report."""

    def show_about(self) -> None:
        """Show versions, licences and the citation."""

    def close(self) -> bool:
        """Close the window."""
        ...


@dataclass(frozen=True)
class Command:
    """One thing the user can do.

    Parameters
    ----------
    id
        Unique name.
    text
        As in the menu.
    shortcut
        Portable text of the key sequence; empty for none.
    enabled
        Whether it can be done in a state.
    run
        Does it.
    menu
        Menu that holds it.
    icon
        Name of a qtawesome icon; empty for none.
    tip
        What it does, in one sentence.
    toolbar
        Short text on the toolbar; empty keeps it off.
    checked
        Whether it is the choice in force, for those that are one of several.
    """

    id: str
    text: str
    shortcut: str
    enabled: Callable[[State], bool]
    run: Callable[[Window], None]
    menu: str
    icon: str = ""
    tip: str = ""
    toolbar: str = ""
    checked: Callable[[State, Settings], bool] | None = None


MENUS = ("File", "Reconstruct", "View", "Engine", "Help")


def _always(state: State) -> bool:
    return True


def _can_prepare(state: State) -> bool:
    return state.scan is not None or state.needed is not None


def _can_compute(state: State) -> bool:
    return state.scan is not None and state.engine.phase is EnginePhase.READY


def _can_export(state: State) -> bool:
    return any(run.result is not None and run.held and not run.is_reference for run in state.runs)


def _can_cancel(state: State) -> bool:
    return any(job.phase is not JobPhase.CANCELLING for job in active_jobs(state))


def _can_keep(state: State) -> bool:
    return any(job.phase is JobPhase.RUNNING and job.kind in ("reconstruct", "adapt") for job in active_jobs(state))


def _has_picture(state: State) -> bool:
    return any(pane.picture is not None for pane in state.panes)


def _has_slices(state: State) -> bool:
    return slice_count(state) > 1


def _cancel(window: Window, *, keep: bool) -> None:
    jobs = [
        job
        for job in active_jobs(window.session.state)
        if job.phase is not JobPhase.CANCELLING and (not keep or job.kind in ("reconstruct", "adapt"))
    ]
    running = [job for job in jobs if job.phase is JobPhase.RUNNING]
    for job in (running or jobs)[:1]:
        window.session.cancel(job.id, keep)


def _step_slice(window: Window, *, by: int) -> None:
    window.session.set_slice(window.session.state.slice_index + by)


def _close(window: Window) -> None:
    window.close()


def _panes(count: int) -> Command:
    return Command(
        id=f"panes-{count}",
        text="1 pane" if count == 1 else f"{count} panes",
        shortcut=f"Ctrl+{count}",
        enabled=_always,
        run=lambda window: window.session.set_pane_count(count),
        menu="View",
        icon={1: "fa5s.square", 2: "fa5s.columns", 4: "fa5s.th-large"}.get(count, ""),
        tip=f"Show {count} result{'s' if count > 1 else ''} side by side",
        checked=lambda state, settings: len(state.panes) == count,
    )


def _theme(name: str, text: str, icon: str) -> Command:
    return Command(
        id=f"theme-{name}",
        text=text,
        shortcut="",
        enabled=_always,
        run=lambda window: window.set_theme(name),
        menu="View",
        icon=icon,
        tip=f"{text} for the whole window",
        checked=lambda state, settings: settings.theme == name,
    )


COMMANDS: tuple[Command, ...] = (
    Command(
        "open-file",
        "Open scan …",
        "Ctrl+O",
        _always,
        lambda window: window.ask_open_file(),
        "File",
        "fa5s.file-import",
        "Open a measured CT or MRI scan; its format is recognised by its content",
        "Open",
    ),
    Command(
        "open-folder",
        "Open folder …",
        "Ctrl+Shift+O",
        _always,
        lambda window: window.ask_open_folder(),
        "File",
        "fa5s.folder-open",
        "Open a scan that is a folder of files",
    ),
    Command(
        "open-sample-ct",
        "Open sample CT scan",
        "",
        _always,
        lambda window: window.open_sample("ct"),
        "File",
        "fa5s.flask",
        "Open the simulated CT scan that comes with the program",
    ),
    Command(
        "open-sample-mri",
        "Open sample MRI scan",
        "",
        _always,
        lambda window: window.open_sample("mri"),
        "File",
        "fa5s.flask",
        "Open the simulated MRI scan that comes with the program",
    ),
    Command(
        "reference-file",
        "Open reference …",
        "Ctrl+Alt+O",
        _always,
        lambda window: window.ask_reference(folder=False),
        "File",
        "fa5s.image",
        "Open an image volume to compare results with: DICOM, NIfTI, NRRD, TIFF or HDF5",
    ),
    Command(
        "reference-folder",
        "Open reference folder …",
        "",
        _always,
        lambda window: window.ask_reference(folder=True),
        "File",
        "fa5s.images",
        "Open a series of images in a folder to compare results with",
    ),
    Command(
        "export-tiff",
        "Export TIFF …",
        "Ctrl+E",
        _can_export,
        lambda window: window.ask_export("tiff"),
        "File",
        "fa5s.file-export",
        "Write a result as 32-bit TIFF with its pixel size",
        "Export",
    ),
    Command(
        "export-dicom",
        "Export DICOM …",
        "Ctrl+Shift+E",
        _can_export,
        lambda window: window.ask_export("dicom"),
        "File",
        "fa5s.x-ray",
        "Write a result as a DICOM series into a folder",
    ),
    Command(
        "preferences",
        "Preferences …",
        "Ctrl+,",
        _always,
        lambda window: window.show_preferences(),
        "File",
        "fa5s.cog",
        "Engine command, colours, font size, export folder",
    ),
    Command(
        "quit",
        "Quit",
        "Ctrl+Q",
        _always,
        _close,
        "File",
        "fa5s.sign-out-alt",
        "Close the window; a running adaptation is saved",
    ),
    Command(
        "prepare",
        "Prepare scan …",
        "Ctrl+P",
        _can_prepare,
        lambda window: window.prepare_scan(),
        "Reconstruct",
        "fa5s.sliders-h",
        "Say what the files do not, choose a part of the scan, and set the steps of its preparation",
        "Prepare",
    ),
    Command(
        "reconstruct",
        "Reconstruct",
        "Ctrl+R",
        _can_compute,
        lambda window: window.reconstruct(),
        "Reconstruct",
        "fa5s.play",
        "Reconstruct the active scan with the method and parameters in the controls",
        "Reconstruct",
    ),
    Command(
        "adapt",
        "Adapt to my data",
        "Ctrl+Shift+A",
        _can_compute,
        lambda window: window.adapt(),
        "Reconstruct",
        "fa5s.magic",
        "Adapt the equilibrium model to the active scan, without ground truth",
        "Adapt",
    ),
    Command(
        "cancel",
        "Cancel running job",
        "Esc",
        _can_cancel,
        partial(_cancel, keep=False),
        "Reconstruct",
        "fa5s.stop",
        "Stop the running job and drop what it has",
        "Cancel",
    ),
    Command(
        "stop-and-keep",
        "Stop and keep",
        "Ctrl+K",
        _can_keep,
        partial(_cancel, keep=True),
        "Reconstruct",
        "fa5s.hand-paper",
        "Stop the running job; what it has so far becomes its result",
        "Stop and keep",
    ),
    Command(
        "next-slice",
        "Next slice",
        "PgUp",
        _has_slices,
        partial(_step_slice, by=1),
        "View",
        "fa5s.chevron-up",
        "Show the next slice in all panes",
    ),
    Command(
        "previous-slice",
        "Previous slice",
        "PgDown",
        _has_slices,
        partial(_step_slice, by=-1),
        "View",
        "fa5s.chevron-down",
        "Show the previous slice in all panes",
    ),
    _panes(1),
    _panes(2),
    _panes(3),
    _panes(4),
    Command(
        "reset-zoom",
        "Reset zoom",
        "Ctrl+0",
        _has_picture,
        lambda window: window.reset_zoom(),
        "View",
        "fa5s.expand",
        "Show the whole slice in all panes",
        "Reset zoom",
    ),
    Command(
        "auto-levels",
        "Automatic levels",
        "Ctrl+L",
        _has_picture,
        lambda window: window.auto_levels(),
        "View",
        "fa5s.adjust",
        "Choose black and white by the picture",
        "Levels",
    ),
    _theme("system", "System colours", "fa5s.desktop"),
    _theme("light", "Light colours", "fa5s.sun"),
    _theme("dark", "Dark colours", "fa5s.moon"),
    Command(
        "full-screen",
        "Full screen",
        "F11",
        _always,
        lambda window: window.toggle_full_screen(),
        "View",
        "fa5s.expand-arrows-alt",
        "Fill the screen, or go back to a window",
    ),
    Command(
        "reset-layout",
        "Reset layout",
        "",
        _always,
        lambda window: window.reset_layout(),
        "View",
        "fa5s.undo",
        "Put all panels back to where they were at first",
    ),
    Command(
        "restart-engine",
        "Restart engine",
        "",
        _always,
        lambda window: window.session.restart_engine(),
        "Engine",
        "fa5s.redo",
        "End the engine process and start another; scans are opened again, running jobs fail",
    ),
    Command(
        "palette",
        "Command palette …",
        "Ctrl+Shift+P",
        _always,
        lambda window: window.show_palette(),
        "Help",
        "fa5s.terminal",
        "Search all commands",
    ),
    Command(
        "system-info",
        "Copy system information",
        "",
        _always,
        lambda window: window.copy_system_info(),
        "Help",
        "fa5s.clipboard",
        "Copy versions and the machine for a report",
    ),
    Command(
        "about",
        "About Equipoise",
        "",
        _always,
        lambda window: window.show_about(),
        "Help",
        "fa5s.info-circle",
        "Versions, licences and how to cite the method",
    ),
)


def recent_commands(settings: Settings) -> tuple[Command, ...]:
    """Return one command for each recent scan, newest first."""

    def command(path: str) -> Command:
        return Command(
            id=f"recent:{path}",
            text=f"{PurePath(path).name} ({PurePath(path).parent})",
            shortcut="",
            enabled=_always,
            run=lambda window: window.session.open(path),
            menu="Open recent",
            tip=f"Open {path}",
        )

    return tuple(command(path) for path in settings.recent)
