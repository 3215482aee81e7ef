"""The one error a user's input can cause, and the line it prints."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 4000
"""Letters of a message: what is shown of a value found may be as long as the file it came from."""


class UserError(ValueError):
    """Bad input. Its message is one line: the key, the value found, and what was expected.

    Every command line catches this class, prints the message on standard error and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        line = printable(" ".join(str(message).split()))
        super().__init__(line if len(line) <= LONGEST else f"{line[:LONGEST]}…")


def printable(text: str) -> str:
    """``text`` with what would act on a terminal or cannot be encoded (escape codes, lone surrogates) as ``\\x1b``."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def unknown_name(key: str, value: object, known: Iterable[str]) -> UserError:
    """The error for a name that no registry holds; lists the names that are known."""
    return UserError(f"{key}: unknown name {value!r}; expected one of: {', '.join(sorted(known))}")
