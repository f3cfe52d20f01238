"""What runs here and why: version, builds, backends, threads, dependencies."""

import platform
from typing import Any, Literal

import numpy as np

from . import _backends, _config
from ._version import __version__

OPTIONAL = ("numba", "numba-cuda", "ml_dtypes", "torch")


def _backend_state(name: str) -> str:
    try:
        _backends.load(name)
    except RuntimeError as error:
        return f"unavailable: {error}"
    return "available"


def _installed(package: str) -> str:
    import importlib.metadata  # takes as long to import as half of NumPy

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def config_report() -> dict[str, dict[str, Any]]:
    """Everything that `show_config` prints, as nested dicts."""
    level = _backends.choose_level()
    build = _backends.load("cython").BUILD  # type: ignore[attr-defined]
    threads = _config.num_threads(_config.current().num_threads)
    return {
        "fastxent": {"version": __version__, **_config.get_config()},
        "cython build": {"level": level, "levels here": ", ".join(_backends.available_levels()), **build},
        "backends": {name: _backend_state(name) for name in _config.BACKENDS if name != "auto"},
        "threads": {"used": threads, "processors": _config.count_processors()},
        "platform": {"machine": platform.machine(), "python": platform.python_version(), "numpy": np.__version__},
        "optional packages": {name: _installed(name) for name in OPTIONAL},
    }


def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, dict[str, Any]] | None:
    """Print the version, build flags, instruction set, backends (and why not), threads and dependencies.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Whether to print, or to return nested dicts, as ``numpy.show_config``.

    Returns
    -------
    dict or None

    Raises
    ------
    ValueError
        For another `mode`.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.show_config(mode="dicts")["backends"]["cython"]
    'available'
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode is {mode!r}, expected 'stdout' or 'dicts'")
    report = config_report()
    if mode == "dicts":
        return report
    for section, entries in report.items():
        print(f"{section}:")
        for name, value in entries.items():
            print(f"  {name:<14}{value}")
    return None
