import os
import signal

import pytest

from nnunet_godc.workers import WorkerEnded, available_cores, in_workers


def square(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_of_the_tasks(workers: int):
    assert list(in_workers(square, [5, 1, 2], workers)) == [(5, 25), (1, 1), (2, 4)]


def test_a_killed_worker_costs_its_own_task_alone():
    found = dict(in_workers(square, [1, 3, 2], workers=1))
    assert isinstance(found[3], WorkerEnded)
    assert (found[1], found[2]) == (1, 4)


def test_there_is_a_core_to_work_on():
    assert available_cores() >= 1
