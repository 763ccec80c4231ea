"""`xlbctl token`: API tokens of xlb-web, for scripts and for Prometheus. xlbd gets the digest of a token only."""

from __future__ import annotations

import time
from typing import Any

import click

from ctl.cli.accounts.times import date
from ctl.cli.accounts.user import ROLES
from ctl.cli.base import Session, XlbGroup, pass_session
from ctl.cli.options import complete_from_daemon
from ctl.cli.output import print_json, print_table, show
from ctl.cli.terminal.tables import Column

COLUMNS = (
    Column("NAME"),
    Column("ROLE"),
    Column("CREATED", priority=2),
    Column("EXPIRES", priority=1),
    Column("MADE BY", priority=2),
)
DAY_S = 86_400
MAX_DAYS = 3650

complete_token = complete_from_daemon(lambda session, _: [each["name"] for each in session.call("token.list")])


@click.group(
    cls=XlbGroup,
    examples=["xlbctl token add prometheus", "xlbctl token add deploy --role operator --expires 90", "xlbctl token list"],
)
def token() -> None:
    """API tokens of xlb-web: what a program sends as "Authorization: Bearer TOKEN" in place of a login."""


@token.command("add", examples=["xlbctl token add prometheus", "xlbctl token add deploy --role operator --expires 90"])
@click.argument("name")
@click.option("--role", type=ROLES, default="viewer", help="What a program with the token may do.")
@click.option(
    "--expires",
    "days",
    type=click.IntRange(1, MAX_DAYS),
    metavar="DAYS",
    show_default="never",
    help="Days until the token expires.",
)
@pass_session
def add(session: Session, name: str, role: str, days: int | None) -> None:
    """Make a token and print it: this once, because only its digest is stored."""
    from ctl.accounts import tokens

    text, digest = tokens.make()
    expires_s = int(time.time()) + days * DAY_S if days else 0
    made = session.call("token.add", name=name, role=role, sha256=digest, expires_s=expires_s)
    if session.json:
        print_json(made | {"token": text})
        return
    expires = f"expires on {date(expires_s)}" if expires_s else "does not expire"
    click.echo(f"xlbctl: token {name} ({role}) {expires}; it cannot be shown again", err=True)
    click.echo(text)


@token.command("list", examples=["xlbctl token list", "xlbctl token list -o json"])
@pass_session
def list_(session: Session) -> None:
    """List the tokens, without their text."""
    show(session.json, session.call("token.list"), _print)


@token.command("delete", examples=["xlbctl token delete deploy"])
@click.argument("name", shell_complete=complete_token)
@pass_session
def delete(session: Session, name: str) -> None:
    """Delete a token: programs that use it are refused from now on."""
    show(session.json, session.call("token.delete", name=name), lambda _: click.echo(f"token {name} deleted"))


def _print(tokens: list[dict[str, Any]]) -> None:
    rows = [
        (each["name"], each["role"], date(each["created_s"]), _expiry(each["expires_s"]), each["user"] or "unknown")
        for each in tokens
    ]
    print_table(COLUMNS, rows, "No tokens yet: make one with 'xlbctl token add NAME'.")


def _expiry(expires_s: int) -> str:
    return f"{date(expires_s)} (expired)" if 0 < expires_s <= time.time() else date(expires_s, "never")
