"""Every reader of the package on damaged files: what it reads, refuses, and fails on.

    python benchmarks/fuzz.py                                   # 3,000 mutations for each reader, the table in docs
    python benchmarks/fuzz.py --readers png tiff --mutations 200 --seed 7 --keep failures --json

Mutations are seeded: bit flips, cuts, splices, inserted tokens, swapped numbers, JSON values of other types. A foreign
exception is any exception other than the package's own errors. Each file has 10 s and 2 GB in a watched process. The
exit status is 1 if anything failed.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fuzz.readers import READERS
from tests.fuzz.watch import Tally, fuzz

_COLUMNS = ("read", "refused", "foreign", "hang", "memory")


@dataclass(frozen=True)
class Options:
    """Damage the input of every reader, and count the outcomes."""

    readers: tuple[str, ...] = ()
    """Some of the readers, by name; all by default."""
    mutations: int = 3000
    """Damaged files for each reader."""
    seed: int = 0
    """Of all draws."""
    keep: Path | None = None
    """A folder for the files that failed."""
    json: bool = False
    """Print one JSON object instead of the table."""


def main(options: Options) -> int:
    if unknown := sorted(set(options.readers) - set(READERS)):
        print(f"There are no readers {', '.join(unknown)}. There are: {', '.join(READERS)}", file=sys.stderr)
        return 1
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    tallies = fuzz(options.readers or tuple(READERS), options.mutations, options.seed, keep=options.keep)
    if options.json:
        print(json.dumps({"seed": options.seed, "readers": {name: asdict(x) for name, x in tallies.items()}}, indent=1))
    else:
        _print_table(tallies)
        print(f"\n{options.mutations} mutations each, seed {options.seed}, {time.monotonic() - start:.0f} s")
    return 1 if any(tally.failures for tally in tallies.values()) else 0


def _print_table(tallies: dict[str, Tally]) -> None:
    print("| reader | n | read | refused | foreign exceptions | hangs | over 2 GB |")
    print("|---|---|---|---|---|---|---|")
    for name, tally in tallies.items():
        print(f"| {name} | {tally.counts.total()} | " + " | ".join(str(tally.counts[x]) for x in _COLUMNS) + " |")
    for name, tally in tallies.items():
        for number, told in tally.failures.items():
            print(f"{name} {number}: {told}")


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))
