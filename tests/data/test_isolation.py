import os
import time

import pytest

from modeling_urfm.data.isolation import IsolatedWorker, WorkerDied


def behave(how: str):
    """What a decoder may do; module-level, as worker processes import it."""
    yield os.getpid()
    if how == "exit":
        os._exit(3)
    if how == "loop":
        time.sleep(60)
    if how == "memory":
        bytearray(64 << 30)
    if how == "raise":
        raise RuntimeError("odd header")
    yield "last"


@pytest.fixture(scope="module")
def worker():
    worker = IsolatedWorker(behave, timeout_s=1.0, memory_bytes=1 << 30)  # starting takes longer, and is no part of it
    yield worker
    worker.close()


def test_items_come_one_by_one_from_one_other_process(worker):
    first, last = worker("well")
    assert first != os.getpid() and last == "last"
    assert next(iter(worker("well"))) == first


@pytest.mark.parametrize(
    "how, code, detail",
    [
        ("exit", "crashed", "exit code 3"),
        ("loop", "timeout", "1 s"),
        ("memory", "crashed", "memory"),
        ("raise", "crashed", "odd header"),
    ],
)
def test_a_lost_worker_is_told_and_replaced(worker, how, code, detail):
    items = []
    with pytest.raises(WorkerDied) as caught:
        for item in worker(how):
            items.append(item)
    assert caught.value.code == code and detail in caught.value.detail
    assert len(items) == 1  # what came before it is not lost
    assert list(worker("well"))[1] == "last"


def test_a_call_that_is_left_early_does_not_spill_into_the_next(worker):
    for _ in worker("well"):
        break
    assert list(worker("well"))[1:] == ["last"]
