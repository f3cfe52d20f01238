"""The only module that imports numba-cuda and what it launches with: whoever moves to its successor does that here."""

from typing import Any

from numba import cuda, types

SIMULATED = bool(cuda.config.ENABLE_CUDASIM)

if SIMULATED:
    missing: Any = None
    LaunchConfig = Stream = contexts = intrinsic = launch = libdevice = missing  # which the simulator lacks
else:
    from cuda.bindings import driver as contexts
    from cuda.core import LaunchConfig, Stream, launch
    from numba.cuda import libdevice
    from numba.cuda.extending import intrinsic

__all__ = [
    "SIMULATED", "LaunchConfig", "Stream", "contexts", "cuda", "intrinsic", "launch", "libdevice", "types",
]  # fmt: skip
