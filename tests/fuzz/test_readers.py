"""Damaged files are read or refused with our own error: no other exception, no hang, no memory bomb.

``python benchmarks/fuzz.py`` does the same with 3,000 mutations for each reader.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.mutations import JSON, TEXT, mutate
from tests.fuzz.readers import READERS
from tests.fuzz.watch import Limits, fuzz


@pytest.mark.slow
@pytest.mark.parametrize("mutations", [12, pytest.param(100, marks=pytest.mark.full)])
def test_every_reader_survives_spoiled_files(mutations: int) -> None:
    tallies = fuzz(tuple(READERS), mutations)
    failures = {f"{name} {number}": told for name, x in tallies.items() for number, told in x.failures.items()}
    assert failures == {}
    assert {name: x.counts.total() for name, x in tallies.items()} == dict.fromkeys(READERS, mutations)
    assert sum(x.counts["refused"] for x in tallies.values()) > 0.48 * mutations * len(READERS)
    assert sum(x.counts["read"] for x in tallies.values()) > 0.12 * mutations * len(READERS)


def test_mutations_are_seeded_and_differ() -> None:
    data = b'{"a": [1, 2.5, {"b": "text"}], "c": null}\n' * 1
    for kinds in (JSON, TEXT):
        first = [mutate(data, kinds, random.Random(n)) for n in range(200)]
        assert first == [mutate(data, kinds, random.Random(n)) for n in range(200)]
        assert len({*first}) > 100


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is watched on Linux alone")
def test_faults_are_noticed(tmp_path: Path) -> None:
    """Each kind of fault is counted as such, does not stop the others, and keeps the file that caused it."""
    verdicts = {"refuses": "refused", "raises": "foreign", "spins": "hang", "grows": "memory", "dies": "foreign"}
    options: dict[str, Any] = {"keep": tmp_path, "table": "tests.fuzz.faulty"}
    limits = Limits(seconds=3.0, most_bytes=400 << 20)  # fresh memory may come slowly
    tallies = fuzz(("refuses", "raises", "grows", "dies"), 2, limits=limits, **options)
    spun = fuzz(("spins", "raises"), 1, limits=replace(limits, seconds=0.5), **options)
    assert spun["raises"].counts.total() == 1
    tallies["spins"] = spun["spins"]
    for reader, verdict in verdicts.items():
        counts = tallies[reader].counts
        assert counts[verdict] == counts.total() - counts["read"] > 0, reader
        assert len(list(tmp_path.glob(f"{reader}-*"))) == len(tallies[reader].failures)
    assert "KeyError at faulty.py" in next(iter(tallies["raises"].failures.values()))
    assert "the process died" in next(iter(tallies["dies"].failures.values()))
    assert all(path.read_bytes() != b"valid" for path in tmp_path.iterdir())
