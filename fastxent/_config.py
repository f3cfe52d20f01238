"""How fastxent runs: process-wide defaults, overrides for a block of code, and the processors it may use."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

BACKENDS = ("auto", "cython", "numba", "cuda")


class Config(NamedTuple):
    """One setting of every option, as `get_config` shows it."""

    backend: str
    num_threads: int | None
    check_targets: bool = True


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    unknown = options.keys() - set(Config._fields)
    if unknown:
        raise TypeError(f"unknown option {sorted(unknown)[0]!r}, expected one of {', '.join(Config._fields)}")
    backend = options.get("backend", "auto")
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
    threads = options.get("num_threads")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int)):
        raise TypeError(f"num_threads is {threads!r}, expected a positive int or None for all processors")
    if threads is not None and threads < 1:
        raise ValueError(f"num_threads is {threads}, expected a positive int or None for all processors")
    if not isinstance(options.get("check_targets", True), bool):
        raise TypeError(f"check_targets is {options['check_targets']!r}, expected True or False")
    return dict(options)


def _from_environment(environ: Mapping[str, str]) -> Config:
    threads = environ.get("FASTXENT_NUM_THREADS", "")
    if threads and not threads.isdecimal():
        raise ValueError(f"FASTXENT_NUM_THREADS is {threads!r}, expected a positive integer")
    options = _checked(
        {"backend": environ.get("FASTXENT_BACKEND") or "auto", "num_threads": int(threads) if threads else None}
    )
    return Config(**options)


_process = _from_environment(os.environ)
_context: ContextVar[Config | None] = ContextVar("fastxent_config", default=None)


def current() -> Config:
    """The configuration in force here: the innermost `config_context`, else the process's."""
    return _context.get() or _process


def get_config() -> dict[str, Any]:
    """Return the options in force as a dict.

    Returns
    -------
    dict
        ``backend``, ``num_threads`` and ``check_targets``; the innermost `config_context` wins over `set_config`, which
        wins over the environment.

    Examples
    --------
    >>> import fastxent as fx
    >>> sorted(fx.get_config())
    ['backend', 'check_targets', 'num_threads']
    """
    return current()._asdict()


def set_config(**options: Any) -> None:
    """Set the process-wide defaults; options left out stay as they are.

    Parameters
    ----------
    backend : {"auto", "cython", "numba", "cuda"}, optional
        What runs the kernels. ``"auto"`` is ``"cython"`` for arrays in host memory, and ``"cuda"`` for those on a GPU.
        ``FASTXENT_BACKEND`` sets the initial value.
    num_threads : int or None, optional
        The most threads that one call may use; ``None`` is every processor that the process may use (its affinity
        mask, its control group's quota, and ``OMP_NUM_THREADS`` if set). Results do not depend on it.
        ``FASTXENT_NUM_THREADS`` sets the initial value.
    check_targets : bool, optional
        Whether wrong labels and probabilities are errors even on a GPU, which the host has to wait for. Without the
        check, samples with such labels are nan; arrays of the host are always checked.

    Raises
    ------
    TypeError, ValueError
        For an unknown option or value.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.set_config(num_threads=2)
    >>> fx.get_config()["num_threads"]
    2
    >>> fx.set_config(num_threads=None)
    """
    global _process, _processors
    _process = _process._replace(**_checked(options))
    _processors = 1 if _forked else count_processors()


@contextlib.contextmanager
def config_context(**options: Any) -> Iterator[None]:
    """Override options for a block of code, in this thread or asynchronous task alone.

    Parameters
    ----------
    **options
        As for `set_config`.

    Examples
    --------
    >>> import fastxent as fx
    >>> with fx.config_context(num_threads=1):
    ...     fx.get_config()["num_threads"]
    1
    """
    token = _context.set(current()._replace(**_checked(options)))
    try:
        yield
    finally:
        _context.reset(token)


def _read(*path: str) -> str:
    with open(os.path.join(*path)) as file:  # pathlib would add a tenth to the time of our import
        return file.read()


def _quota(root: str = "/sys/fs/cgroup") -> float:
    """Processors that the control group (version 2, else 1) allows; infinite without a limit."""
    try:
        quota, period = _read(root, "cpu.max").split()
    except OSError:
        try:
            quota, period = _read(root, "cpu", "cpu.cfs_quota_us"), _read(root, "cpu", "cpu.cfs_period_us")
        except OSError:
            return float("inf")
    return float(quota) / float(period) if quota != "max" and float(quota) > 0 else float("inf")


def count_processors(environ: Mapping[str, str] = os.environ) -> int:
    """Processors that this process may keep busy: affinity mask, control group quota and OMP_NUM_THREADS."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    openmp = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    limits = [affinity, _quota(), int(openmp) if openmp.isdecimal() and int(openmp) > 0 else affinity]
    return max(1, int(min(limits)))


def _alone_after_fork() -> None:
    # A forked child has none of its parent's worker threads, and would wait for them forever.
    global _forked, _processors
    _forked, _processors = True, 1


_forked, _processors = False, count_processors()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_alone_after_fork)


def num_threads(wanted: int | None) -> int:
    """Threads that a call may use where so many are wanted."""
    return _processors if wanted is None else min(wanted, _processors)
