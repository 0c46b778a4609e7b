"""The checkpoint that the model of a run is read from."""

import pathlib
from typing import TYPE_CHECKING

from gpuconv.messages import program, quoted
from gpuconv.train.checkpoint import best

if TYPE_CHECKING:
    from gpuconv.runs.folder import RunFolder


def model_file(folder: "RunFolder") -> pathlib.Path:
    """Return the best checkpoint of a run; if that is not whole the newest, with a warning.

    Raises:
        FileNotFoundError: there is none; says what can be done.
        ValueError: none is whole.
    """
    try:
        return best(folder.checkpoints_folder)
    except FileNotFoundError as error:
        status = folder.status()
        how = f"; to start the run again: {program()} train --resume {quoted(folder.path)}"
        raise FileNotFoundError(f"{error}" + (
            how if status == "can be started again" else f" ({status})")) from None
