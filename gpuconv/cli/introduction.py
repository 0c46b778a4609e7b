"""Lines that ``gpuconv train`` prints before it begins: data, model, device, settings, folder."""

from typing import TYPE_CHECKING, Any

from gpuconv.cli.output import several, show

if TYPE_CHECKING:
    from gpuconv.data import Dataset
    from gpuconv.runs import Config


def introduce(console: Any, config: "Config", sets: "tuple[Dataset, Dataset]",
              more: dict[str, str], new: bool = True) -> None:
    """Print what a run is about to do; for a new run, also the options that change it."""
    from gpuconv import models
    model, settings = config.model, config.settings
    size = sum(p.size for p in models.build(model).parameters())
    show(console, {
        "data": more["data"],
        "images": images(config, sets[0], new),
        "model": f"{model.get('name') or model['notation']}, {size:,} parameters, {config.dtype}",
        "device": more["device"],
        "run": f"{several(settings.epochs, 'epoch')} of {several(len(sets[0]), 'image')} in "
               f"batches of {settings.batch_size}, seed {config.seed}",
        "recipe": f"{config.recipe}: {settings}",
        "folder": more["folder"]})


def images(config: "Config", train: "Dataset", new: bool = True) -> str:
    """Return a line about the size of the images, and how training images are moved."""
    def hint(text: str) -> str:
        return f" ({text})" if new else ""

    source, settings = config.source, config.settings
    H, W = train.images.shape[1:3]
    scaled = source.kind == "folder" or source.image_size
    words = [f"{'the middle of each, scaled to ' if scaled else ''}{H}x{W}{hint('--image-size')}"]
    words += ["mirrored left-right in training" + hint(
        "--no-flip if mirror images differ, as those of digits or text") if settings.flip
        else "not mirrored"]
    words += [f"moved by up to {several(settings.crop, 'pixel')} in training{hint('--crop')}"
              if settings.crop else "not moved"]
    return "; ".join(words)
