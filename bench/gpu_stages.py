"""The work of the GPU day: see gpu_day.py, and gpu_parts.py for its order.

``python bench/gpu_stages.py STAGE PART`` runs one part in this process and prints what it finds.
With ``--into FILE`` that is in the file at each moment: a part that is killed leaves what it had.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout, also where another gpuconv is installed

import gpu_checks as checks  # noqa: E402
import gpu_conv  # noqa: E402
import gpu_sizes  # noqa: E402
import gpu_speed as speed  # noqa: E402
from gpu_cases import TINY  # noqa: E402
from gpu_findings import Findings, compiling, failing  # noqa: E402
from gpu_packages import do_without  # noqa: E402
from gpu_parts import BATCHES, NETS, TOOLS  # noqa: E402

WORK: dict[tuple[str, str], Callable[[Findings, argparse.Namespace], None]] = {
    ("device", "report"): checks.device, ("determinism", "ops"): checks.same_bits,
    ("determinism", "training"): checks.same_training,
    ("determinism", "CPU and GPU"): checks.agreement,
    ("determinism", "captured"): checks.captured, ("ceilings", "peaks"): speed.ceilings,
    **{("convolutions", net): gpu_conv.layers for net in NETS},
    **{("training", f"step of {batch}"): speed.training_step for batch in BATCHES},
    **{("training", f"memory of {batch}"): speed.memory for batch in BATCHES},
    ("training", "start"): speed.start,
    **{("training", f"run in {dtype}"): speed.training_run for dtype in ("float32", "float16")},
    **{("sanitizer", tool): checks.sanitizer for tool in TOOLS}}


def main() -> None:
    parser = argparse.ArgumentParser(description="One part of the GPU day, in this process.")
    parser.add_argument("stage")
    parser.add_argument("part")
    parser.add_argument("--into", type=pathlib.Path, metavar="FILE",
                        help="where its findings are kept, as JSON")
    parser.add_argument("--data-dir", help="where CIFAR-10 is")
    parser.add_argument("--stand-in", action="store_true", help="try the code without a GPU")
    args = parser.parse_args()
    if (args.stage, args.part) not in WORK:
        parser.error("wanted one of " + ", ".join(f"{a} {b!r}" for a, b in WORK))
    do_without()
    if args.stand_in:
        import gpu_stand_in
        gpu_stand_in.install()
        gpu_stand_in.shrink(gpu_sizes, TINY)
    findings = Findings(args.into)
    findings.save()
    with failing(findings, f"{args.stage}: {args.part}"), compiling(findings):
        WORK[args.stage, args.part](findings, args)
    findings.end()


if __name__ == "__main__":
    main()
