"""What cuelight raises when the user, or the user's machine, has to act.

Every error here prints as one line that names the field, the value and the remedy.  The command line
shows that line and exits with code 2; Python users get the exception.  Anything else that escapes is
a defect of cuelight.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["ArtifactError", "BackboneError", "ConfigError", "CuelightError", "DataError", "nearest"]


class CuelightError(Exception):
    """Base of all errors a user can mend; ``str(error)`` is one line."""


class ConfigError(CuelightError):
    """A wrong method name, option name or option value."""


class DataError(CuelightError):
    """The user's data can not be read, or does not hold what the task needs."""


class BackboneError(CuelightError):
    """A backbone can not be found, fetched or loaded, or is of the wrong kind."""


class ArtifactError(CuelightError):
    """An artifact is damaged, incomplete, or belongs to another backbone."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out: Python's, torch's (on any device) or the system's."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(w in str(error).lower() for w in words)


def nearest(word: str, choices: Iterable[str]) -> str:
    """``" (did you mean 'dept'?)"`` when one of ``choices`` is close to ``word``, else an empty string."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.55)
    return f" (did you mean '{found[0]}'?)" if found else ""
