"""Holds _C_torch_cuda to what it must be: machine code for each generation, no spills, a size that a wheel can hold.

python -m bench.gpu.cuda_library build/cuda/_C_torch_cuda.abi3.so
"""

import re
import subprocess
import sys
from pathlib import Path

CHIPS = ("sm_80", "sm_89", "sm_90a", "sm_100", "sm_120")  # machine code; 100 and 120 of their whole families
PTX = "sm_90"  # for chips that come later
MAX_BYTES = 8 << 20


def cuobjdump(option: str, library: Path) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, option, library], capture_output=True, text=True, check=True).stdout


def faults(library: Path) -> list[str]:
    """Sentences; none where all is well."""
    found = []
    machine_code, ptx = cuobjdump("-lelf", library), cuobjdump("-lptx", library)
    found += [f"has no machine code for {chip}" for chip in CHIPS if f".{chip}.cubin" not in machine_code]
    found += [] if f".{PTX}.ptx" in ptx else [f"has no PTX of {PTX}"]
    usage = cuobjdump("--dump-resource-usage", library)
    kernels = re.findall(r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+)", usage)
    found += [f"{name} spills {stack} bytes" for name, _, stack in kernels if int(stack)]
    if not kernels:
        found.append("has no kernels")
    if library.stat().st_size > MAX_BYTES:
        found.append(f"has {library.stat().st_size} bytes, of {MAX_BYTES}")
    most = max((int(registers) for _, registers, _ in kernels), default=0)
    print(f"{library.name}: {len(kernels)} kernels, at most {most} registers, {library.stat().st_size / 1e6:.1f} MB")
    return found


def main() -> int:
    wrong = faults(Path(sys.argv[1]))
    print("\n".join(wrong) if wrong else "ok")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
