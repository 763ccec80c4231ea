"""Entry point of xlb-web: options and exit codes."""

from __future__ import annotations

import argparse
import logging
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from ctl.errors import XlbError
from ctl.runtime import footprint
from ctl.runtime.logs import LEVELS, set_up_logging
from ctl.state import node_file

WANTED_FILES = 4096

log = logging.getLogger("ctl.web")


def main(arguments: Sequence[str] | None = None) -> None:
    """The `xlb-web` command."""
    options = parser().parse_args(arguments)
    set_up_logging(options.log_level, identifier="xlb-web")
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what a client sends is no matter of the log
    try:
        settings = node_file.load(options.config)
        footprint.limit_malloc()
        from ctl.web import process

        if options.fingerprint:
            process.make_directory(settings.web.state_dir)
            print(process.find_certificate(settings).fingerprint)
            return
        _raise_file_limit()
        process.serve(settings, options.charts)
    except XlbError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Parser(argparse.ArgumentParser):
    """Prints wrong usage in one line; argparse exits with 2."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"xlb-web: {message}; see xlb-web --help\n")


def parser() -> argparse.ArgumentParser:
    """The options, for the manual too."""
    made = _Parser(
        prog="xlb-web",
        description="The HTTP API and web page of the xlb load balancer: stays in the foreground, logs to stderr, stops on"
        " SIGTERM.",
        epilog="Needs no privileges, but the control socket of xlbd: run it as a user of group xlb.",
    )
    add = made.add_argument
    add("--config", type=Path, default=node_file.DEFAULT_PATH, metavar="FILE", help="node file (default: %(default)s)")
    add("--fingerprint", action="store_true", help="print the SHA256 fingerprint of the certificate and exit")
    add(
        "--charts",
        type=Path,
        default=Path("/usr/share/javascript/chart.js"),
        metavar="DIRECTORY",
        help="Chart.js for the graphs of the page (default: %(default)s)",
    )
    add("--log-level", choices=LEVELS, default="info", help="lowest severity to log (default: %(default)s)")
    return made


if __name__ == "__main__":
    main()
