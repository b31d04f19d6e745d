"""Damaged and hostile files for every reader of the package; also run by ``benchmarks/fuzz.py``."""
