"""`xlbctl doctor`, `version`, `completion`: the state of the installation."""

from __future__ import annotations

import platform
from typing import Any

import click

from ctl.cli.base import Session, XlbCommand, pass_session
from ctl.cli.options import CLIENT, ENDPOINT, complete_listener
from ctl.cli.output import print_fields, print_table, show
from ctl.cli.terminal.tables import Column
from ctl.errors import Code, InvalidInput, XlbError
from ctl.version import package_version

WITHOUT_DAEMON = (Code.DAEMON_NOT_RUNNING, Code.DAEMON_SILENT, Code.STORAGE_FAILED)
DOCTOR_COLUMNS = (Column("CHECK"), Column("RESULT", state=True), Column("FINDING", text=True), Column("REMEDY", text=True))


@click.command("doctor", cls=XlbCommand, examples=["xlbctl doctor", "xlbctl doctor -o json"])
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Check what the node requires, one line each with the remedy; exits 1 if a check failed.

    Where xlbd does not run, it checks what can be seen without it. Drops are judged by the last minute.
    """
    session = ctx.find_object(Session)
    assert session is not None
    try:
        checks = session.call("doctor")
    except XlbError as error:
        if error.key == "--config" or (error.code not in WITHOUT_DAEMON and not isinstance(error, InvalidInput)):
            raise
        checks = _without_daemon(session, error)
    show(session.json, checks, _print_checks)
    ctx.exit(0 if all(check["ok"] for check in checks) else 1)


@click.command(
    "why",
    cls=XlbCommand,
    examples=[
        "xlbctl why 192.0.2.7 10.77.0.100:80",
        "xlbctl why 192.0.2.7:40000 10.77.0.100:80",
        "xlbctl why --udp 2001:db8::7 [2001:db8::100]:53",
    ],
)
@click.argument("client", type=CLIENT, metavar="CLIENT")
@click.argument("vip", type=ENDPOINT, metavar="VIP:PORT", shell_complete=complete_listener)
@click.option("--udp", is_flag=True, help="A UDP client; TCP otherwise.")
@click.pass_context
def why(ctx: click.Context, client: tuple[str, int | None], vip: tuple[str, int], udp: bool) -> None:
    """Explain why a client cannot connect: the first reason, and what to do; exits 0 if it can connect, else 1.

    Looks at lease, interfaces, VIP, farm, lists, limits, backends, routes and neighbours, and at drops of the last minute. In
    a pair the active node answers, whichever is asked. CLIENT is an address, or ADDR:PORT for one connection: without a port
    every backend that the client may get must be reachable.
    """
    session = ctx.find_object(Session)
    assert session is not None
    (source, source_port), (destination, port) = client, vip
    answer = session.call(
        "conn.why",
        source=source,
        source_port=source_port,
        destination=destination,
        destination_port=port,
        protocol="udp" if udp else "tcp",
    )
    show(session.json, answer, _print_reason)
    ctx.exit(0 if answer["connects"] else 1)


def _print_reason(answer: dict[str, Any]) -> None:
    """The reason first, then the way to it."""
    outcome = {True: "can connect", False: "cannot connect", None: "not known"}[answer["connects"]]
    fields = [("client", f"{answer['connection']} ({answer['protocol']})"), ("outcome", outcome)]
    fields += [(name, answer[name]) for name in ("reason", "remedy", "farm", "backend") if answer[name]]
    print_fields(fields)
    click.echo()
    _print_checks(answer["findings"])


def _without_daemon(session: Session, error: XlbError) -> list[dict[str, Any]]:
    """The checks that need no daemon; the first says why."""
    from ctl.diagnosis.kernel import without_daemon
    from ctl.state import node_file

    why = (
        error.detail.partition("; start it")[0]
        if error.code in WITHOUT_DAEMON
        else "cannot be asked: the node file is not valid"
    )
    return [each.view() for each in without_daemon.examine(session.config or node_file.DEFAULT_PATH, why)]


@click.command("version", cls=XlbCommand, examples=["xlbctl version", "xlbctl version -o json"])
@pass_session
def version(session: Session) -> None:
    """Show the versions of xlbctl, of the running xlbd and of its dependencies."""
    versions: dict[str, Any] = {"xlbctl": package_version()}
    problem = ""
    try:
        versions |= session.call("status")["versions"]
    except XlbError as error:
        versions |= {"xlbd": None, "kernel": platform.release()}
        problem = str(error)
    absent = {"xlbd": "not running"}
    fields = [(name, absent.get(name, "not found") if value is None else value) for name, value in versions.items()]
    show(session.json, versions, lambda _: print_fields(fields))
    if problem:
        click.echo(f"xlbctl: {problem}", err=True)


@click.command(
    "completion",
    cls=XlbCommand,
    examples=[
        "xlbctl completion bash > /etc/bash_completion.d/xlbctl",
        'xlbctl completion zsh > "${fpath[1]}/_xlbctl"',
        "xlbctl completion fish > ~/.config/fish/completions/xlbctl.fish",
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the shell script that completes commands, options, farms and backends."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None
    script = complete(ctx.find_root().command, {}, "xlbctl", "_XLBCTL_COMPLETE").source()
    session = ctx.ensure_object(Session)
    show(session.json, {"shell": shell, "script": script}, lambda _: click.echo(script))


def _print_checks(checks: list[dict[str, Any]]) -> None:
    rows = [(c["name"], _result(c), c["message"], c["remedy"]) for c in checks]
    print_table(DOCTOR_COLUMNS, rows, "xlbd ran no checks.")


def _result(check: dict[str, Any]) -> str:
    """A check in one word; `status` is that of xlbd, `ok` alone that of an earlier version."""
    return str(check.get("status", "ok")) if check["ok"] else "failed"
