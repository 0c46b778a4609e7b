"""``gpuconv info``: what this machine offers."""

import argparse

SAYS = "Show what this machine offers."
EXAMPLES = ("gpuconv info",)


def add_options(to: argparse.ArgumentParser) -> None:
    """Add no options."""


def run(args: argparse.Namespace) -> None:
    """Run ``gpuconv info``."""
    from gpuconv import data, runs
    from gpuconv.cli.output import console, show
    from gpuconv.messages import program
    found = data.cifar10_path()
    looked = " and ".join(str(place.absolute()) for place in data.cifar10_places())
    show(console(), {
        **runs.environment(),
        "CIFAR-10": str(found) if found else f"not found in {looked}; {program()} train "
                                             "--download fetches it"})
