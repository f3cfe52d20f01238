"""Options that are single values, checked; those that are arrays are checked in `_problem.py`."""

import math
import operator
import sys
from typing import Any

import numpy as np


def finite_number(name: str, value: Any, low: float, high: float) -> float:
    """A finite float in [low, high]."""
    if type(value) is float and low <= value <= high and value != math.inf:
        return value
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} is {value!r}, expected a number")
    if isinstance(value, np.floating):
        value = float(value)  # the largest float, cast to float16 for a comparison, would overflow
    if not (low <= value <= high and value <= sys.float_info.max):
        bounds = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f">= {low:g}"
        raise ValueError(f"{name} is {value!r}, expected a finite number {bounds}")
    return float(value)


def integer(name: str, value: Any) -> int:
    """An int that fits in 64 bits."""
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}, expected an integer")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, expected an integer") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} is {number}, expected a 64-bit integer")
    return number


def flag(name: str, value: Any) -> bool:
    """A bool, or 0 or another integer as one; the string "False" would be taken for true."""
    if not isinstance(value, (int, np.bool_)):
        raise TypeError(f"{name} is {value!r}, expected True or False")
    return bool(value)


def as_axis(axis: Any) -> int:
    """An axis as an int, which need not be one of the array's."""
    number = integer("axis", axis)
    if abs(number) > 64:  # more than an array can have, and soon more than an int of C
        raise np.exceptions.AxisError(f"axis is {number}, which is out of bounds")
    return number
