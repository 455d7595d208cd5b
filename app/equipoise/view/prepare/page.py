"""What all pages of the window "Prepare scan" have in common."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QWidget

from equipoise.session import Session
from equipoise_engine.protocol import Failed, Needed, Pixels, ScanFacts, Seen
from equipoise_engine.recipe import Recipe


class Page(QWidget):
    """Shows one side of a recipe and tells what the user changes; the window keeps the recipe.

    Parameters
    ----------
    session
        To ask for pictures with `look`, by purposes whose names begin with the page's own.
    """

    edited = Signal(object)
    """The whole new Recipe, from the user's hand only."""
    title = ""
    """On the tab, with a mnemonic."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def show_draft(self, facts: ScanFacts | None, needed: Needed | None, recipe: Recipe) -> None:
        """Show a recipe.

        Parameters
        ----------
        facts
            The scan as it was opened last, perhaps with an earlier recipe; None where it could not be opened.
        needed
            What it lacks, where it could not be opened.
        recipe
            The draft.
        """
        raise NotImplementedError

    def show_seen(self, purpose: str, seen: Seen, pixels: Pixels) -> None:
        """Take in a picture `(row, column)`, float32, that some page or the window has asked for."""

    def show_failure(self, purpose: str, failed: Failed) -> None:
        """Take in that a picture could not be made."""
