"""Threads of the Numba kernels: they come from a pool of our own and take tasks from a shared counter.

Numba's threading layers would not do: the default one ends the process when two threads enter it, another one a forked
child, and all make the caller wait for threads that a busy machine has not even started.

Not compiled, as `_numba.py` is: between two slices of the work the interpreter looks for signals.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from ._backends import Array

HELP = 1 << 17  # elements worth a further thread: waking one takes as long as some of them
SLICE = 1 << 24  # elements, that is at most a tenth of a second, between two looks for signals
MOST_THREADS = 256

COUNTER = np.dtype(np.int64)

ALONE = np.empty(0, COUNTER)  # the counter of a call that shares its tasks with no other

_pool = ThreadPoolExecutor(MOST_THREADS, "fastxent")  # starts a thread when there is none to spare


def deal(
    kernel: Callable[..., Any], arguments: tuple[Any, ...], size: int, tasks: int, elements: int, num_threads: int,
    *spare: Array,
) -> None:  # fmt: skip
    """Have all tasks done, which kernel(*arguments, counter, size, *spare) takes from a counter.

    By this thread and by others, which need not even start. This one takes a SLICE of the elements at a time, so that
    it hears signals in between. `spare` is its memory, which others have of their own; it is there before anything is
    written.
    """
    counter, working = np.array([0, max(1, tasks * SLICE // elements)]), list[None]()

    def share() -> None:
        working.append(None)
        try:
            kernel(*arguments, counter[:1], size, *map(np.empty_like, spare))
        except MemoryError:
            pass  # others will do it all
        finally:
            working.pop()

    try:
        helpers = _hire(share, min(num_threads, MOST_THREADS, -(-elements // HELP)) - 1)
        while counter[0] < tasks:
            kernel(*arguments, counter, size, *spare)
        for helper in helpers:
            if not helper.cancel():
                helper.result()
    except BaseException:  # that of Ctrl-C may come anywhere, before a helper is known too
        counter[0] = tasks
        while working:
            with suppress(KeyboardInterrupt):
                time.sleep(0.001)
        raise


def _hire(work: Callable[[], None], helpers: int) -> list[Future[None]]:
    """Have so many other threads do it, or as many as there may be."""
    hired: list[Future[None]] = []
    with suppress(RuntimeError):  # the interpreter is shutting down, or the system gives no more threads
        for _ in range(helpers):
            hired.append(_pool.submit(work))
    return hired
