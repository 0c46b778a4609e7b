"""What a kernel's main loop is made of: the instructions that NVRTC chose. No GPU needed.

    loop = sass.main_loop(nvrtc.build(job)[0], "conv_mma")
    sass.count(loop, "HMMA")            products on tensor cores
    sass.count(loop, "LDGSTS", ".128")  copies to shared memory, 16 bytes each
    sass.main_loop(nvrtc.build(job)[0], "conv_simt", "FFMA")    products on ordinary cores

nvdisasm is a part of the CUDA toolkit, or of the wheel nvidia-cuda-nvdisasm.
"""

import functools
import importlib.util
import pathlib
import re
import shutil
import subprocess
import tempfile


@functools.cache
def disassembler():
    """Path of nvdisasm; None where there is none."""
    wheels = getattr(importlib.util.find_spec("nvidia"), "submodule_search_locations", None) or []
    found = [path for root in wheels for path in pathlib.Path(root).glob("*/bin/nvdisasm*")]
    return shutil.which("nvdisasm") or next(map(str, found), None)


def main_loop(cubin, kernel, product="HMMA"):
    """Return its instructions, as text: of the smallest loop that has the most products."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([disassembler(), "-c", file.name], capture_output=True, text=True,
                              check=True).stdout
    return loop_of(re.split(r"^\s*\.section\s+\.text\.", text, flags=re.M), kernel, product)


def loop_of(sections, kernel, product):
    """Return the instructions of the main loop from the disassembled sections of code."""
    code, labels, best = [], {}, []
    body = next(s for s in sections if re.match(rf"{kernel}\b", s))
    for label, instruction in re.findall(r"^\s*(\.L_x_\d+):|/\*[0-9a-f]{4,}\*/\s+([^;{]*);", body,
                                         re.M):
        if label:
            labels[label] = len(code)
            continue
        code.append(instruction)
        jump = re.search(r"\bBRA\b.*\((\.L_x_\d+)\)", instruction)
        if jump and jump[1] in labels:  # backwards
            loop = code[labels[jump[1]]:]
            best = max(best, loop, key=lambda c: (count(c, product), -len(c)))
    return best


def count(code, name, *marks):
    """How many instructions have this name, and all marks in its options; @!PT is never."""
    heads = (re.sub(r"^@!?U?P\w+\s+", "", c).split()[0] for c in code if not c.startswith("@!PT"))
    return sum(h.split(".")[0] == name and all(m in h for m in marks) for h in heads)
