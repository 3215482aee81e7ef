"""The one error a user's input can cause, and the line it prints."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. Its message is one line: the key, the value found, and what was expected.

    Every command line catches this class, prints the message on standard error and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


def unknown_name(key: str, value: object, known: Iterable[str]) -> UserError:
    """The error for a name that no registry holds; lists the names that are known."""
    return UserError(f"{key}: unknown name {value!r}; expected one of: {', '.join(sorted(known))}")
