"""xlbctl in the test's own process."""

from __future__ import annotations

import inspect

from click.testing import CliRunner

from ctl.cli.main import main


def run(*args: str, input: str | bytes | None = None) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of `xlbctl ARGS`. An exception that escapes it fails the test."""
    old = "mix_stderr" in inspect.signature(CliRunner).parameters  # Debian 12's click
    runner = CliRunner(mix_stderr=False) if old else CliRunner()  # type: ignore[call-arg]
    result = runner.invoke(main, args, input=input)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr
