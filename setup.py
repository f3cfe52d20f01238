"""Build the compiled code: one extension module per instruction-set level from each of `KERNELS`, and `HOST`."""

import platform
import sys

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup

# Safe with nan and inf: neither errno nor the floating-point exception flags are read, and a fused multiply-add only
# rounds once less. Nothing here lets the compiler reorder sums or assume finite numbers. A loop that calls a function
# is no SIMD code, hence the limit for inlining; one that is taken for a copy keeps its numbers in memory, for memcpy.
GCC_FLAGS = [
    "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-finline-limit=1000",
    "-fno-tree-loop-distribute-patterns",
]  # fmt: skip

# module -> what it includes
KERNELS = {
    "_kernels": [
        "_team.h", "_simd.h", "_numbers.pxi", "_blocks.pxi", "_watch.pxi", "_job.pxi", "_gradient.pxi", "_rows.pxi",
        "_split.pxi", "_tiles.pxi", "_lanes.pxi", "_short_rows.pxi", "_lane_operations.pxi", "_few_classes.pxi",
        "_tasks.pxi", "_terms.pxi", "_elementwise.pxi",
    ],
    "_limits": ["_team.h", "_simd.h", "_numbers.pxi", "_blocks.pxi"],
}  # fmt: skip

# What a call goes through before and after its kernel. Compiled as it is, a small call takes a quarter less time.
HOST = [
    "_backends", "_config", "_cuda_driver", "_cuda_launch", "_cuda_run", "_device", "_device_elementwise",
    "_device_problem", "_elementwise", "_numba", "_options", "_problem", "_reduction", "binary", "distributions",
    "losses", "softmax",
]  # fmt: skip

# Ending of a module's name -> flags of its level. `_backends.py` picks the best one that the processor can run.
LEVELS = {
    "x86_64": {
        "": ["-march=x86-64-v2"],
        "_v3": ["-march=x86-64-v3"],
        # Clang prefers 256-bit vectors on x86-64-v4 unless told.
        "_v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    },
}


# Here rather than at the head of `_kernels.pyx`, where the modules that include it would not see them.
SHARED = {"language_level": 3, "binding": True, "freethreading_compatible": True}  # binding: functions have signatures
DIRECTIVES = SHARED | {"boundscheck": False, "wraparound": False, "cdivision": True, "initializedcheck": False}
HOST_DIRECTIVES = SHARED | {"annotation_typing": False}  # an int of Python's is not one of C's


def extensions() -> list[Extension]:
    machine = platform.machine().lower().replace("amd64", "x86_64")
    if sys.platform == "win32":  # MSVC: one level, whose vector width is the x86-64 baseline
        levels, flags, threads = {"": []}, ["/O2"], []  # and one thread
    else:
        levels, flags = LEVELS.get(machine, {"": []}), GCC_FLAGS
        threads = ["-pthread"]
    return [
        Extension(
            f"fastxent.{module}{ending}",
            [f"fastxent/{module}{ending}.pyx"],
            include_dirs=[np.get_include()],
            define_macros=[
                ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
                ("FASTXENT_FLAGS", f'"{" ".join([*flags, *level, *threads])}"'),
            ],
            extra_compile_args=[*flags, *level, *threads],
            extra_link_args=threads,
            depends=[f"fastxent/{source}" for source in (f"{module}.pyx", *included)],
        )
        for module, included in KERNELS.items()
        for ending, level in levels.items()
    ]


def host_extensions() -> list[Extension]:
    flags = [] if sys.platform == "win32" else ["-O2", "-g0"]
    return [Extension(f"fastxent.{name}", [f"fastxent/{name}.py"], extra_compile_args=flags) for name in HOST]


setup(
    ext_modules=[
        *cythonize(extensions(), include_path=["fastxent"], compiler_directives=DIRECTIVES),
        *cythonize(host_extensions(), compiler_directives=HOST_DIRECTIVES),
    ],
    options={"build_ext": {"parallel": True}},
)
