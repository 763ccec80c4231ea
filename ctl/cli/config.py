"""`xlbctl apply`, `diff`, `export`: the configuration as one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ctl.api.protocol import MAX_MESSAGE_BYTES
from ctl.cli.base import Session, XlbCommand, pass_session
from ctl.cli.options import file_option
from ctl.cli.output import plural, print_json, show
from ctl.errors import InvalidInput, storage_code


@click.command(
    "apply",
    cls=XlbCommand,
    examples=["xlbctl apply -f farms.toml --dry-run", "xlbctl apply -f farms.toml", "xlbctl export | xlbctl apply -f -"],
)
@file_option
@click.option("--dry-run", is_flag=True, help="Show the changes without making them.")
@pass_session
def apply(session: Session, path: Path, dry_run: bool) -> None:
    """Make the configuration equal to a file; farms, backends and VIPs that the file does not name are removed.

    The file is applied completely or not at all. Connections to unchanged backends continue.
    """
    changes = _ask(session, "config.apply", path, dry_run=dry_run)
    show(session.json, {"changes": changes, "applied": not dry_run}, lambda _: _print_changes(changes, dry_run))


@click.command("diff", cls=XlbCommand, examples=["xlbctl diff -f farms.toml", "xlbctl diff -f farms.toml && echo same"])
@file_option
@click.pass_context
def diff(ctx: click.Context, path: Path) -> None:
    """Show what 'apply' would change. Like diff(1), exits 0 without differences and 1 with differences.

    A failure also exits 1, or 2 if the file is invalid, with a message on stderr and nothing on stdout.
    """
    session = ctx.find_object(Session)
    assert session is not None
    changes = _ask(session, "config.diff", path)
    show(session.json, {"changes": changes}, lambda _: _print_changes(changes, True))
    ctx.exit(1 if changes else 0)


@click.command("export", cls=XlbCommand, examples=["xlbctl export > farms.toml", "xlbctl export -o json"])
@pass_session
def export(session: Session) -> None:
    """Write the configuration as a farms file that 'apply' reads (TOML, or JSON with -o json)."""
    document = session.call("config.export")
    if session.json:
        print_json(document)
    else:
        from ctl.config import farms_file

        click.echo(farms_file.to_text(document), nl=False)


def _ask(session: Session, command: str, path: Path, **args: Any) -> list[str]:
    """Send the file's content; an error about the content starts with the file name."""
    from ctl.config import farms_file

    source = "standard input" if str(path) == "-" else str(path)
    document = farms_file.parse_text(read_text(path, source), source)
    try:
        changes: list[str] = session.call(command, document=dict(document), **args)
    except InvalidInput as error:
        raise InvalidInput(str(error), source, error.code) from error
    return changes


def read_text(path: Path, source: str) -> str:
    """Return the content of the file, or of standard input for "-".

    Raises InvalidInput if it is not UTF-8, too long or unreadable.
    """
    try:
        if source == "standard input":
            data = sys.stdin.buffer.read(MAX_MESSAGE_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAX_MESSAGE_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise InvalidInput(f"cannot read {source}: {error.strerror}", "--file", storage_code(error)) from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"byte {error.start} is not UTF-8; expected a TOML file", source) from error
    if len(data) > MAX_MESSAGE_BYTES:
        raise InvalidInput(f"expected at most {MAX_MESSAGE_BYTES} bytes, the limit of one request to xlbd", source)
    return text


def _print_changes(changes: list[str], dry_run: bool) -> None:
    for change in changes:
        click.echo(change)
    if not changes:
        click.echo("no changes: the configuration is equal to the file", err=True)
    elif not dry_run:
        click.echo(f"{plural(len(changes), 'change')} applied", err=True)
