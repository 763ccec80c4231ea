"""`xlbctl`: the list of its commands. Commands are imported on demand, so that `vip list` does not load `top`."""

from __future__ import annotations

import click

from ctl.cli.base import RootGroup

COMMANDS = {
    "vip": "ctl.cli.vip:vip",
    "farm": "ctl.cli.farm:farm",
    "backend": "ctl.cli.backend:backend",
    "prefixes": "ctl.cli.prefixes:prefixes",
    "apply": "ctl.cli.config:apply",
    "diff": "ctl.cli.config:diff",
    "export": "ctl.cli.config:export",
    "history": "ctl.cli.config:history",
    "rollback": "ctl.cli.config:rollback",
    "import": "ctl.cli.migration.importing:import_",
    "cluster": "ctl.cli.cluster:cluster",
    "conn": "ctl.cli.conn:conn",
    "stats": "ctl.cli.stats:stats",
    "top": "ctl.cli.top:top",
    "metrics": "ctl.cli.monitoring.metrics:metrics",
    "capture": "ctl.cli.capturing.capture:capture",
    "watch": "ctl.cli.monitoring.watch:watch",
    "user": "ctl.cli.accounts.user:user",
    "token": "ctl.cli.accounts.token:token",
    "doctor": "ctl.cli.system:doctor",
    "why": "ctl.cli.system:why",
    "version": "ctl.cli.system:version",
    "completion": "ctl.cli.system:completion",
}


@click.group(
    cls=RootGroup,
    lazy=COMMANDS,
    examples=[
        "xlbctl vip add 10.77.0.100/24 --dev eth0",
        "xlbctl farm add web --vip 10.77.0.100 --port 80 --check http",
        "xlbctl backend add web 10.77.0.11:8080 --weight 2",
        "xlbctl farm show web",
        "xlbctl top",
    ],
)
def main() -> None:
    """Control xlb, the XDP load balancer: show and change the state of the xlbd that runs on this node.

    Exit status: 0 done, 1 refused or failed, 2 invalid input. Errors are printed on stderr.
    """


if __name__ == "__main__":
    main()
