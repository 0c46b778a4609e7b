"""Recipe: settings, model and description for one kind of data."""

import dataclasses
from collections.abc import Callable

from gpuconv.train import Settings


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A way to train that was seen to work."""

    says: str            # in a few words
    model: str           # a name in models.MODELS, or the notation of the course notes
    settings: Settings
    measured: str        # what it reached, on what, how long it took
    fitted: Callable[[Settings, int, int], Settings] | None = None  # to a data set's size

    def settings_for(self, images: int, pixels: int) -> Settings:
        """Return the settings for that many training images, ``pixels`` high or wide at least."""
        return self.fitted(self.settings, images, pixels) if self.fitted else self.settings
