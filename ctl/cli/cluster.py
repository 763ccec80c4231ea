"""`xlbctl cluster`: the node's role and the state of its pair."""

from __future__ import annotations

from typing import Any

import click

from ctl.cli import pairing
from ctl.cli.base import Session, XlbGroup, pass_session
from ctl.cli.output import duration, plural, print_fields, print_table, printable, share, show
from ctl.cli.terminal.tables import Column
from ctl.diagnosis import redundancy
from ctl.errors import Code, InvalidInput, XlbError

CHECK_TIMEOUT_MS = 5_000  # monitoring gives a check about ten seconds
NODE_COLUMNS = (
    Column("NODE"),
    Column("ROLE", state=True),
    Column("SINCE", priority=4),
    Column("EPOCH", right=True, priority=3),
    Column("GENERATION", right=True, priority=6),
    Column("IN STEP", priority=1),
    Column("HEALTH", state=True, priority=1),
    Column("BACKENDS UP", priority=7),
    Column("VERSION", priority=5),
)
FINDING_COLUMNS = (Column("RESULT", state=True), Column("WHAT"), Column("FINDING", text=True), Column("REMEDY", text=True))


@click.group(cls=XlbGroup, examples=["xlbctl cluster create --local 10.99.0.1 --peer 10.99.0.2", "xlbctl cluster status"])
def cluster() -> None:
    """The pair of nodes: which node is active, and whether its peer can take over."""


cluster.add_command(pairing.create)
cluster.add_command(pairing.join)


@cluster.command("status", examples=["xlbctl cluster status", "xlbctl cluster status --both", "xlbctl cluster status --check"])
@click.option("--check", is_flag=True, help="Print one line for monitoring, and exit with 0, 1, 2 or 3.")
@click.option("--both", is_flag=True, help="Show the pair as each node sees it, next to each other.")
@click.pass_context
def status(ctx: click.Context, check: bool, both: bool) -> None:
    """Show both nodes in one table, this node's interfaces, and what is not well.

    With --check, it prints one line and exits like a monitoring plugin. 0, OK: the VIPs are served, and in a pair the peer
    can take over without losing a connection. 1, WARNING: the VIPs are served, but redundancy is lost or reduced. 2, CRITICAL:
    the VIPs are not served or served twice as far as this node knows, or xlbd does not run here; also wrong usage. 3, UNKNOWN:
    xlbd does not answer in time, or this user may not ask it. A single node is OK while it serves.
    """
    session = ctx.find_object(Session)
    assert session is not None
    if check and both:
        raise InvalidInput("choose one of --check and --both", "--both", Code.INVALID_VALUE)
    if both:
        show(session.json, session.call("cluster.nodes"), _print_views)
        return
    if check:
        ctx.exit(print_check(session))
    show(session.json, session.call("status"), print_status)


def print_check(session: Session) -> int:
    """Print the line of `--check`; returns the exit code."""
    session.timeout_ms = CHECK_TIMEOUT_MS
    try:
        answer = session.call("status")
        judged = answer["check"]
        exit_code, line, findings = int(judged["exit_code"]), str(judged["line"]), answer["findings"]
    except (XlbError, KeyError) as error:
        if isinstance(error, InvalidInput) and error.key == "--config":
            raise
        stopped = isinstance(error, XlbError) and error.code == Code.DAEMON_NOT_RUNNING
        verdict = redundancy.CRITICAL if stopped else redundancy.UNKNOWN
        reason = str(error) if isinstance(error, XlbError) else "this xlbd is older than xlbctl; restart it"
        exit_code, line, findings = verdict.exit_code, f"{verdict.word}: {reason}", []
    found = {"exit_code": exit_code, "line": line, "findings": findings}
    show(session.json, found, lambda _: click.echo(printable(" ".join(line.split()))))
    return exit_code


@cluster.command("switchover", examples=["xlbctl cluster switchover"])
@pass_session
def switchover(session: Session) -> None:
    """Make the backup node active without losing a connection.

    Works on either node. Refused, with nothing changed, unless the backup is ready and has every connection.
    """
    show_roles(session, session.call("cluster.switchover"))


@cluster.command("maintenance", examples=["xlbctl cluster maintenance on", "xlbctl cluster maintenance off"])
@click.argument("state", type=click.Choice(["on", "off"]))
@click.option("--force", is_flag=True, help="Even if the peer cannot take over: no node serves the VIPs then.")
@pass_session
def maintenance(session: Session, state: str, force: bool) -> None:
    """Put this node into maintenance, or back into service; the setting survives a restart.

    An active node hands over to its peer first.
    """
    show_roles(session, session.call("cluster.maintenance", on=state == "on", force=force or None))


@cluster.command("failback", examples=["xlbctl cluster failback"])
@pass_session
def failback(session: Session) -> None:
    """Make the node with the higher priority active; `failback = true` in its node file does this automatically."""
    show_roles(session, session.call("cluster.failback"))


cluster.add_command(pairing.check)
cluster.add_command(pairing.destroy)


def show_roles(session: Session, answer: dict[str, Any]) -> None:
    """Print the roles of both nodes."""
    peer = answer["peer"]
    message = f"{answer['node']} is {answer['role']}, {peer['name']} is {peer['role']}"
    show(session.json, answer, lambda _: click.echo(message))


def print_status(answer: dict[str, Any]) -> None:
    """Print the table of both nodes, this node's own lines, and what is not well."""
    nodes = answer.get("nodes", [])  # a daemon of version 0.1.0, not restarted yet, has none
    if nodes:
        print_table(NODE_COLUMNS, [node_cells(row) for row in nodes], "")
        click.echo()
    reasons = [(f"why {row['name']} is {row['role']}", row["why"]) for row in nodes if row["why"]]
    print_fields([*reasons, *status_fields(answer)])
    bad = [each for each in answer.get("findings", ()) if each["status"] in ("warn", "fail")]
    if bad:
        click.echo()
        print_table(FINDING_COLUMNS, [(each["status"], each["name"], each["message"], each["remedy"]) for each in bad], "")


def node_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One node of the table."""
    backends, since_s = row["backends"], row["since_s"]
    return (
        row["name"],
        row["role"],
        "" if since_s is None else duration(since_s),
        "" if row["epoch"] is None else str(row["epoch"]),
        "" if row["generation"] is None else str(row["generation"]),
        "yes" if row["in_step"] else "no",
        row["health"],
        f"{backends['up']} of {backends['total']}" if backends else "",
        row["version"],
    )


def status_fields(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what the table does not show, as names and values."""
    fields = [("node", str(answer["node"])), ("role", str(answer["role"]))]
    lease_ms = answer.get("lease_ms_left")
    fields.append(("lease", "none (a single node needs no lease)" if lease_ms is None else f"{lease_ms} ms left"))
    if answer.get("hold_down_ms"):
        fields.append(("hold-down", f"{answer['hold_down_ms']} ms left, in which no fault makes this node give way"))
    for interface in answer["interfaces"]:
        fields.append((f"xdp {interface['name']}", interface_message(interface)))
    flows = answer["flows"]
    service = f"{plural(answer['farms'], 'farm')} on {plural(answer['vips'], 'VIP')}"
    fields.append(("service", f"{service}, {plural(flows['connections'], 'connection')} (limit {flows['max']})"))
    fields.append(("xlbd", f"{answer['version']}, up for {duration(answer['uptime_s'])}, pins {answer['pins']['origin']}"))
    fields += peer_fields(answer.get("peer"), answer.get("sync"), answer.get("paths"), answer["role"] == "active")
    return fields + vote_fields(answer.get("vote")) + trust_fields(answer.get("advertisements"))


def _print_views(answer: dict[str, Any]) -> None:
    """Print what each node reports of the pair: one column for each."""
    nodes = answer["nodes"]
    views = [dict(_view_fields(each["status"])) if each["answered"] else {} for each in nodes]
    columns = (Column("AS SEEN BY"), *(Column(each["name"], text=True) for each in nodes))
    names = list(dict.fromkeys(name for view in views for name in view))
    print_table(columns, [(name, *(view.get(name, "") for view in views)) for name in names], "")
    for each in nodes:
        if not each["answered"]:
            click.echo(f"xlbctl: {each['name']} does not show its view: {each['why_not']}", err=True)


def _view_fields(status: dict[str, Any]) -> list[tuple[str, str]]:
    lease_ms = status["lease_ms_left"]
    return [
        ("role", status["role"]),
        ("why", status.get("why", "")),
        ("since", duration(status["since_s"])),
        ("epoch", str(status["epoch"])),
        ("generation", str(status["generation"])),
        ("lease", "" if lease_ms is None else f"{lease_ms} ms left"),
        *peer_fields(status["peer"], status["sync"], status.get("paths"), status["role"] == "active"),
        ("faults", "; ".join(status["faults"])),
    ]


def vote_fields(vote: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return whether this node can get the gateway's vote; nothing where no gateway is set."""
    if not vote:
        return []
    return [("vote", f"gateway {vote['gateway']} answers" if vote["can_be_asked"] else f"none: {vote['why']}")]


def trust_fields(advertisements: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return what was rejected because it only claims to be the peer's; nothing on a quiet network."""
    rejected = {why: count for why, count in (advertisements or {}).get("rejected", {}).items() if count}
    return [("rejected VRRP", ", ".join(f"{count} {why}" for why, count in rejected.items()))] if rejected else []


def interface_message(interface: dict[str, Any]) -> str:
    """Return XDP mode and driver of an interface, and the reason for a generic mode: "native on eth0, driver virtio_net"."""
    device = f" on {interface['device']}" if interface.get("device") else ""
    driver = f", driver {interface['driver']}" if interface["driver"] else ""
    reason = f" ({interface['reason']})" if interface["reason"] else ""
    return f"{interface['xdp_mode'] or 'none'}{device}{driver}{reason}"


def peer_fields(
    peer: dict[str, Any] | None, sync: dict[str, Any] | None, paths: dict[str, bool] | None = None, active: bool = False
) -> list[tuple[str, str]]:
    """Return the state of the peer; a single node has none. active: whether this node is; then the peer does not advertise."""
    if not peer:
        return [("peer", "none: this node is single")]
    heard = peer.get("last_heard_ms")
    fields = [
        ("peer", f"{peer['name']}, {peer['role']}, {'alive' if peer['alive'] else 'silent'}"),
        ("last heard", "never" if heard is None else f"{heard} ms ago" if heard < 10_000 else f"{duration(heard / 1000)} ago"),
    ]
    if paths:
        absent = {"data": "not expected (this node is active)"} if active else {}
        heard_on = ", ".join(f"{name} {'yes' if alive else absent.get(name, 'no')}" for name, alive in sorted(paths.items()))
        fields.append(("heartbeats", heard_on))
    if sync:
        fields.append(("in step", "yes" if sync["in_step"] else "no"))
        fields.append(("protected", share(sync["protected"], 1)))
        fields.append(("lag", f"{sync['lag_ms']} ms"))
    return fields
