"""One call on every build of the kernels: they agree with `reference.py` and with each other, and touch nothing else.

An error is the same everywhere, and leaves every array as it was.
"""

import re
from contextlib import contextmanager
from functools import cache
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import ml_dtypes
import numpy as np
from cases import LOSS_DTYPE, TOLERANCES, exact

from fastxent import _backends, reference

ALLOWED = (TypeError, ValueError, IndexError)
SEVERAL = 1 << 15  # bytes of an array, from which on a call may have several tasks
MOST_ULPS = 8  # of a gradient, in units of the larger of the two terms that may cancel
HUGE = 1e9  # from here on products may overflow float32
OF_EXPONENTIALS, MOST_EXPONENT = ("log_softmax_vjp", "kl_div"), 80  # exponentials of what need not be below 0


class Outcome(NamedTuple):
    """What a call gave: arrays, or an error."""

    results: tuple[np.ndarray, ...]
    error: tuple[type[Exception], str] | None


@contextmanager
def running(kernels, threads=1):
    """Public functions run these kernels."""
    before, _backends.in_force = _backends.in_force, lambda: (kernels, threads)
    try:
        yield
    finally:
        _backends.in_force = before


def check(call, backends):
    """Fail unless all builds of the kernels, by their names, do with the call what is right."""
    outcomes = {name: outcome(call, kernels) for name, kernels in backends.items()}
    first = next(iter(outcomes.values()))
    assert bool(first.error) == bool(call.mistake), f"{call.mistake or 'nothing'} is wrong, but: {first}"
    for name, got in outcomes.items():
        assert got.error == first.error, f"{name} does not fail as others: {got}, {first}"
    if first.error:
        return
    expected, allowed, lenient = reference_of(call, first.results)
    divisor = list(call.arguments.values())[call.loss.main].size
    for name, got in outcomes.items():
        for a, b, wanted, slack in zip(got.results, first.results, expected, allowed, strict=True):
            assert a.dtype == b.dtype
            assert_agree(a, wanted, f"{name} is not as the reference", slack, lenient, divisor)
            other = np.where(np.isfinite(exact(b)) | (not lenient), exact(b), np.nan)
            assert_agree(a, other, f"{name} is not as others", slack, lenient)
    if call.memory[0].size >= SEVERAL:
        for name, kernels in backends.items():
            again = outcome(call, kernels, threads=3)
            assert [a.tobytes() for a in again.results] == [a.tobytes() for a in outcomes[name].results], name


def outcome(call, kernels, threads=1):
    """Run a call, see that it wrote nothing but its result, and put that back."""
    before = [memory.copy() for memory in call.memory]
    out = call.arguments.get("out")
    was = None if out is None else out.copy()
    error, results = None, ()
    try:
        with running(kernels, threads):
            results = call.function(**call.arguments)
    except ALLOWED as raised:
        error = type(raised), str(raised)
    else:
        results = results if isinstance(results, tuple) else (results,)
        assert out is None or results[-1] is out
        results = tuple(np.array(result) for result in results)
        if out is not None:
            out[...] = was
    assert error is None or names_one(signature(call.function).parameters, error[1]), f"names no argument: {error}"
    for memory, old in zip(call.memory, before, strict=True):
        assert memory.tobytes() == old.tobytes(), "memory beside the result was written"
    return Outcome(results, error)


def names_one(names, message):
    return re.search(rf"\b({'|'.join(names)})\b", message)


# --- the reference -----------------------------------------------------------------------------------------------


def reference_of(call, results):
    """What is expected, by how much results may differ from it, and whether to be lenient about nan and infinity."""
    given = without_out(call)
    x = list(given.values())[call.loss.main]
    if 0 in x.shape:  # what the sum of nothing is, test_semantics.py says; here, that all give the same
        return [exact(result) for result in results], [0.0] * len(results), False
    compute = LOSS_DTYPE.get(x.dtype.newbyteorder("="), np.dtype(np.float64))
    with np.errstate(all="ignore"):
        plain = {name: as_computed(value, compute) for name, value in given.items()}
        expected = run_reference(call, plain)
        allowed = allowances(call, plain, compute, expected)
    beyond = compute == np.float64 and any(is_beyond(value) for value in plain.values())
    if beyond or (given.get("reduction") == "mean" and has_subnormal_weights(plain, compute)):
        return expected, [np.inf] * len(results), True
    nothing_counts = given.get("reduction") == "mean" and not np.isfinite(expected[0])  # nan, or divided by 0
    return expected, allowed, is_lenient(call, plain, compute) or nothing_counts


def is_beyond(value):
    """Whether the reference, in float64 itself, may overflow on the way or round by more than the result."""
    return isinstance(value, np.ndarray) and bool((np.abs(value[np.isfinite(value)]) >= 2.0**1000).any())


def has_subnormal_weights(plain, compute):
    """Whether weighted losses may round to 0 before a mean divides by weights that are as small, as in PyTorch."""
    weights = [np.abs(plain[name]) for name in ("weight", "sample_weight") if plain.get(name) is not None]
    return any(((size > 0) & (size < np.finfo(compute).tiny)).any() for size in weights)


def allowances(call, plain, compute, expected):
    """What rounding errors of the inputs would change, and of the sums of the reference."""
    most, finer = [np.zeros(np.shape(result)) for result in expected], run_reference(call, plain, finer_reference())
    smoothed = "label_smoothing" in call.loss.options
    dense = smoothed and ("label_smoothing" in plain or not call.loss.takes_labels)
    for seed in range(3):
        moved = {name: nudged(value, compute, seed) for name, value in plain.items()}
        if smoothed:  # p - t cancels where t is dense, and 1 - p in the reference
            moved["label_smoothing"] = plain.get("label_smoothing", 0.0) + (
                2 * np.finfo(compute).eps if dense else 4e-16
            )
        for change, result, other in zip(most, finer, run_reference(call, moved, finer_reference()), strict=True):
            difference = np.abs(other - result).astype(np.float64)
            np.maximum(change, np.nan_to_num(difference, posinf=0), out=change)
    length = max(np.shape(list(plain.values())[call.loss.main]))
    growth = 4 + length**0.5  # of random errors; those of equal numbers, which NumPy adds one by one, are all alike
    allowed = [growth * change + length * 2.0**-53 * np.abs(r) for change, r in zip(most, expected, strict=True)]
    if dense and len(allowed) > 1:
        share = np.abs(target_part(call, plain))
        allowed[1] += MOST_ULPS * np.finfo(compute).eps * np.nan_to_num(share, posinf=0)
    return allowed


def target_part(call, plain):
    """What targets add to the gradient, to be cancelled: all of it for classes beside one that has all probability."""
    shape = np.shape(plain["logits"])
    classes = np.indices(shape)[plain.get("axis", call.loss.default_axis(len(shape)))]
    beside = [run_reference(call, plain | {"logits": np.where(classes == k, 1e3, 0.0)})[1] for k in (0, 1)]
    return np.where(classes == 0, beside[1], beside[0])


def without_out(call):
    return {name: value for name, value in call.arguments.items() if name != "out"}


@cache
def finer_reference():
    """The reference in long double: what float64 makes of a small change may be any of the numbers nearby, or none."""
    finer = ModuleType("reference")
    exec(Path(reference.__file__).read_text().replace("np.float64", "np.longdouble"), vars(finer))
    return finer


def run_reference(call, given, module=reference):
    """What the reference gives; where it overflows although its result need not, of smaller numbers if it is linear."""
    function = getattr(module, call.loss.name)
    result = function(**given)
    if call.loss.name.endswith("_vjp"):
        smaller = function(**given | {"grad_output": given["grad_output"] * 2.0**-64})
        result = np.where(np.isinf(result), smaller * 2.0**64, result)
    if call.loss.with_grad is None:
        return (result,)
    return result if call.function is call.loss.with_grad else result[:1]


def as_computed(value, compute):
    """Numbers as the kernels see them, in float64."""
    if not isinstance(value, np.ndarray) or value.dtype.kind in "iub":
        return (
            exact(value) if isinstance(value, np.ndarray) else float(value) if isinstance(value, np.floating) else value
        )
    return value.astype(compute).astype(np.float64)


def is_lenient(call, given, compute):
    """Whether products of the arguments may overflow, or be 0 times infinity; else that is a matter of logits alone.

    The inverse of a sum of weights is one of them.
    """
    numbers = {name: exact(value) for name, value in given.items() if isinstance(value, np.ndarray)}
    sizes = {n: np.abs(v) for n, v in numbers.items() if v.dtype.kind == "f" or not call.loss.takes_labels}
    main = list(given)[call.loss.main]
    finite = {name: size[np.isfinite(size)] for name, size in sizes.items()}
    huge = MOST_EXPONENT if call.loss.name in OF_EXPONENTIALS else HUGE
    if any((size >= huge).any() for size in finite.values()):
        return True
    for name, kind in (("weight", compute), ("sample_weight", np.float64)):
        if ((sizes.get(name, 0) > 0) & (sizes.get(name, 0) < 1 / np.finfo(kind).max)).any():
            return True
    infinite = [name for name, size in sizes.items() if size.size > finite[name].size]
    return infinite != [main] * len(infinite) or (bool(infinite) and any((size == 0).any() for size in sizes.values()))


def nudged(value, compute, seed):
    """Arrays of floats, each number moved by a rounding error, towards 0: all alike, or each by its own."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return value
    ways = np.random.default_rng(seed).uniform(-4, 0, value.shape) if seed else -2
    info, size = np.finfo(compute), np.abs(value)
    return value.astype(np.longdouble) + ways * (info.eps * value + info.tiny * ((size > 0) & (size < 1e-30)))


def assert_agree(got, expected, what, slack=0.0, lenient=False, divisor=1):
    """Within the tolerance of the type, relative to the largest entry, and what inputs that are rounded allow.

    To be lenient is to let numbers be infinite or nan on one side: those that overflow on the way to a result. That the
    reference overflows alone takes a float64 which is at the end of its range before a mean divides it.
    """
    dtype = got.dtype.newbyteorder("=")
    info, rtol = ml_dtypes.finfo(dtype), TOLERANCES[dtype]
    limit, underflow = float(info.max), float(info.smallest_subnormal) + float(np.finfo(LOSS_DTYPE[dtype]).tiny)
    got, expected = exact(got), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, what
    with np.errstate(all="ignore"):
        size = np.abs(expected)
        largest = np.max(np.where(size < limit, size, 0), initial=0)
        allowed = rtol * largest + rtol * size + np.nan_to_num(slack) + underflow
        near = np.abs(got.clip(-limit, limit) - expected.clip(-limit, limit)) <= allowed
        good = np.where(np.isnan(expected), np.isnan(got), near)
        good &= ~(np.isinf(got) & (size < limit * (1 - 2 * rtol)))
        good &= ~(np.isinf(expected) & ~np.isinf(got))
        ends = np.abs(got) * divisor >= limit / 2 if dtype == np.float64 else False
        good |= lenient & (~np.isfinite(got) | np.isnan(expected) | (ends & (expected == np.copysign(np.inf, got))))
        good |= np.isinf(slack)
    assert good.all(), (
        f"{what} at {np.argwhere(~good)[:5].tolist()}: {got[~good][:5]}, expected {expected[~good][:5]} in {dtype}"
    )
