"""Which module runs the kernels, and what every such module offers."""

import importlib.util
import os
import platform
from collections.abc import Callable, Mapping
from functools import cache
from types import ModuleType
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from . import _config

Array = NDArray[Any]


class Kernels(Protocol):
    """The kernels of a backend: the narrow waist between checked problems and the machine.

    Arrays are checked before they come here. `x` and its like are (outer, classes, inner) views with any strides, or
    (outer, classes) for inner = 1; in float32, float64, int16 (the bits of float16) or uint16 (the bits of bfloat16).
    Everything is computed in float64 if `x` is float64, else in float32. Sample s = outer index * inner + inner index.
    Labels, `loss` and `scale` are contiguous (samples,), `weight` is contiguous (classes,), and the last two may have
    length 1, which stands for a constant; they and `loss` have the computing type. `out` and `grad` may be `x` itself.
    """

    def logsumexp(self, x: Array, num_threads: int, out: Array) -> None:
        """out_s = log sum_j exp(x_sj); `out` is (samples,)."""

    def softmax(self, x: Array, scale: Array, num_threads: int, out: Array) -> None:
        """out_sj = scale_s p_sj with p = exp(x - logsumexp(x))."""

    def log_softmax(self, x: Array, num_threads: int, out: Array) -> None:
        """out_sj = x_sj - logsumexp_s(x)."""

    def softmax_vjp(self, grad_output: Array, probs: Array, num_threads: int, out: Array) -> None:
        """out_sj = p_sj (g_sj - sum_k g_sk p_sk)."""

    def log_softmax_vjp(self, grad_output: Array, log_probs: Array, num_threads: int, out: Array) -> None:
        """out_sj = g_sj - exp(log_p_sj) sum_k g_sk."""

    def cross_entropy(
        self, x: Array, target: Array, weight: Array, scale: Array, label_smoothing: float, z_loss: float,
        ignore_index: int, factor: float, num_threads: int, loss: Array | None, grad: Array | None,
    ) -> float:  # fmt: skip
        """loss_s = sum_j q_sj (lse_s - x_sj) + z_loss lse_s^2, and factor scale_s times its gradient.

        q_sj = weight_j ((1 - label_smoothing) t_sj + label_smoothing / classes), where t is `target`: probabilities
        like `x`, or labels, which stand for 1 at the label and 0 elsewhere. An ignored label gives loss and gradient 0.
        Without `loss`, returns sum_s scale_s loss_s as `weighted_sum` would.
        """

    def nll(
        self, x: Array, target: Array, weight: Array, scale: Array, ignore_index: int, factor: float,
        num_threads: int, loss: Array | None, grad: Array | None,
    ) -> float:  # fmt: skip
        """loss_s = -sum_j weight_j t_sj x_sj, and factor scale_s times its gradient."""

    def elementwise(
        self, name: str, x: Array, y: Array, weight: Array, pos_weight: Array, scale: Array, factor: float,
        num_threads: int, loss: Array | None, grad: Array | None,
    ) -> float:  # fmt: skip
        """loss = weight * f(x, y), summed where `loss` has stride 0; grad = factor * scale * weight * df/dx.

        All arrays are views of one 3-D shape, with stride 0 where they are broadcast. `x`, `y`, `grad`: float32,
        float64, int16 or uint16 (bits of the 16-bit floats); `weight`, `pos_weight`, `scale`, `loss`: the computing
        type. `grad` may be `x` itself. Without `loss`, returns the sum of everything. `loss` has stride 0 on no axis,
        on the middle one or on the last one. By `name`, f is

        - "bce_with_logits": (1 - y) softplus(x) + pos_weight y softplus(-x), the only one to read `pos_weight`
        - "bce": -y max(log x, -100) - (1 - y) max(log(1 - x), -100), with df/dx = (x - y) / max(x (1 - x), 1e-12)
        - "kl_div": y (log y - x), and "kl_div_log": exp(y) (y - x)
        - "entropy": -x log x, "probs_cross_entropy": -x log y, and "kl_divergence": x log(x / y)
        - "outside": 0 where 0 <= x <= 1, else 1

        where a factor of 0 before a logarithm makes the product 0. The last four have no gradient.
        """

    def check_target(
        self, target: Array, weight: Array, sample_weight: Array, num_classes: int, ignore_index: int,
        num_threads: int,
    ) -> tuple[int, float]:  # fmt: skip
        """First sample whose label is neither ignored nor in [0, num_classes), or -1; sum of the counted weights."""

    def weighted_sum(self, values: Array, weight: Array, num_threads: int) -> float:
        """sum_s values_s weight_s, in double with compensation; a value of 0 counts 0 even against inf."""


# Instruction-set level -> its module; the best comes last. x86-64 has three, other machines one.
LEVELS = {"v2": "_kernels", "v3": "_kernels_v3", "v4": "_kernels_v4"}
BASELINE = {"baseline": "_kernels"}


def _cpu_features() -> Mapping[str, bool]:
    from numpy._core._multiarray_umath import __cpu_features__

    return cast(Mapping[str, bool], __cpu_features__)


def available_levels() -> dict[str, str]:
    """The levels that this processor runs and this installation has, the best last."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return BASELINE
    features = _cpu_features()
    v3 = all(features.get(name) for name in ("AVX2", "FMA3", "F16C"))
    runs = {"v2": True, "v3": v3 and features.get("X86_V3", True), "v4": v3 and features.get("AVX512_SKX", False)}
    return {level: module for level, module in LEVELS.items() if runs[level] and _is_installed(module)}


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(f"{__package__}.{module}") is not None


def choose_level(environ: Mapping[str, str] = os.environ) -> str:
    """The level to use: FASTXENT_ISA, else the best."""
    levels = available_levels()
    wanted = environ.get("FASTXENT_ISA") or list(levels)[-1]
    if wanted not in levels:
        raise RuntimeError(f"FASTXENT_ISA is {wanted!r}, expected one of {', '.join(levels)} on this machine")
    return wanted


def _load_cython() -> ModuleType:
    return importlib.import_module(f"{__package__}.{available_levels()[choose_level()]}")


def _load_numba() -> ModuleType:
    try:
        module = importlib.import_module(f"{__package__}._numba")
    except ImportError as error:
        raise RuntimeError(f"backend 'numba' needs Numba: pip install 'fastxent[numba]' ({error})") from error
    if importlib.import_module("numba.core.config").DISABLE_JIT:
        raise RuntimeError("backend 'numba' has compiled kernels only, which NUMBA_DISABLE_JIT rules out")
    return module


def _load_cuda() -> ModuleType:
    try:
        module = importlib.import_module(f"{__package__}._cuda")
    except ImportError as error:
        raise RuntimeError(f"backend 'cuda' needs numba-cuda: pip install 'fastxent[cuda]' ({error})") from error
    missing = module.what_is_missing()
    if missing:
        raise RuntimeError(f"backend 'cuda' {missing}")
    return module


_LOADERS: dict[str, Callable[[], ModuleType]] = {"cython": _load_cython, "numba": _load_numba, "cuda": _load_cuda}


@cache
def load(backend: str) -> Kernels:
    """The kernels of one backend.

    Raises
    ------
    RuntimeError
        If it cannot run here, saying what is missing.
    """
    return cast(Kernels, _LOADERS["cython" if backend == "auto" else backend]())


def in_force() -> tuple[Kernels, int]:
    """The kernels of the backend in force, and how many threads they may use."""
    backend, wanted, _ = _config.current()
    return load(backend), _config.num_threads(wanted)
