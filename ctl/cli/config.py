"""`xlbctl apply`, `diff`, `export`: the configuration as one file; `history`, `rollback`: the configurations before it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ctl.api.protocol import MAX_MESSAGE_BYTES
from ctl.cli.base import Session, XlbCommand, pass_session
from ctl.cli.options import complete_generation, file_option
from ctl.cli.output import has_effect, plural, print_fields, print_impact, print_json, print_table, printable, show
from ctl.cli.terminal.tables import Column
from ctl.errors import InvalidInput, storage_code

MAX_NAMED = 5
"""Removals that one line names."""

HISTORY_COLUMNS = (
    Column("GENERATION"),
    Column("TIME", priority=1),
    Column("USER", priority=2),
    Column("NODE", priority=4),
    Column("COMMAND", priority=3),
    Column("CHANGES", text=True),
)


@click.command(
    "apply",
    cls=XlbCommand,
    examples=["xlbctl apply -f farms.toml --dry-run", "xlbctl apply -f farms.toml", "xlbctl export | xlbctl apply -f - --yes"],
)
@file_option
@click.option("--dry-run", is_flag=True, help="Show the changes without making them.")
@click.option("--yes", is_flag=True, help="Remove what the file does not name without confirmation.")
@click.option("--force", is_flag=True, help="Accept an empty file, and VIPs that are a node's own addresses.")
@pass_session
def apply(session: Session, path: Path, dry_run: bool, yes: bool, force: bool) -> None:
    """Make the configuration equal to a file; farms, backends and VIPs that the file does not name are removed.

    Removals are listed and need a confirmation, or --yes in a script. The file is applied completely or not at all.
    Connections to unchanged backends continue.
    """
    source, document = _document(path)
    emptying = not (force or document.get("vip") or document.get("farm"))
    removals = _ask(session, "config.removals", source, document) if not dry_run and (emptying or not yes) else []
    if removals and emptying:
        raise InvalidInput("is empty: every VIP and farm would be removed; if that is meant, add --force", source)
    if removals and not yes:
        _confirm(removals)
    changes = _ask(session, "config.apply", source, document, dry_run=dry_run, force=force or None)
    answer: dict[str, Any] = {"changes": changes, "applied": not dry_run}
    if dry_run:
        answer["impact"] = session.call("config.impact", document=document)
    show(session.json, answer, lambda _: _print_changes(changes, dry_run))
    if dry_run and not session.json and has_effect(answer["impact"]):
        print_impact(answer["impact"])


@click.command("diff", cls=XlbCommand, examples=["xlbctl diff -f farms.toml", "xlbctl diff -f farms.toml && echo same"])
@file_option
@click.pass_context
def diff(ctx: click.Context, path: Path) -> None:
    """Show what 'apply' would change. Like diff(1), exits 0 without differences and 1 with differences.

    A failure also exits 1, or 2 if the file is invalid, with a message on stderr and nothing on stdout.
    """
    session = ctx.find_object(Session)
    assert session is not None
    changes = _ask(session, "config.diff", *_document(path))
    show(session.json, {"changes": changes}, lambda _: _print_changes(changes, True))
    ctx.exit(1 if changes else 0)


@click.command("export", cls=XlbCommand, examples=["xlbctl export > farms.toml", "xlbctl export -o json"])
@pass_session
def export(session: Session) -> None:
    """Write the configuration as a farms file that 'apply' reads (TOML, or JSON with -o json)."""
    from ctl.config import farms_file

    document = session.call("config.export")
    if session.json:
        print_json(farms_file.readable(document))
    else:
        click.echo(farms_file.to_text(document), nl=False)


@click.command(
    "history",
    cls=XlbCommand,
    examples=[
        "xlbctl history",
        "xlbctl history 12",
        "xlbctl history 12 --farms > farms.toml",
        "xlbctl history conflict-3-12",
    ],
)
@click.argument("generation", required=False, shell_complete=complete_generation)
@click.option("--farms", is_flag=True, help="Write the farms file of the generation.")
@pass_session
def history(session: Session, generation: str | None, farms: bool) -> None:
    """List the last generations of the configuration; with GENERATION, show what that one changed.

    The list has the last 50 that were in force on this node, and as conflict-EPOCH-GENERATION the configurations that lost
    when both nodes were active. GENERATION is a name in the list. 'rollback' puts one in force again.
    """
    if generation is None:
        if farms:
            raise InvalidInput("needs a GENERATION", "--farms")
        show(session.json, {"generations": session.call("config.history")}, _print_history)
        return
    from ctl.config import farms_file

    answer = session.call("config.generation", generation=generation)
    document = answer.pop("document")
    if farms and not session.json:
        click.echo(farms_file.to_text(document), nl=False)
    elif farms:
        print_json(farms_file.readable(document))
    else:
        show(session.json, answer, _print_generation)


@click.command("rollback", cls=XlbCommand, examples=["xlbctl rollback 12 --dry-run", "xlbctl rollback 12"])
@click.argument("generation", shell_complete=complete_generation)
@click.option("--dry-run", is_flag=True, help="Show the changes without making them.")
@click.option("--force", is_flag=True, help="Accept VIPs that are a node's own addresses.")
@pass_session
def rollback(session: Session, generation: str, dry_run: bool, force: bool) -> None:
    """Put the content of an earlier generation in force again, as a new generation.

    GENERATION is a name in the list of 'history'. What that configuration does not have is removed. It is checked like any
    other change, and refused where it is not possible any more. Connections to unchanged backends continue.
    """
    answer = session.call("config.rollback", generation=generation, dry_run=dry_run or None, force=force or None)
    answer |= {"applied": not dry_run}
    if dry_run:
        document = session.call("config.generation", generation=generation)["document"]
        answer["impact"] = session.call("config.impact", document=document)
    show(session.json, answer, lambda _: _print_changes(answer["changes"], dry_run, f"generation {generation}"))
    if not session.json and dry_run and has_effect(answer["impact"]):
        print_impact(answer["impact"])
    if not session.json and not dry_run and answer["changes"]:
        click.echo(f"generation {answer['generation']} is in force", err=True)


def _print_history(answer: dict[str, Any]) -> None:
    rows = [
        (
            each["name"] + (" *" if each["in_force"] else ""),
            each["time"],
            each["user"] or "(not known)",
            each["node"],
            each["command"],
            each["problem"] or each["summary"],
        )
        for each in answer["generations"]
    ]
    print_table(HISTORY_COLUMNS, rows, "No generations.")


def _print_generation(answer: dict[str, Any]) -> None:
    made = ("time", "user", "node", "command")
    fields = [("generation", answer["name"] + (", in force" if answer["in_force"] else ""))]
    fields += [(name, answer[name]) for name in made if answer[name]]
    against = "the configuration in force" if answer["conflict"] else answer["before"] or "an empty configuration"
    print_fields([*fields, ("compared with", against)])
    click.echo()
    for change in answer["changes"]:
        click.echo(printable(change))
    if not answer["changes"]:
        click.echo("no changes", err=True)


def _confirm(removals: list[str]) -> None:
    """Raises InvalidInput where there is no terminal to ask."""
    what = f"{plural(len(removals), 'object')} not in the file would be removed"
    if not sys.stdin.isatty():
        shown = "; ".join(removals[:MAX_NAMED]) + (
            f"; and {len(removals) - MAX_NAMED} more" if len(removals) > MAX_NAMED else ""
        )
        raise InvalidInput(f"{what}: {shown}. Confirm with --yes; --dry-run lists every change", "--yes")
    for removal in removals:
        click.echo(removal, err=True)
    click.confirm(f"{what}. Continue?", abort=True, err=True)


def _document(path: Path) -> tuple[str, dict[str, Any]]:
    """How messages name the file, and its content."""
    from ctl.config import farms_file

    source = "standard input" if str(path) == "-" else str(path)
    return source, _with_prefixes(dict(farms_file.parse_text(read_text(path, source), source)), path.parent)


def _with_prefixes(document: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The document with the content of the files that its prefix lists name, relative to `directory`, and all lists packed."""
    tables = document.get("prefixes")
    if not isinstance(tables, list):
        return document
    return document | {"prefixes": [_packed_prefixes(each, directory, f"prefixes[{n}]") for n, each in enumerate(tables)]}


def _packed_prefixes(table: Any, directory: Path, place: str) -> Any:
    from ctl.config import prefixes

    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        return table  # xlbd names what is wrong
    name, file, texts = table["name"], table.get("file"), table.get("prefixes")
    if isinstance(file, str) and texts is None:
        made = prefixes.parse_text(name, read_text(directory / file, str(directory / file)), f"{place}.file {file}")
    elif isinstance(texts, list) and file is None and all(isinstance(each, str) for each in texts):
        made = prefixes.parse_texts(name, texts, f"{place}.prefixes")
    else:
        return table
    rest = {key: value for key, value in table.items() if key not in ("file", "prefixes")}
    return rest | prefixes.packed(made)


def _ask(session: Session, command: str, source: str, document: dict[str, Any], **args: Any) -> list[str]:
    """Send the file's content; an error about the content starts with the file name."""
    try:
        changes: list[str] = session.call(command, document=document, **args)
    except InvalidInput as error:
        raise InvalidInput(str(error), source, error.code) from error
    return changes


def read_text(path: Path, source: str) -> str:
    """Return the content of the file, or of standard input for "-".

    Raises InvalidInput if it is not UTF-8, too long or unreadable.
    """
    from ctl.config import toml_text

    try:
        if source == "standard input":
            data = sys.stdin.buffer.read(MAX_MESSAGE_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAX_MESSAGE_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"cannot read {source}: {error.strerror}", "--file", storage_code(error)) from error
    if len(data) > MAX_MESSAGE_BYTES:
        raise InvalidInput(f"expected at most {MAX_MESSAGE_BYTES} bytes, the limit of one request to xlbd", source)
    return toml_text.decode(data, source)


def _print_changes(changes: list[str], dry_run: bool, what: str = "the file") -> None:
    for change in changes:
        click.echo(change)
    if not changes:
        click.echo(f"no changes: the configuration is equal to {what}", err=True)
    elif not dry_run:
        click.echo(f"{plural(len(changes), 'change')} applied", err=True)
