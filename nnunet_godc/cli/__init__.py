"""The command `nnunet-godc`. Each sub-command is a module here; it imports what it needs when it runs."""

import argparse
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, Protocol

import nnunet_godc
from nnunet_godc.cli import convert, demo, doctor, evaluate, explain, inspect, report, study, warm_start
from nnunet_godc.errors import UserError


class Command(Protocol):
    """What a sub-command's module offers; the first line of its docstring is its help."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Does the work and returns the exit status."""


COMMANDS: dict[str, Command] = {
    "convert": convert,
    "demo": demo,
    "doctor": doctor,
    "evaluate": evaluate,
    "explain": explain,
    "inspect": inspect,
    "report": report,
    "study": study,
    "warm-start": warm_start,
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnunet-godc",
        description="GODC and LFAM for nnU-Net. Training and prediction go through nnU-Net's own commands, "
        "for example: nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerGODCLFAM",
    )
    parser.add_argument("--version", action="version", version=f"nnunet-godc {nnunet_godc.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").partition("\n")[0]
        command_parser = commands.add_parser(name, help=summary, description=summary)
        command.add_arguments(command_parser)
        command_parser.set_defaults(run=command.run)
    return parser


def _exit_at_signal(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Within, SIGTERM does as Ctrl-C: what runs ends its own commands and leaves nothing half-written.

    Afterwards it is as before. A process pool that this process forks later is ended by SIGTERM, and a worker that
    inherits a handler written in Python may miss it while it waits for a lock.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _exit_at_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `nnunet-godc` with `argv` (default: the process's own arguments) and returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        with _sigterm_raises(), warnings.catch_warnings():
            # torch warns of its own future while nnU-Net imports it, which is nothing to do for anybody here.
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
            status: int = arguments.run(arguments)
    except UserError as error:
        print(f"nnunet-godc: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nnunet-godc: interrupted", file=sys.stderr)
        return 130
    return status
