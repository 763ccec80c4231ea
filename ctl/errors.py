"""The errors people see. Each names the thing and the remedy; the exit code follows from the class."""

from __future__ import annotations


class XlbError(Exception):
    """Something refused or failed at run time (exit code 1)."""

    exit_code = 1
    kind = "refused"


class InvalidInput(XlbError):
    """What was asked makes no sense (exit code 2); nothing was changed.

    `key` is the option, file key or argument at fault, e.g. "farm.web.port"; empty when no single one is.
    """

    exit_code = 2
    kind = "invalid"

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key
