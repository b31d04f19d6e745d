"""Only the newest request counts."""

from __future__ import annotations

import threading

from ilrm.view.worker import LatestWorker


def test_newest_wins_and_errors_do_not_end_it() -> None:
    errors: list[Exception] = []
    worker = LatestWorker(errors.append)
    gate, begun, done = threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        gate.wait(10)
        done.append("slow")

    worker.submit("a", slow)
    assert begun.wait(10)
    for i in range(100):
        worker.submit("a", lambda i=i: done.append(i))
    worker.submit("b", lambda: done.append(1 // 0))
    worker.submit("c", lambda: done.append("c"))
    assert not worker.wait(0.01)
    gate.set()
    assert worker.wait(10)
    assert done == ["slow", 99, "c"]
    assert [type(error) for error in errors] == [ZeroDivisionError]
    worker.close()
    worker.submit("a", lambda: done.append("late"))
    assert worker.wait(1)
    assert done[-1] == "c"
