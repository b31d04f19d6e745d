"""Write constraints.txt: every package that users and tests get, on each Python and system. `make lock` starts it.

Versions already in the file are kept where they still fit; --upgrade takes the newest.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "constraints.txt"
HEADER = """\
# Exact versions that the project is tested with. `make lock` writes this file. torch comes first and is chosen by
# hand: any other release would pull several gigabytes of CUDA libraries on a CPU-only machine. Packages that torch
# itself pins are not listed, since its builds for other accelerators pin other packages.
"""
OLDEST_PYTHON = "3.10"
EXTRAS = ("dev", "cuda", "eval")  # those that something in the package needs
OF_TORCH = re.compile(r"(nvidia|cuda|triton|torch$)", re.IGNORECASE)


def main(options: list[str]) -> None:
    lines = LOCK.read_text("utf-8").splitlines()
    (torch,) = [line for line in lines if line.startswith("torch==")]
    with tempfile.TemporaryDirectory() as folder:
        chosen, found = Path(folder) / "torch.txt", Path(folder) / "found.txt"
        chosen.write_text(torch + "\n", "utf-8")
        found.write_text("\n".join(lines) + "\n", "utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--universal"]
        command += [word for extra in EXTRAS for word in ("--extra", extra)]
        command += ["--python-version", OLDEST_PYTHON, "--constraint", str(chosen), "--output-file", str(found)]
        command += ["--no-annotate", "--no-header", "--strip-extras", "--quiet", "--system-certs", *options]
        subprocess.run(command, cwd=ROOT, check=True)
        pins = [line for line in found.read_text("utf-8").splitlines() if not OF_TORCH.match(line.partition("==")[0])]
    LOCK.write_text(HEADER + "\n".join([torch, *pins]) + "\n", "utf-8")
    print(f"{LOCK.name}: {len(pins) + 1} pins")


if __name__ == "__main__":
    main(sys.argv[1:])
