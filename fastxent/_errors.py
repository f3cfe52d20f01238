"""What is wrong with an argument, in words, for arrays of the host and of a device alike."""

from typing import Any

Shape = tuple[int, ...]


def no_classes(name: str, shape: Shape, axis: int | None) -> ValueError:
    """Of logits without a class axis, or with an empty one."""
    if axis is None:
        return ValueError(f"{name} has shape {shape}, expected at least a class axis")
    return ValueError(f"{name} has shape {shape}, expected at least one class on axis {axis}")


def not_broadcast(name: str, shape: Shape, expected: Shape) -> ValueError:
    """Of a weight that does not fit."""
    return ValueError(f"{name} has shape {shape}, expected one that broadcasts to {expected}")


def bad_class_weight(shape: Shape, classes: int) -> ValueError:
    """Of weights that are not one for each class."""
    return ValueError(f"weight has shape {shape}, expected one weight for each class, ({classes},)")


def different_shapes(name: str, shape: Shape, other: str, expected: Shape) -> ValueError:
    """Of an array that has to have the shape of another one."""
    return ValueError(f"{name} has shape {shape}, expected that of {other}, {expected}")


def bad_grad_of_batch(shape: Shape, batch: Shape, kept: Shape) -> ValueError:
    """Of a gradient that is not one for each sample."""
    return ValueError(f"grad_output has shape {shape}, expected {batch} or {kept}")


def no_scalar(shape: Shape, reduction: str) -> ValueError:
    """Of a gradient flowing into a reduced loss."""
    return ValueError(f"grad_output has shape {shape}, expected a scalar for reduction={reduction!r}")


def ignored_probs(ignore_index: int) -> ValueError:
    """Of class probabilities with a class to ignore."""
    return ValueError(
        f"ignore_index is {ignore_index}, expected a negative number (nothing is ignored) for class probabilities"
    )


def bad_label(where: Shape, label: int, classes: int, ignore_index: int) -> IndexError:
    """Of a class index out of range."""
    return IndexError(
        f"target{list(where) if where else ''} is {label}, expected a class index in [0, {classes}) "
        f"or ignore_index={ignore_index}"
    )


def bad_probability(name: str, where: Shape, value: Any) -> ValueError:
    """Of a number outside [0, 1]."""
    return ValueError(f"{name}{list(where) if where else ''} is {value!s}, expected a probability in [0, 1]")


def check_target_shape(dtype: Any, kind: str, shape: Shape, batch: Shape, logits: Shape, axis: int, name: str) -> bool:
    """Whether a target of this dtype, "i", "u" or "f" by its kind, holds class indices; else class probabilities."""
    if kind in "iu":
        if shape != batch:
            raise ValueError(
                f"target has shape {shape}, expected class indices of shape {batch} for {name} of "
                f"shape {logits} with class axis {axis} (class probabilities need a floating type)"
            )
        return True
    if kind != "f":
        raise TypeError(f"target has dtype {dtype}, expected integers (class indices) or floats (probabilities)")
    if shape == batch != logits:
        raise TypeError(f"target has dtype {dtype}, expected integers for class indices of shape {shape}")
    if shape != logits:
        raise ValueError(f"target has shape {shape}, expected {logits} for class probabilities")
    return False
