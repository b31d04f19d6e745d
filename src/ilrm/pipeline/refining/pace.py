"""How far a refinement has come: counted in steps, or in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

from ilrm.core.errors import ConfigError


class Pace:
    """When a refinement ends, and which share of it is done.

    Counted in steps, a run can be repeated exactly. Counted in seconds, it does what the machine manages; its number
    of steps is then known afterwards.

    Args:
        steps: at most so many; None does not limit them.
        seconds: at most so much time from the first call of ``share`` on; a step that would end later is not begun,
            except the first. None does not limit it.
        clock: seconds.

    Raises:
        ConfigError: neither limit is given, or a negative one.
    """

    def __init__(
        self, steps: int | None, seconds: float | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if steps is None and seconds is None:
            raise ConfigError("Neither steps nor seconds of refinement were given.", expected="one of them")
        if steps is not None and steps < 0:
            raise ConfigError(f"{steps} refinement steps were asked for.", expected="0 or more")
        if seconds is not None and not seconds >= 0:
            raise ConfigError(f"{seconds} seconds of refinement were asked for.", expected="0 or more")
        self._steps, self._seconds, self._clock = steps, seconds, clock
        self._start: float | None = None

    def share(self, done: int) -> float | None:
        """Where the step after ``done`` ones lies between the first (0) and the last (1); None if it shall not be."""
        if self._start is None:
            self._start = self._clock()
        by_steps = self._by_steps(done)
        by_time = self._by_time(done)
        return None if by_steps is None or by_time is None else max(by_steps, by_time)

    def _by_steps(self, done: int) -> float | None:
        if self._steps is None:
            return 0.0
        return None if done >= self._steps else done / max(self._steps - 1, 1)

    def _by_time(self, done: int) -> float | None:
        if self._seconds is None:
            return 0.0
        if self._seconds == 0:
            return None
        if done == 0 or self._start is None:
            return 0.0
        used = self._clock() - self._start
        return None if used * (done + 1) / done > self._seconds else min(used / self._seconds, 1.0)
