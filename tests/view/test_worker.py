"""Only the newest request counts."""

from __future__ import annotations

import threading

from ilrm.view.worker import LatestWorker
from tests.conftest import PATIENCE_S


def test_newest_wins_and_errors_do_not_end_it() -> None:
    errors: list[Exception] = []
    worker = LatestWorker(errors.append)
    gate, begun, done = threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        gate.wait(PATIENCE_S)
        done.append("slow")

    worker.submit("a", slow)
    assert begun.wait(PATIENCE_S)
    for i in range(100):
        worker.submit("a", lambda i=i: done.append(i))
    worker.submit("b", lambda: done.append(1 // 0))
    worker.submit("c", lambda: done.append("c"))
    assert not worker.wait(0.01)
    gate.set()
    assert worker.wait(PATIENCE_S)
    assert done == ["slow", 99, "c"]
    assert [type(error) for error in errors] == [ZeroDivisionError]
    worker.close()
    worker.submit("a", lambda: done.append("late"))
    assert worker.wait(PATIENCE_S)
    assert done[-1] == "c"
