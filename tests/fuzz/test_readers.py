"""Spoiled files are read or refused with our own error: no other exception, no hang, no bomb.

``python benchmarks/fuzz.py`` does the same with 3,000 mutations for each reader.
"""

from __future__ import annotations

import random

import pytest

from tests.fuzz.mutations import JSON, TEXT, mutate
from tests.fuzz.readers import READERS
from tests.fuzz.watch import fuzz


@pytest.mark.slow
def test_every_reader_survives_spoiled_files() -> None:
    tallies = fuzz(tuple(READERS), 25)
    failures = {f"{name} {number}": told for name, x in tallies.items() for number, told in x.failures.items()}
    assert failures == {}
    assert {name: x.counts.total() for name, x in tallies.items()} == dict.fromkeys(READERS, 25)
    assert sum(x.counts["refused"] for x in tallies.values()) > 12 * len(READERS)
    assert sum(x.counts["read"] for x in tallies.values()) > 3 * len(READERS)


def test_mutations_are_seeded_and_differ() -> None:
    data = b'{"a": [1, 2.5, {"b": "text"}], "c": null}\n' * 1
    for kinds in (JSON, TEXT):
        first = [mutate(data, kinds, random.Random(n)) for n in range(200)]
        assert first == [mutate(data, kinds, random.Random(n)) for n in range(200)]
        assert len({*first}) > 100
