"""`xlbctl cluster create | join | check | destroy`: forms, checks and dissolves a pair of nodes.

Decides what to ask the user and in which order; the daemons do the work. All checks come before the first change on
either node.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

import click

from ctl.cli.base import Session, XlbCommand, pass_session
from ctl.cli.options import ADDRESS, PORT
from ctl.cli.output import print_json, print_table, show
from ctl.cli.terminal.tables import Column
from ctl.creation.settling import until_in_step
from ctl.creation.steps import Question, State, Step, removal
from ctl.errors import InvalidInput

CHECK_COLUMNS = (Column("CHECK"), Column("RESULT", state=True), Column("FINDING", text=True), Column("REMEDY", text=True))
TIMEOUT_MS = 60_000


@click.command(
    "create",
    cls=XlbCommand,
    examples=[
        "xlbctl cluster create --local 10.99.0.1 --peer 10.99.0.2",
        "xlbctl cluster create --local 10.99.0.1 --peer 10.99.0.2 --token-only",
        "xlbctl cluster create --local 10.99.0.1 --peer 10.99.0.2 --yes --accept-host-key SHA256:… < password-file",
    ],
)
@click.option("--local", required=True, type=ADDRESS, help="This node's address on the cluster link.")
@click.option("--peer", required=True, type=ADDRESS, help="The peer's address on the cluster link.")
@click.option(
    "--token-only", is_flag=True, help="Print a one-time token for 'xlbctl cluster join' instead of logging in to the peer."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--ssh-port", type=PORT, default="22", help="Port of the peer's SSH server.")
@click.option(
    "--accept-host-key",
    metavar="SHA256:…",
    default="",
    show_default=False,
    help="Fingerprint of the peer's SSH host key to accept if known_hosts does not have it.",
)
@click.option("--remote-command", default="xlbctl", metavar="COMMAND", help="Command that runs xlbctl on the peer.")
@pass_session
def create(
    session: Session,
    local: str,
    peer: str,
    token_only: bool,
    yes: bool,
    ssh_port: int,
    accept_host_key: str,
    remote_command: str,
) -> None:
    """Form a pair of this node and a peer. The peer's own farms and VIPs are removed.

    Asks for the peer's root password. If standard input is a file or a pipe, its first line is the password; an empty
    line means login by SSH key. This node stays in service without interruption.
    """
    session.timeout_ms = TIMEOUT_MS
    if token_only:
        made = session.call("cluster.create", local=local, peer=peer)
        show(session.json, {"token": made["token"]}, lambda _: _print_token(made, peer))
        return
    session.call("cluster.preview", local=local, peer=peer)
    password = _password(peer)
    from ctl.creation.flow import Creation, Wanted
    from ctl.creation.secret import Secret
    from ctl.creation.ssh import Files

    wanted = Wanted(local, peer, Files.of_user(), ssh_port, remote_command)
    creation = Creation(wanted, _Control(session), _Person(accept_host_key, yes))
    outcome = asyncio.run(creation.run(Secret(password)))
    if session.json:
        print_json(outcome)
    else:
        click.echo(f"{outcome['node']} and {outcome['peer']} are a pair; {outcome['node']} is active")
        _print_findings(outcome["checks"])


@click.command(
    "join",
    cls=XlbCommand,
    examples=[
        "xlbctl cluster join --local 10.99.0.2 TOKEN",
        "xlbctl cluster join --local 10.99.0.2 --yes - < token-file",
    ],
)
@click.option("--local", required=True, type=ADDRESS, help="This node's address on the cluster link.")
@click.option("--yes", is_flag=True, help="Remove this node's farms and VIPs without confirmation.")
@click.option("--no-check", is_flag=True, help="Do not run 'xlbctl cluster check' afterwards.")
@click.argument("token")
@pass_session
def join(session: Session, local: str, yes: bool, no_check: bool, token: str) -> None:
    """Make this node the backup of the node that created TOKEN ('-': read it from standard input).

    This node's own farms and VIPs are removed. A backup copy in its state directory can be restored by 'xlbctl apply'.
    """
    session.timeout_ms = TIMEOUT_MS
    if token == "-":
        token = sys.stdin.readline().strip()
    has = session.call("cluster.preview")
    removed = removal(has["node"], has["farms"], has["vips"], has["accounts"])
    if removed and not yes:
        click.confirm(f"{removed}. Continue?", abort=True, err=True)
    joined = session.call("cluster.join", local=local, token=token)
    checks = [] if no_check else asyncio.run(_settled_checks(session))
    if session.json:
        print_json(joined | {"checks": checks})
        return
    click.echo(f"{joined['node']} is the backup of {joined['peer']}")
    if joined["kept"]:
        click.echo(f"its own farms are saved in {joined['kept']}")
    if checks:
        _print_findings(checks)


@click.command("check", cls=XlbCommand, examples=["xlbctl cluster check", "xlbctl cluster check -o json"])
@click.pass_context
def check(ctx: click.Context) -> None:
    """Check what the pair requires of both nodes and the network, one line each; exits 1 if a check failed."""
    session = ctx.find_object(Session)
    assert session is not None
    session.timeout_ms = TIMEOUT_MS
    findings = session.call("cluster.check")
    show(session.json, findings, _print_findings)
    ctx.exit(1 if any(each["status"] == "fail" for each in findings) else 0)


@click.command("destroy", cls=XlbCommand, examples=["xlbctl cluster destroy", "xlbctl cluster destroy --yes"])
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@pass_session
def destroy(session: Session, yes: bool) -> None:
    """Destroy the pair: the active node continues as a single node, the backup keeps only a backup copy of the farms."""
    session.timeout_ms = TIMEOUT_MS
    if not yes:
        status = session.call("cluster.status")
        name = (status.get("peer") or {}).get("name", "its peer")
        if status["role"] == "fault" and not status.get("peer"):
            click.echo(f"xlbctl: {status.get('why', '')}", err=True)
        click.confirm(f"Destroy the pair of {status['node']} and {name}?", abort=True, err=True)
    ended = session.call("cluster.destroy")
    if ended["warning"]:
        click.echo(f"xlbctl: {ended['warning']}", err=True)
    show(session.json, ended, _print_destroyed)


# --- create ----------------------------------------------------------------------------------------------------------


class _Control:
    """The session's connection to the daemon, as `ctl.creation` uses one."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def call(self, command: str, args: Mapping[str, Any] | None = None) -> Any:
        return self._session.call(command, **(args or {}))


class _Person:
    """Who runs the command: is shown the steps on stderr, and asked on the terminal."""

    def __init__(self, accepted_key: str, yes: bool) -> None:
        self._accepted_key, self._yes = accepted_key, yes

    def step(self, _: Step, state: State, text: str) -> None:
        if state == "running" and text:
            _note(text)

    def note(self, text: str) -> None:
        _note(text)

    async def ask(self, question: Question) -> bool:
        if question.kind == "host_key":
            return self._believes(question)
        if not self._yes:
            if not sys.stdin.isatty():
                raise InvalidInput(f"{question.text.removesuffix(' Continue?')} Confirm with --yes", "--yes")
            click.confirm(question.text, abort=True, err=True)
        return True

    def _believes(self, question: Question) -> bool:
        if self._accepted_key:
            return question.fingerprint == self._accepted_key
        if self._yes or not sys.stdin.isatty():
            return False
        return click.confirm(question.text, err=True)


def _password(peer: str) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password: str = click.prompt(
        f"Password of root on {peer} (empty: use your SSH keys)",
        hide_input=True,
        confirmation_prompt="Repeat it",
        default="",
        show_default=False,
        err=True,
    )
    return password


# --- output --------------------------------------------------------------------------------------------------


async def _settled_checks(session: Session) -> Any:
    """Wait until the pair is in step, and check it."""
    await until_in_step(_Control(session))
    return session.call("cluster.check")


def _print_token(made: dict[str, Any], peer: str) -> None:
    _note(f"run on the peer within {made['expires_s'] // 60} minutes: xlbctl cluster join --local {peer} TOKEN")
    click.echo(made["token"])


def _print_findings(findings: list[dict[str, Any]]) -> None:
    rows = [(each["name"], each["status"], each["message"], each["remedy"]) for each in findings]
    print_table(CHECK_COLUMNS, rows, "xlbd ran no checks.")


def _print_destroyed(ended: dict[str, Any]) -> None:
    outcome = "continues as a single node" if ended["serves"] else "has no farms now"
    click.echo(f"the pair with {ended['peer']} is destroyed; this node {outcome}")
    if ended["kept"]:
        click.echo(f"the farms are saved in {ended['kept']}")


def _note(message: str) -> None:
    click.echo(f"xlbctl: {message}", err=True)
