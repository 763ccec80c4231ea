"""Entry point of xlbd: options, the lock on run_dir and exit codes.

Reports every failure as one message on stderr and an exit code: 2 for invalid input, 1 for a failure at run time.
`ctl.node.process` runs the node; it is imported after the options are checked and the lock is held.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import grp
import logging
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ctl.api.protocol import LOCK_NAME
from ctl.errors import Code, XlbError, storage_code
from ctl.runtime import footprint
from ctl.runtime.logs import LEVELS, set_up_logging
from ctl.state import node_file
from ctl.state.node_file import NodeSettings

RUN_DIR_MODE = 0o750
GROUP = "xlb"
THREAD_SWITCH_S = 0.0005  # longest time a thread may hold the interpreter against the loop; Python's default is 5 ms

log = logging.getLogger("ctl")


def main(arguments: Sequence[str] | None = None) -> None:
    """The `xlbd` command."""
    options = _parser().parse_args(arguments)
    set_up_logging(options.log_level)
    try:
        settings = node_file.load(options.config)
        if options.check_config:
            print(f"{options.config}: ok")
            return
        run(settings, replace_pins=options.replace_pins, detach=options.detach)
    except XlbError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def run(settings: NodeSettings, replace_pins: bool, detach: bool) -> None:
    """Run until SIGTERM or SIGINT. Raises XlbError, with nothing changed, if the node cannot start."""
    sys.setswitchinterval(THREAD_SWITCH_S)
    footprint.keep_small()
    _raise_file_limit()
    with locked_run_dir(settings.node.run_dir):
        from ctl.node import process

        process.serve(settings, replace_pins, detach)


@contextlib.contextmanager
def locked_run_dir(run_dir: Path) -> Iterator[None]:
    """Create run_dir, for root and group xlb only, and hold its lock: one daemon per run_dir.

    Raises XlbError naming the process that holds it.
    """
    path = run_dir / LOCK_NAME
    try:
        run_dir.mkdir(mode=RUN_DIR_MODE, parents=True, exist_ok=True)
        run_dir.chmod(RUN_DIR_MODE)
        with contextlib.suppress(KeyError, PermissionError):
            os.chown(run_dir, -1, grp.getgrnam(GROUP).gr_gid)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise XlbError(
            f"cannot use run_dir {run_dir}: {error.strerror}; run as root or set node.run_dir to a writable directory",
            storage_code(error),
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise XlbError(
                f"another xlbd (pid {holder}) uses run_dir {run_dir}: stop it first, or set another node.run_dir for this one",
                Code.REFUSED,
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _raise_file_limit() -> None:
    """Raise the limit of open files, because every health check in flight needs a socket."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 16384) if hard != resource.RLIM_INFINITY else 16384
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Parser(argparse.ArgumentParser):
    """Prints wrong usage in one line; argparse exits with 2."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"xlbd: {message}; see xlbd --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="xlbd",
        description="The xlb load balancer's daemon: stays in the foreground, logs to stderr, stops on SIGTERM.",
        epilog="While xlbd is stopped, the data plane of a single node continues to forward, unless xlbd was started with "
        "--detach; a node of a pair hands over to its peer.",
    )
    add = parser.add_argument
    add("--config", type=Path, default=node_file.DEFAULT_PATH, metavar="FILE", help="node file (default: %(default)s)")
    add("--check-config", action="store_true", help="check the node file and exit: 0 when it is valid, 2 when it is not")
    add("--detach", action="store_true", help="on a clean stop, detach XDP from the interfaces and remove the VIPs")
    add("--replace-pins", action="store_true", help="replace pinned maps of another version or size; ends all connections")
    add("--log-level", choices=LEVELS, default="info", help="lowest severity to log (default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()
