"""The only module that imports numba-cuda: whoever moves to its successor does that here."""

from numba import cuda, types

SIMULATED = bool(cuda.config.ENABLE_CUDASIM)

if SIMULATED:
    libdevice = intrinsic = None  # which the simulator lacks
else:
    from numba.cuda import libdevice
    from numba.cuda.extending import intrinsic

__all__ = ["SIMULATED", "cuda", "intrinsic", "libdevice", "types"]
