"""The command line: ``gpuconv train``, ``gpuconv evaluate`` and the others, one file each.

In a terminal there are a live bar and tables; in a pipe, a file or a notebook plain lines without
escape codes. Whoever uses it wrongly gets one line on stderr, never a traceback: exit status 2 for
wrong usage, 1 for a failure, 130 after Ctrl-C.

A command's file has SAYS, one sentence; EXAMPLES, lines; perhaps NOTES, text for its --help;
``add_options(parser)``; and ``run(args)``, which prints to stdout or raises one of FAILURES. What
takes time to import is imported by ``run``, so that ``gpuconv --help`` is quick.
"""

import argparse
import importlib
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

import gpuconv
from gpuconv import threads
from gpuconv.cli.output import sentence

COMMANDS = ("train", "evaluate", "predict", "summary", "report", "runs", "data", "info", "bench",
            "tune")
EXAMPLES = ("gpuconv train", "gpuconv evaluate", "gpuconv predict runs/NAME picture.jpg",
            "gpuconv train --help")
FAILURES = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, MemoryError,
            ImportError)  # of an optional package: the message says how to get it


class Parser(argparse.ArgumentParser):
    """Wrong usage is one line. The end of --help is made when it is asked for."""

    command: ModuleType | None = None  # whose options these are

    def format_help(self) -> str:
        """The text of --help."""
        if self.command:
            self.epilog = epilog(self.command.EXAMPLES, getattr(self.command, "NOTES", ""))
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Write it and exit with status 2."""
        print(f"gpuconv: error: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    if hasattr(sys.stdout, "reconfigure"):  # a name that the terminal cannot show is no failure
        sys.stdout.reconfigure(errors="backslashreplace")
    top, words = parser(), sys.argv[1:] if arguments is None else list(arguments)
    if "" in words:
        at = words.index("")
        top.error("an argument is empty" + (f": the one after {words[at - 1]}" if at else ""))
    args = top.parse_args(words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an overflow: the loss will tell
        warnings.showwarning = warn
        return obey(args)


def obey(args: argparse.Namespace) -> int:
    """Do what was asked for; the exit status."""
    try:
        if getattr(args, "threads", None):
            threads.set_count(args.threads)
        args.command(args)
        if sys.stdout:  # None where it was closed
            sys.stdout.flush()
        return 0
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("gpuconv: interrupted", file=sys.stderr)
        return 130
    except FAILURES as error:
        if args.traceback:
            traceback.print_exc()
        print(f"gpuconv: error: {sentence(error)}", file=sys.stderr)
        return 1


def warn(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning is one line, like an error."""
    from gpuconv.cli.output import printable
    print(f"gpuconv: warning: {printable(str(message))}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = Parser(prog="gpuconv", allow_abbrev=False, epilog=epilog(EXAMPLES),
                 description="Convolutional networks for CuPy and NumPy.",
                 formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"gpuconv {gpuconv.__version__}")
    made = top.add_subparsers(title="commands", metavar="command", required=True,
                              parser_class=Parser)
    for name in COMMANDS:
        command: ModuleType = importlib.import_module(f"gpuconv.cli.{name}")
        says: str = command.SAYS
        one = made.add_parser(name, help=says[0].lower() + says[1:].rstrip("."),
                              description=textwrap.fill(says, 80), allow_abbrev=False,
                              formatter_class=argparse.RawDescriptionHelpFormatter)
        one.command = command
        command.add_options(one)
        one.add_argument("--traceback", action="store_true",
                         help="when something fails, also show where")
        one.set_defaults(command=command.run)
    return top


def epilog(examples: Sequence[str], notes: str = "") -> str:
    """The end of a --help.

    >>> print(epilog(["gpuconv info"]))
    example:
      gpuconv info
    """
    text = "\n  ".join(["examples:" if len(examples) > 1 else "example:", *examples])
    return f"{notes}\n\n{text}" if notes else text
