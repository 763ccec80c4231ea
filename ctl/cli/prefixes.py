"""`xlbctl prefixes`: named lists of clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ctl.cli.base import Session, XlbGroup, pass_session
from ctl.cli.config import read_text
from ctl.cli.options import complete_from_daemon
from ctl.cli.output import print_json, print_table, show
from ctl.cli.terminal.tables import Column

COLUMNS = (
    Column("NAME"),
    Column("IPV4", right=True, priority=1),
    Column("IPV6", right=True, priority=1),
    Column("FARMS", priority=2),
)


def _names(session: Session, _: dict[str, Any]) -> list[str]:
    return [each["name"] for each in session.call("prefixes.list")]


complete_prefixes = complete_from_daemon(_names)


@click.group(
    cls=XlbGroup,
    examples=[
        "xlbctl prefixes set blocked -f blocked.txt",
        "xlbctl farm set web --deny blocked",
        "xlbctl prefixes show blocked",
    ],
)
def prefixes() -> None:
    """Prefix lists: the clients that farms allow or deny (farm set --allow, --deny)."""


@prefixes.command("set", examples=["xlbctl prefixes set blocked -f blocked.txt"])
@click.argument("name", shell_complete=complete_prefixes)
@click.option(
    "-f",
    "--file",
    "path",
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE|-",
    help="The prefixes, one per line.",
)
@pass_session
def set_(session: Session, name: str, path: Path) -> None:
    """Create a list from a file, or replace it in every farm that uses it.

    The file has a prefix (10.0.0.0/8, 2001:db8::/32) or an address per line; # begins a comment. At most 100,000 prefixes.
    Connections that are open continue.
    """
    from ctl.config import prefixes as lists

    source = "standard input" if str(path) == "-" else str(path)
    made = lists.parse_text(name, read_text(path, source), source)
    done = session.call("prefixes.set", name=name, **lists.packed(made))
    show(session.json, done, lambda _: click.echo(f"prefix list {name} has {made.count} prefixes"))


@prefixes.command("list", examples=["xlbctl prefixes list", "xlbctl prefixes list -o json"])
@pass_session
def list_(session: Session) -> None:
    """List the prefix lists, their lengths, and the farms that use them."""
    show(session.json, session.call("prefixes.list"), _print_lists)


@prefixes.command("show", examples=["xlbctl prefixes show blocked", "xlbctl prefixes show blocked > blocked.txt"])
@click.argument("name", shell_complete=complete_prefixes)
@pass_session
def show_(session: Session, name: str) -> None:
    """Print the prefixes of a list, one per line, as 'set' reads them."""
    from ctl.config import prefixes as lists

    found = session.call("prefixes.show", name=name)
    texts = list(lists.texts(lists.unpack(name, found.pop("v4"), found.pop("v6"))))
    if session.json:
        print_json(found | {"prefixes": texts})
    else:
        click.echo("".join(f"{text}\n" for text in texts), nl=False)


@prefixes.command("delete", examples=["xlbctl prefixes delete blocked"])
@click.argument("name", shell_complete=complete_prefixes)
@pass_session
def delete(session: Session, name: str) -> None:
    """Delete a list that no farm uses."""
    show(session.json, session.call("prefixes.delete", name=name), lambda _: click.echo(f"prefix list {name} deleted"))


def _print_lists(lists: list[dict[str, Any]]) -> None:
    rows = [(each["name"], str(each["prefixes_v4"]), str(each["prefixes_v6"]), ", ".join(each["farms"])) for each in lists]
    print_table(COLUMNS, rows, "No prefix lists yet: add one with 'xlbctl prefixes set NAME -f FILE'.")
