"""What a run may cost: Gaussians, memory and time. Does not import torch, because the command line reads it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ilrm.core.errors import ConfigError

_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)(?:e([+-]?\d{1,2}))?\s*([a-zA-Z]*)\s*")
_THOUSANDS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}
_EXAMPLES = {
    "gaussians": "a number above 0, such as 200000, 200k or 1.5M",
    "memory": "bytes, or a number with its unit, such as 4GB or 800MB; at least 1 MB",
    "seconds": "a number above 0, such as 120, or 2min",
    "refine": "a number of steps, such as 300, or a time with its unit, such as 30s or 2min",
}
_LEAST_BYTES = 1e6
_MOST_STEPS = 10**9


@dataclass(frozen=True)
class Budget:
    """Limits on a whole run; None sets none.

    Attributes:
        gaussians: of the forward pass.
        memory: bytes that the process takes at most.
        seconds: from reading the photos to the last score.
    """

    gaussians: int | None = None
    memory: float | None = None
    seconds: float | None = None

    @staticmethod
    def parse(
        gaussians: float | str | None = None, memory: float | str | None = None, seconds: float | str | None = None
    ) -> Budget:
        """The limits as users write them: numbers, or text such as "200k", "4GB", "2min". Raises ConfigError."""
        count = None if gaussians is None else _parsed("gaussians", gaussians, _THOUSANDS)
        space = None if memory is None else _parsed("memory", memory, _BYTES | {"": 1.0}, _LEAST_BYTES)
        time = None if seconds is None else _parsed("seconds", seconds, _SECONDS)
        return Budget(None if count is None else max(1, int(count)), space, time)

    @property
    def unlimited(self) -> bool:
        """Whether nothing is asked for."""
        return self == Budget()


@dataclass(frozen=True)
class Effort:
    """How much refinement there is: so many steps, or so much time; neither where that is left to the program.

    Attributes:
        steps: 0 is none.
        seconds: of refinement alone.
    """

    steps: int | None = None
    seconds: float | None = None

    @staticmethod
    def parse(given: float | str | None) -> Effort:
        """What users write: a number of steps, or text such as "30s" or "2min"; None decides nothing. Raises
        ConfigError."""
        if given is None:
            return Effort()
        if isinstance(given, str) and (match := _NUMBER.fullmatch(given)) and match[3]:
            return Effort(seconds=_parsed("refine", given, _SECONDS))
        try:
            steps = float(given)
        except (TypeError, ValueError):
            steps = -1.0
        if isinstance(given, bool) or not (0 <= steps < _MOST_STEPS and steps == int(steps)):
            raise ConfigError(f"--refine {given} was given.", expected=_EXAMPLES["refine"])
        return Effort(steps=int(steps))

    @property
    def none(self) -> bool:
        """Whether nothing is refined."""
        return self.steps == 0 or self.seconds == 0


NO_REFINEMENT = Effort(steps=0)


def _parsed(name: str, given: float | str, units: dict[str, float], least: float = 0.0) -> float:
    """The value of a limit in units of 1, bytes or seconds. Raises ConfigError."""
    refusal = ConfigError(f"--{name} {given} was given.", expected=_EXAMPLES[name])
    if isinstance(given, str):
        match = _NUMBER.fullmatch(given)
        if match is None or match[3].lower() not in units:
            raise refusal
        value = float(match[1]) * 10.0 ** int(match[2] or 0) * units[match[3].lower()]
    elif isinstance(given, bool):
        raise refusal
    else:
        value = float(given)
    if not (0 < value < math.inf and value >= least):
        raise refusal
    return value
