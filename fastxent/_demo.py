"""``fastxent demo``: softmax regression and a two-layer network learn handwritten digits."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split

import fastxent as fx

CLASSES = 10
HIDDEN_UNITS = 128
BATCH_SIZE = 32
LEARNING_RATE = 0.1
MOMENTUM = 0.9

Array = NDArray[np.floating]
Labels = NDArray[np.integer]


class Affine(NamedTuple):
    """The parameters of a layer ``x @ weight + bias``, or whatever has one entry for each: gradients, velocities."""

    weight: Array  # (inputs, outputs)
    bias: Array  # (outputs,)


class Epoch(NamedTuple):
    """How a model does after an epoch."""

    training_loss: float
    test_loss: float
    accuracy: float  # on the test images


class Samples(NamedTuple):
    """Images and their labels."""

    images: Array  # (N, pixels)
    labels: Labels  # (N,)


@dataclass
class Stopwatch:
    """Time spent in its ``with`` blocks."""

    seconds: float = 0.0
    laps: int = 0

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter() - self._start
        self.laps += 1


@dataclass
class Model:
    """A classifier in training."""

    name: str
    layers: list[Affine]
    velocities: list[Affine] = field(init=False)
    history: list[Epoch] = field(default_factory=list)
    training_time: Stopwatch = field(default_factory=Stopwatch)
    loss_time: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        self.velocities = [Affine(*map(np.zeros_like, layer)) for layer in self.layers]


def load_samples() -> tuple[Samples, Samples]:
    """Training and test images with pixels in [0, 1]; the same ones every time."""
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        (images / 16).astype(np.float32), labels, stratify=labels, random_state=0
    )
    return Samples(train_images, train_labels), Samples(test_images, test_labels)


def initial_layers(widths: Sequence[int], rng: np.random.Generator) -> list[Affine]:
    """Layers between the given widths: normal weights of variance 2 / inputs, as suits ReLU, and zero biases."""
    layers = []
    for inputs, outputs in pairwise(widths):
        weight = rng.standard_normal((inputs, outputs), np.float32) * math.sqrt(2 / inputs)
        layers.append(Affine(weight, np.zeros(outputs, np.float32)))
    return layers


def forward(layers: list[Affine], images: Array) -> list[Array]:
    """Inputs of every layer and, last, the logits."""
    values = [images]  # (N, inputs) of each layer
    for depth, (weight, bias) in enumerate(layers):
        if depth:
            np.maximum(values[-1], 0, out=values[-1])
        values.append(values[-1] @ weight + bias)
    return values


def loss_and_gradients(layers: list[Affine], batch: Samples, loss_time: Stopwatch) -> tuple[float, list[Affine]]:
    """Mean cross-entropy of a batch and its gradients, by backpropagation."""
    *inputs, logits = forward(layers, batch.images)
    with loss_time:
        # From here on the logits are not needed, so their gradient takes their place.
        loss, delta = fx.cross_entropy_with_grad(logits, batch.labels, out=logits)  # (N, classes)
    gradients = []
    for depth in reversed(range(len(layers))):
        gradients.append(Affine(inputs[depth].T @ delta, delta.sum(axis=0)))
        if depth:
            delta = delta @ layers[depth].weight.T * (inputs[depth] > 0)  # (N, inputs)
    return loss, gradients[::-1]


def descend(layers: list[Affine], velocities: list[Affine], gradients: list[Affine]) -> None:
    """Step of stochastic gradient descent with momentum, in place."""
    for layer, velocity, gradient in zip(layers, velocities, gradients, strict=True):
        for parameter, speed, slope in zip(layer, velocity, gradient, strict=True):
            speed *= MOMENTUM
            speed -= LEARNING_RATE * slope
            parameter += speed


def train_epoch(model: Model, training: Samples, rng: np.random.Generator) -> None:
    """Pass over the training images in random batches."""
    order = rng.permutation(len(training.labels))
    with model.training_time:
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            batch = Samples(training.images[rows], training.labels[rows])
            _, gradients = loss_and_gradients(model.layers, batch, model.loss_time)
            descend(model.layers, model.velocities, gradients)


def evaluate(model: Model, training: Samples, test: Samples) -> Epoch:
    """Losses and accuracy at the present parameters."""
    train_logits = forward(model.layers, training.images)[-1]
    test_logits = forward(model.layers, test.images)[-1]
    return Epoch(
        float(fx.cross_entropy(train_logits, training.labels)),
        float(fx.cross_entropy(test_logits, test.labels)),
        float(np.mean(test_logits.argmax(axis=1) == test.labels)),
    )


def train(models: list[Model], training: Samples, test: Samples, epochs: int, rng: np.random.Generator) -> None:
    """Train the models side by side and print how they do after every epoch."""
    console = Console(highlight=False, soft_wrap=True)
    console.print("       " + "".join(f"{model.name:^35}" for model in models))
    console.print("epoch  " + "  training loss  test loss  accuracy" * len(models))
    # A progress bar is for someone who watches; a file gets the lines alone.
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for number in progress.track(range(1, epochs + 1), description="Training"):
            for model in models:
                train_epoch(model, training, rng)
                model.history.append(evaluate(model, training, test))
            latest = [model.history[-1] for model in models]
            columns = (f"{epoch.training_loss:15.4f}{epoch.test_loss:11.4f}{epoch.accuracy:10.1%}" for epoch in latest)
            console.print(f"{number:5}  " + "".join(columns))


def report_time(models: list[Model]) -> str:
    """Table of the accuracy and of where the time went."""
    lines = [f"{'':<20}test accuracy  training  in the loss  per batch"]
    for model in models:
        training, loss = model.training_time.seconds, model.loss_time.seconds
        batch = loss / model.loss_time.laps * 1e6
        lines.append(
            f"{model.name:<20}{model.history[-1].accuracy:13.1%}{training:8.2f} s{loss / training:13.0%}{batch:8.0f} us"
        )
    return "\n".join(lines)


def report_torch(logits: Array, labels: Labels) -> str:
    """Lines on how close the loss and its gradient are to PyTorch's."""
    loss, grad = fx.cross_entropy_with_grad(logits, labels)
    ours = f"{'fastxent ' + fx.__version__:<20}{loss:.8f}\n"
    try:
        import torch
    except ImportError:
        return ours + "PyTorch             not installed, nothing to compare with"
    torch_logits = torch.from_numpy(logits).requires_grad_()
    torch_loss = torch.nn.functional.cross_entropy(torch_logits, torch.from_numpy(labels))
    (torch_grad,) = torch.autograd.grad(torch_loss, torch_logits)
    theirs = f"{'PyTorch ' + torch.__version__:<20}{torch_loss.item():.8f}\n"
    grad_difference = np.abs(grad - torch_grad.numpy()).max()
    difference = abs(float(loss) - torch_loss.item())
    return f"{ours}{theirs}difference          {difference:.1e}, in the gradient at most {grad_difference:.1e}"


def draw_losses(axes: Axes, models: list[Model]) -> None:
    """Training and test loss of every model by epoch."""
    for model, color in zip(models, ("tab:orange", "tab:blue"), strict=True):
        epochs = range(1, len(model.history) + 1)
        for losses, style in (("training", ":"), ("test", "-")):
            values = [getattr(epoch, f"{losses}_loss") for epoch in model.history]
            axes.plot(epochs, values, style, color=color, marker=".", label=f"{model.name}, {losses} images")
    axes.set(title="Learning handwritten digits", xlabel="epoch", ylabel="mean cross-entropy", yscale="log")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def draw_confusion(axes: Axes, model: Model, test: Samples) -> None:
    """Confusion matrix on the test images: counts in the cells, blue if right and red if wrong."""
    counts = confusion_matrix(test.labels, forward(model.layers, test.images)[-1].argmax(axis=1))  # (classes, classes)
    right = np.diag(np.diag(counts))
    wrong = counts - right
    # Each has its own scale, as mistakes are too few to be seen on that of the right answers; half the depth of colour
    # leaves the numbers legible.
    shade = right / right.max() - wrong / max(1, wrong.max())
    digits = range(CLASSES)
    axes.pcolormesh(digits, digits, shade, cmap="RdBu", vmin=-2, vmax=2, edgecolors="0.9", linewidth=0.5)
    for (label, prediction), count in np.ndenumerate(counts):
        if count:
            axes.text(prediction, label, str(count), ha="center", va="center")
    title = f"{model.name.capitalize()}: {right.sum()} of {counts.sum()} test images right"
    axes.set(title=title, xlabel="predicted digit", ylabel="true digit", xticks=digits, yticks=digits, aspect="equal")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def save_plot(path: Path, models: list[Model], best: Model, test: Samples) -> None:
    """Write the loss curves and the best model's confusion matrix."""
    figure = Figure(figsize=(12, 5.5), dpi=150, layout="constrained")
    losses, confusion = figure.subplots(1, 2)
    draw_losses(losses, models)
    draw_confusion(confusion, best, test)
    figure.savefig(path)


def run(epochs: int, seed: int, plot_path: Path) -> None:
    """Train both models on the digits, report, and save the plot."""
    training, test = load_samples()
    print(f"Handwritten digits: {len(training.labels)} training and {len(test.labels)} test images\n")
    pixels = training.images.shape[1]
    rng = np.random.default_rng(seed)
    models = [
        Model("softmax regression", initial_layers((pixels, CLASSES), rng)),
        Model("two-layer network", initial_layers((pixels, HIDDEN_UNITS, CLASSES), rng)),
    ]
    train(models, training, test, epochs, rng)
    print(f"\n{report_time(models)}\n")
    best = max(models, key=lambda model: model.history[-1].accuracy)
    print(f"Loss of the {best.name} on the test images")
    print(report_torch(forward(best.layers, test.images)[-1], test.labels))
    save_plot(plot_path, models, best, test)
    print(f"\nPlot: {plot_path}")
