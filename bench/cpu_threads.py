"""The same bits with one thread and with several."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cpu_layers import LAYERS, Case
from cpu_rounds import OURS, Size, in_turns
from cpu_table import Found, Target
from cpu_train import batch, net, stepper
from harness import Library, runner

from gpuconv import threads

STEPS = 2
IMAGES = 8     # at most, of a layer


def threaded(size: Size, rivals: Sequence[str], say: Callable[[str], None]) -> Found:
    """Bits of conv layers and of training, and how fast one is."""
    found, counts = Found(), sorted({1, 2, threads.count()})
    bits: dict[str, dict[int, str]] = {}
    for number in counts:
        say(f"bits, {number} threads")
        for name, digest in with_threads(number, lambda: results(size)).items():
            bits.setdefault(name, {})[number] = digest
    found.rows += [dict(what=name, same=len(set(of.values())) == 1) for name, of in bits.items()]
    differ = [row["what"] for row in found.rows if not row["same"]]
    found.table(f"Bits with {', '.join(map(str, counts))} threads.", ["results", "the same bits"],
                ([row["what"], "yes" if row["same"] else "**NO**"] for row in found.rows), 2)
    found.targets.append(Target("results whose bits depend on the number of threads", len(differ),
                                0, at_least=False, note=", ".join(differ), form=".0f"))
    say(f"speed, {size.nets[0]}")
    library = Library(OURS)
    step = stepper(net(size.nets[0]), library, *batch(library, size.batch))
    times = in_turns({str(number): lambda number=number: with_threads(number, step)
                      for number in counts}, size)
    rates = {number: size.batch / times[str(number)].seconds for number in counts}
    found.table(f"A training step of {size.nets[0]}, batch {size.batch}.",
                ["threads", "images/s", "over one thread", "spread"],
                ([str(number), f"{rates[number]:,.0f}", f"{rates[number] / rates[1]:.2f}",
                  f"{times[str(number)].spread:.0%}"] for number in counts), 1)
    return found


def with_threads(number: int, run: Callable[[], Any]) -> Any:
    """What it gives with so many."""
    threads.set_count(number)
    try:
        return run()
    finally:
        threads.set_count(None)


def results(size: Size) -> dict[str, str]:
    """Digests by name: of layers of all kinds, and of the nets after training steps."""
    library, found = Library(OURS), {}
    for layer in LAYERS[::3 * size.every]:
        case = Case(layer, min(IMAGES, layer.batch(size.flops)))
        for product in ("forward", "gx", "gw"):
            got = runner(case.work(product), library)()
            found[f"{layer}, {product}"] = digest(*(got if isinstance(got, tuple) else (got,)))
    for name in size.nets:
        model = net(name)
        run = stepper(model, library, *batch(library, size.batch))
        losses = [np.array(run()) for _ in range(STEPS)]
        found[f"{name}, {STEPS} training steps"] = digest(*losses,
                                                          *(p.data for p in model.parameters()))
    return found


def digest(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for a in arrays:
        found.update(np.ascontiguousarray(a).data)
    return found.hexdigest()
