"""What a recipe is."""

import dataclasses

from gpuconv.train import Settings


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A way to train that was seen to work."""

    says: str            # in a few words
    model: str           # a name in models.MODELS, or the notation of the course notes
    settings: Settings
    measured: str        # what it reached, on what, how long it took
