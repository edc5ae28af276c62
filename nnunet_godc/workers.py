"""Work on many things in processes of their own, where one that is killed does not take the others with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerEnded:
    """In place of a result: the process that worked on a task was ended from outside."""

    SENTENCE = "its worker process was ended from outside, perhaps for want of memory; use fewer with -np"


def in_workers(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[Task, Result | WorkerEnded]]:
    """Every task with what `function` returns for it, in the order of the tasks.

    Args:
        function: of a module, so that other processes can import it.
        workers: number of processes; 0 works in this one.
    """
    if workers == 0:
        for task in tasks:
            yield task, function(task)
        return
    import multiprocessing

    from pebble import ProcessExpired, ProcessPool

    # Started afresh: a fork of a process with threads may hang, and would carry our memory along.
    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=min(workers, max(1, len(tasks))), context=context) as pool:
        futures = [(task, pool.schedule(function, args=[task])) for task in tasks]
        try:
            for task, future in futures:
                try:
                    yield task, future.result()
                except ProcessExpired:
                    yield task, WorkerEnded()
        except BaseException:
            pool.stop()  # type: ignore[no-untyped-call]
            raise


def available_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
