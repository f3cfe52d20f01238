"""Why binary cross-entropy is for multi-label problems: softmax makes the labels compete.

A day can be warm, wet, both or neither. Softmax divides a total of 1 between the labels, so that a wetter day is less
warm; with binary cross-entropy each label has a probability of its own.
"""

import argparse

import numpy as np

import fastxent as fx

KINDS = {"cold and dry": (0, 0), "warm and dry": (1, 0), "cold and wet": (0, 1), "warm and wet": (1, 1)}
MARKERS = ("o", "#0072b2"), ("o", "#d55e00"), ("^", "#0072b2"), ("^", "#d55e00")
STEPS, LEARNING_RATE = 500, 5.0


def train(loss_with_grad, target):
    """Weights of a linear model by gradient descent."""
    weight = np.zeros((2, 2))
    for _ in range(STEPS):
        _, grad = loss_with_grad(days @ weight, target)
        weight -= LEARNING_RATE * days.T @ grad
    return weight


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--plot", metavar="FILE", help="save a picture here")
options = parser.parse_args()

rng = np.random.default_rng(0)
days = rng.uniform(-1, 1, (400, 2))  # temperature, humidity
labels = (days + rng.normal(scale=0.1, size=days.shape) > 0).astype(float)  # warm, wet
shares = labels / np.maximum(1, labels.sum(axis=1, keepdims=True))  # softmax cannot give two labels more than 1/2 each
models = {
    "softmax": (fx.softmax, train(fx.cross_entropy_with_grad, shares)),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), train(fx.binary_cross_entropy_with_logits_with_grad, labels)),
}
print(f"days with both labels right{'softmax':>12}{'sigmoid':>12}")
right = [((activation(days @ weight) > 0.5) == labels).all(axis=1) for activation, weight in models.values()]
for name, kind in KINDS.items():
    print(f"{name:27}" + "".join(f"{rows[(labels == kind).all(axis=1)].mean():12.0%}" for rows in right))
logits = days @ models["sigmoid"][1]
print(f"\nfx.multilabel_soft_margin_loss        {fx.multilabel_soft_margin_loss(logits, labels):.8f}")
print(f"fx.binary_cross_entropy_with_logits   {fx.binary_cross_entropy_with_logits(logits, labels):.8f}")

if options.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), dpi=150, layout="constrained")
    grid = np.moveaxis(np.mgrid[-1:1:101j, -1:1:101j], 0, -1)  # (temperatures, humidities, 2)
    for axes, (name, (activation, weight)) in zip(figure.subplots(1, 2, sharey=True), models.items(), strict=True):
        warm = activation(grid @ weight)[..., 0]
        shades = axes.contourf(grid[..., 0], grid[..., 1], warm, np.linspace(0, 1, 11), cmap="RdBu_r", alpha=0.5)
        for (kind, code), (marker, color) in zip(KINDS.items(), MARKERS, strict=True):
            axes.plot(*days[(labels == code).all(axis=1)].T, marker, color=color, markeredgecolor="white", label=kind)
        axes.set(title=name, xlabel="temperature", ylabel="humidity")
    figure.colorbar(shades, label="predicted probability of warm")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(options.plot)
