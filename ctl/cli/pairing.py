"""`xlbctl cluster create | join | check | destroy`: forms, checks and dissolves a pair of nodes.

Decides what to ask the user and in which order; the daemons do the work. All checks come before the first change on
either node.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ctl.cli.base import Session, XlbCommand, pass_session
from ctl.cli.options import ADDRESS, PORT
from ctl.cli.output import plural, print_json, print_table, show
from ctl.cli.terminal.tables import Column
from ctl.errors import Code, InvalidInput, XlbError

if TYPE_CHECKING:
    from ctl.cluster.pairing.ssh import Done, Peer

CHECK_COLUMNS = (Column("CHECK"), Column("RESULT", state=True), Column("FINDING", text=True), Column("REMEDY", text=True))
TIMEOUT_MS = 60_000
IN_STEP_S = 20.0
POLL_S = 0.2
SHOWN = 10


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
    own = session.call("cluster.preview")
    password = _password(peer)
    confirm = _confirmation(yes)
    from ctl.cluster.pairing.ssh import Target

    login = _Login(Target(peer, ssh_port, local), password, _belief(peer, accept_host_key, yes), remote_command)
    try:
        outcome = asyncio.run(_create(session, own, local, login, confirm))
    finally:
        _cancel_token(session)
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
    removal = _removal(has["node"], has)
    if removal and not yes:
        click.confirm(f"{removal}. Continue?", abort=True, err=True)
    joined = session.call("cluster.join", local=local, token=token)
    checks = [] if no_check else _settled_checks(session)
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


class _Login:
    """How to log in to the peer."""

    def __init__(self, target: Any, password: str, believe: Callable[[str], bool], command: str) -> None:
        self.target, self.password, self.believe, self.command = target, password, believe, command


async def _create(
    session: Session, own: dict[str, Any], local: str, login: _Login, confirm: Callable[[str], None]
) -> dict[str, Any]:
    from ctl.cluster.pairing.ssh import logged_in

    address = login.target.host
    _note(f"logging in to {address}")
    async with logged_in(login.target, login.password, login.believe) as peer:
        has = await _look_at(peer, login, own["version"])
        if removal := _removal(has["node"], has):
            confirm(f"{removal}. Continue?")
        made = session.call("cluster.create", local=local, peer=address)
        _note(f"{has['node']} is joining the pair")
        command = f"{login.command} -o json cluster join --local {shlex.quote(address)} --yes --no-check -"
        done = await peer.run(command, made["token"] + "\n", lambda line: _note(f"{has['node']}: {_bare(line)}"))
        if done.status:
            raise XlbError(f"{has['node']} could not join: {_last_sentence(done)}", Code.PAIR_UNCONFIRMED)
    joined = _json_of(done, has["node"])
    return {"node": own["node"], "peer": has["node"], "kept": joined.get("kept"), "checks": _settled_checks(session)}


async def _look_at(peer: Peer, login: _Login, version: str) -> dict[str, Any]:
    """Return the configuration of the peer. Raises XlbError if it cannot join a pair. Changes nothing."""
    host = peer.target.host
    done = await peer.run(f"{login.command} -o json version")
    if done.status in (126, 127):
        raise XlbError(f"xlb is not installed on {host}: install the same package there, version {version}", Code.SSH_FAILED)
    versions = _json_of(done, host)
    its = versions.get("xlbd")
    if its is None:
        raise XlbError(
            f"xlbd is not running on {host}: run systemctl start xlbd there; {_last_sentence(done)}", Code.DAEMON_NOT_RUNNING
        )
    if its != version:
        raise XlbError(f"{host} has xlb {its} and this node {version}; install the same version on both", Code.NODES_DIFFER)
    done = await peer.run(f"{login.command} -o json cluster status")
    status = _json_of(done, host)
    if status.get("peer"):
        name = status["peer"]["name"]
        raise XlbError(
            f"{status['node']} is already in a pair with {name}; run xlbctl cluster destroy there first", Code.PAIR_EXISTS
        )
    vips = _json_of(await peer.run(f"{login.command} -o json vip list"), host)
    farms = _json_of(await peer.run(f"{login.command} -o json farm list"), host)
    return {
        "node": status["node"],
        "vips": [each["address"] for each in vips],
        "farms": [each["name"] for each in farms],
    }


def _json_of(done: Done, host: str) -> Any:
    try:
        return json.loads(done.output)
    except ValueError:
        raise XlbError(f"xlbctl on {host} failed: {_last_sentence(done)}", Code.SSH_FAILED) from None


def _last_sentence(done: Done) -> str:
    lines = [line for line in done.errors.splitlines() if line.strip()]
    return _bare(lines[-1]) if lines else f"it exited with {done.status} and printed no error"


def _bare(line: str) -> str:
    return line.removeprefix("xlbctl: ")


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


def _belief(peer: str, accepted: str, yes: bool) -> Callable[[str], bool]:
    """Return the policy for an unknown host key: accept the given fingerprint, or ask the user."""

    def believe(fingerprint: str) -> bool:
        if accepted:
            return fingerprint == accepted
        if yes or not sys.stdin.isatty():
            return False
        return click.confirm(f"The host key of {peer} is unknown: {fingerprint}. Is that its key?", err=True)

    return believe


def _confirmation(yes: bool) -> Callable[[str], None]:
    def confirm(question: str) -> None:
        if yes:
            return
        if not sys.stdin.isatty():
            raise InvalidInput(f"{question.removesuffix(' Continue?')} Confirm with --yes", "--yes")
        click.confirm(question, abort=True, err=True)

    return confirm


def _cancel_token(session: Session) -> None:
    """Revoke the join token; no effect after the peer has joined."""
    try:
        session.call("cluster.cancel")
    except XlbError as error:
        _note(f"cannot revoke the join token, which expires by itself: {error}")


# --- output --------------------------------------------------------------------------------------------------


def _settled_checks(session: Session) -> Any:
    """Wait until the pair is in step, and check it; not longer than IN_STEP_S without any progress."""
    seen, since_s = None, time.monotonic()
    while time.monotonic() < since_s + IN_STEP_S:
        status = session.call("cluster.status")
        peer, sync = status.get("peer") or {}, status.get("sync") or {}
        if peer.get("alive") and sync.get("in_step"):
            break
        state = (status["role"], peer.get("role"), peer.get("alive"), peer.get("generation"), sync.get("protected"))
        if state != seen:
            seen, since_s = state, time.monotonic()
        time.sleep(POLL_S)
    return session.call("cluster.check")


def _removal(node: str, has: dict[str, Any]) -> str:
    """The confirmation for what joining removes; empty if nothing is removed."""
    vips, farms = has["vips"], has["farms"]
    if not vips and not farms:
        return ""
    named = ", ".join([*farms, *vips][:SHOWN]) + (" and more" if len(vips) + len(farms) > SHOWN else "")
    removed = f"{plural(len(farms), 'farm')} and {plural(len(vips), 'VIP')} of {node}"
    return f"{removed} will be removed, a backup copy is saved there: {named}"


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
