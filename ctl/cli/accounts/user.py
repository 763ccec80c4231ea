"""`xlbctl user`: who may log in to xlb-web. Passwords are hashed here, and xlbd gets the hash."""

from __future__ import annotations

import sys
from typing import Any

import click

from ctl.cli.accounts.times import date
from ctl.cli.base import Session, XlbGroup, pass_session
from ctl.cli.options import complete_from_daemon
from ctl.cli.output import print_table, show
from ctl.cli.terminal.tables import Column

COLUMNS = (Column("NAME"), Column("ROLE"), Column("CREATED", priority=1))
ROLES = click.Choice(["viewer", "operator"])

complete_user = complete_from_daemon(lambda session, _: [each["name"] for each in session.call("user.list")])


@click.group(
    cls=XlbGroup,
    examples=[
        "xlbctl user add alice --role operator",
        "xlbctl user add bob < password-file",
        "xlbctl user passwd bob",
        "xlbctl user list",
    ],
)
def user() -> None:
    """Users of xlb-web: viewers may look at everything, operators may change it.

    Both nodes of a pair have the same users; farms files and rollback leave them as they are. Root and members of the group xlb
    need no account for xlbctl.
    """


@user.command("add", examples=["xlbctl user add alice --role operator", "xlbctl user add bob < password-file"])
@click.argument("name")
@click.option("--role", type=ROLES, default="viewer", help="What the user may do.")
@pass_session
def add(session: Session, name: str, role: str) -> None:
    """Add a user. Asks for the password.

    If standard input is a file or a pipe, its first line is the password. It has at least 10 characters.
    """
    made = session.call("user.add", name=name, role=role, password_hash=_new_hash(name))
    show(session.json, made, lambda _: click.echo(f"user {name} added ({role})"))


@user.command("set", examples=["xlbctl user set bob --role operator"])
@click.argument("name", shell_complete=complete_user)
@click.option("--role", type=ROLES, required=True, show_default=False, help="What the user may do.")
@pass_session
def set_(session: Session, name: str, role: str) -> None:
    """Change the role of a user. The user's sessions end."""
    made = session.call("user.set", name=name, role=role)
    show(session.json, made, lambda _: click.echo(f"user {name} changed ({role})"))


@user.command("passwd", examples=["xlbctl user passwd bob", "xlbctl user passwd bob < password-file"])
@click.argument("name", shell_complete=complete_user)
@pass_session
def passwd(session: Session, name: str) -> None:
    """Set the password of a user, read as by 'add'. The user's sessions end."""
    made = session.call("user.set", name=name, password_hash=_new_hash(name))
    show(session.json, made, lambda _: click.echo(f"password of user {name} changed"))


@user.command("list", examples=["xlbctl user list", "xlbctl user list -o json"])
@pass_session
def list_(session: Session) -> None:
    """List the users."""
    show(session.json, session.call("user.list"), _print)


@user.command("delete", examples=["xlbctl user delete bob"])
@click.argument("name", shell_complete=complete_user)
@pass_session
def delete(session: Session, name: str) -> None:
    """Delete a user. The user's sessions end; tokens that the user made stay."""
    show(session.json, session.call("user.delete", name=name), lambda _: click.echo(f"user {name} deleted"))


def _new_hash(name: str) -> str:
    """The hash of a password that is typed twice, or the first line of a file. Raises InvalidInput."""
    from ctl.accounts import passwords

    if sys.stdin.isatty():
        password: str = click.prompt(f"Password of {name}", hide_input=True, confirmation_prompt="Repeat it", err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    passwords.check(password)
    return passwords.hash_password(password)


def _print(users: list[dict[str, Any]]) -> None:
    rows = [(each["name"], each["role"], date(each["created_s"])) for each in users]
    print_table(COLUMNS, rows, "No users yet: add one with 'xlbctl user add NAME --role operator'.")
