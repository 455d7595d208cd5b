"""The few kinds of error that a user can do something about."""

from __future__ import annotations

from equipoise_engine.recipe import Source


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


class Incomplete(BadInput):
    """A scan cannot be understood without something that its files do not say.

    Parameters
    ----------
    missing
        What is missing, by the names of `recipe.Known` and of its roles: "angles", "projections", "matrix", ...
    sources
        Parts of the files that may have a role.
    """

    def __init__(
        self, message: str, hint: str = "", *, missing: tuple[str, ...], sources: tuple[Source, ...] = ()
    ) -> None:
        super().__init__(message, hint)
        self.missing = missing
        self.sources = sources


class Unsupported(EquipoiseError):
    """The input is right, but this program cannot do it."""


class OutOfMemory(EquipoiseError):
    """The work does not fit into the memory of the host or of the device."""


class NumericalTrouble(EquipoiseError):
    """A computation gave values that are not finite."""
