"""The few kinds of error that a user can do something about."""

from __future__ import annotations


class EquipoiseError(Exception):
    """An error with a sentence for the user and, where there is one, a way out.

    Parameters
    ----------
    message
        Says what is wrong and names the file, the value and the limit.
    hint
        What the user can do about it; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadInput(EquipoiseError):
    """A file, a value or a request is wrong; the user can correct it."""


class Unsupported(EquipoiseError):
    """The input is right, but this program cannot do it."""


class OutOfMemory(EquipoiseError):
    """The work does not fit into the memory of the host or of the device."""


class NumericalTrouble(EquipoiseError):
    """A computation gave values that are not finite."""
