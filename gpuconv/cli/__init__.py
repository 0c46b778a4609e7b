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
import re
import sys
import textwrap
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

import gpuconv
from gpuconv import threads
from gpuconv.cli.output import complain, sentence, traced
from gpuconv.messages import did_you_mean, printable, program, wanted_one_of

COMMANDS = ("train", "evaluate", "predict", "summary", "report", "runs", "data", "info", "bench",
            "tune")
EXAMPLES = ("gpuconv train", "gpuconv evaluate", "gpuconv predict picture.jpg",
            "gpuconv train --help")
FAILURES = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, MemoryError,
            ImportError)  # of an optional package: the message says how to get it


class Parser(argparse.ArgumentParser):
    """Parser that says in one line what is wrong, and makes the end of --help when it is shown."""

    command: ModuleType | None = None  # whose options these are

    def format_help(self) -> str:
        """Return the text of --help."""
        if self.command:
            self.epilog = epilog(self.command.EXAMPLES, getattr(self.command, "NOTES", ""))
        return runnable(super().format_help())

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and refuse here what is left: a command knows its own options.

        Images of ``predict`` may stand before and after options.
        """
        found, rest = super().parse_known_args(args, namespace)
        unknown = [word.split("=")[0] for word in rest if word.startswith("-") and word != "-"]
        if unknown:
            self.error("; ".join(
                f"unrecognized option {word}{did_you_mean(word, self._option_string_actions)}"
                for word in unknown))
        if rest and not hasattr(found, "images"):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:
            found.images += rest
        return found, []

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, (
                f"invalid choice: {value!r}, {wanted_one_of(value, action.choices)}"))

    def error(self, message: str) -> NoReturn:
        """Write it and exit with status 2."""
        complain("error", f"{message} {runnable(f'(see {self.prog} --help)')}")
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
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
    """Run the parsed command and return its exit status."""
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
            print(traced(error), end="", file=sys.stderr)
        complain("error", sentence(error))
        for note in getattr(error, "__notes__", ()):  # which points at a place in a text
            print("\n".join(map(printable, note.split("\n"))), file=sys.stderr)
        return 1


def warn(message: Warning | str, *where: Any, **more: Any) -> None:
    """Write a warning as one line, like an error."""
    complain("warning", str(message))


def runnable(text: str) -> str:
    """Return a text of ours with "gpuconv COMMAND" as it can be typed here.

    >>> runnable("see gpuconv.nn").removeprefix("see ")
    'gpuconv.nn'
    """
    return re.sub(rf"(?<!usage: )\bgpuconv(?=\s+(--help|{'|'.join(COMMANDS)})\b)",
                  lambda _: printable(program()), text)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and options."""
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
    """Return the end of a --help.

    >>> print(epilog(["gpuconv info"]))
    example:
      gpuconv info
    """
    text = "\n  ".join(["examples:" if len(examples) > 1 else "example:", *examples])
    return f"{notes}\n\n{text}" if notes else text
