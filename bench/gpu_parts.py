"""The parts of a GPU day, in order: what runs in a process of its own, and for how long at most."""

import dataclasses
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
MINUTE = 60  # seconds
TOOLS = "memcheck", "racecheck", "initcheck", "synccheck"
BATCHES = 128, 1024  # of the training steps beside PyTorch's
NETS = ("cifar_convnet, batch 128", "cifar_convnet, batch 1024", "speed-run net, batch 2000",
        "VGG-16, batch 256", "ResNet-50, batch 256")  # of gpu_nets.py, which imports gpuconv

OPS_FIRST = ["gpu_mma", "gpu_mma_wgrad", "gpu_simt", "column_sums", "max_pool", "conv2d",
             "im2col", "linear", "batch_norm", "avg_pool", "activation", "softmax_cross_entropy",
             "bias_relu", "dropout", "augment", "sgd", "adam"]
NOT_OF_THE_GPU = ["architecture", "check", "gpu_day", "hostcuda", "launches", "mutants", "mutate",
                  "null_driver", "nvrtc", "races", "stand_in", "traffic"]  # of the tests themselves
BENCHES = [["conv2d"], ["im2col", "linear", "matmul"], ["max_pool", "avg_pool", "global_pool"],
           ["batch_norm", "activation"], ["arithmetic", "reduction"],
           ["softmax", "softmax_cross_entropy", "dropout", "augment"], ["sgd", "adam"]]

FILES = {"device": ["checks"], "determinism": ["checks", "cases", "sizes"],
         "sanitizer": ["checks", "cases"], "ceilings": ["speed", "cases"],
         "training": ["speed", "sizes"], "convolutions": ["conv", "nets", "sizes"]}

USES_A_GPU = re.compile(r'def \w+\([^)]*\b(xp|cp)\b|getfixturevalue\("cp"\)|mark\.gpu\b')
STAND_IN = re.compile(r"^pytestmark = [^\n]*(\n +[^\n]*)*is not fake_cupy", re.M)


@dataclasses.dataclass(frozen=True)
class Part:
    """What runs in a process of its own."""

    stage: str
    name: str
    command: tuple[str, ...]        # as one types it after ``python``, in the root of a checkout
    quiet: tuple[str, ...] = ()     # what the day adds; FILE stands for where its findings go
    limit: float = 8 * MINUTE       # seconds until it counts as hanging
    least: float = 30               # seconds without which it is not begun
    files: tuple[str, ...] = ()     # beside gpuconv and the kernels, what its result depends on

    @property
    def key(self) -> str:
        """Of its record."""
        return f"{self.stage}: {self.name}"


STAGES = {
    "device": "what the machine is",
    "tests": "the tests of tensor cores and of every op, on the real CuPy",
    "determinism": "the same bits twice; the CPU's numbers",
    "ceilings": "the most that this machine does: copies, matrix products",
    "convolutions": "every layer of five networks, float16, against cuDNN's best",
    "ops": "how fast every op is, beside PyTorch and cuDNN, against the ceilings",
    "training": "how fast a step is; a short training run, with its accuracy",
    "sanitizer": "compute-sanitizer on a short run of every kernel",
}


def parts(stand_in: bool = False, data_dir: str | None = None) -> list[Part]:
    """All of a day, in order."""
    found = [_own("device", "report", limit=MINUTE)]
    for files in test_groups():
        found.append(_pytest("tests", files, ["-m", "not slow"], limit=4 * MINUTE))
    found += [_own("determinism", "ops", limit=3 * MINUTE),
              _own("determinism", "training", limit=3 * MINUTE),
              _own("determinism", "CPU and GPU", limit=3 * MINUTE),
              _own("determinism", "captured", limit=2 * MINUTE),
              _own("ceilings", "peaks", limit=2 * MINUTE)]
    found += [_own("convolutions", net, limit=6 * MINUTE) for net in NETS]
    on_gpu = ["-k", "cupy or cuda or cudnn"]
    for names in BENCHES:
        files = [f"bench/bench_{name}.py" for name in names]
        found.append(_pytest("ops", files, on_gpu, limit=5 * MINUTE))
    found.append(_pytest("training", ["bench/bench_train_step.py"], on_gpu, limit=3 * MINUTE))
    found += [_own("training", f"{what} {batch}", limit=3 * MINUTE)
              for what in ("step of", "memory of") for batch in BATCHES]
    found.append(_own("training", "start", limit=2 * MINUTE))
    data = ("--data-dir", data_dir) if data_dir else ()
    found += [_own("training", f"run in {dtype}", *data, limit=4 * MINUTE)
              for dtype in ("float32", "float16")]
    found += [_own("sanitizer", tool, limit=4 * MINUTE) for tool in TOOLS]
    if stand_in:
        found = [dataclasses.replace(part, quiet=(*part.quiet, "--stand-in")) for part in found]
    return found


def _own(stage: str, name: str, *more: str, limit: float) -> Part:
    return Part(stage, name, ("bench/gpu_stages.py", stage, name, *more), ("--into", "FILE"),
                limit, files=tuple(f"bench/gpu_{name}.py" for name in FILES[stage]))


def _pytest(stage: str, files: list[str], options: list[str], limit: float) -> Part:
    name = " ".join(re.sub(r".*/(test|bench)_|\.py$", "", file) for file in files)
    return Part(stage, name, ("-m", "pytest", *files, *options),
                ("-q", "-W", "default", "--continue-on-collection-errors", "-p", "gpu_pytest",
                 "--into", "FILE"), limit,
                files=tuple(files))


def test_groups() -> list[list[str]]:
    """Return the files with tests that run on the GPU, a few to a process.

    mma.cuh comes first, whose instructions the convolutions are made of; then the ops, then the
    rest.
    """
    found = {}
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        name = path.stem.removeprefix("test_")
        text = path.read_text(encoding="utf-8")
        if name not in NOT_OF_THE_GPU and USES_A_GPU.search(text) and not STAND_IN.search(text):
            found[name] = str(path.relative_to(ROOT).as_posix())
    mma, first = found.pop("mma"), [found.pop(name) for name in OPS_FIRST if name in found]
    gpu = [found.pop("gpu")] if "gpu" in found else []
    some = [first[i:i + 2] for i in range(0, len(first), 2)]
    rest = list(found.values())
    return [[mma], *some, *([gpu] if gpu else []), *(rest[i:i + 5] for i in range(0, len(rest), 5))]
