"""Per-pixel cross-entropy of (N, C, H, W) logits: a photograph is segmented from a few labelled boxes.

Pixels outside the boxes are ignored by the loss. Softmax regression learns the classes' colours and places inside.
"""

import argparse

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_image

import fastxent as fx

BOXES = {  # (first row, last row, first column, last column)
    "sky and lake": [(5, 60, 185, 305), (5, 45, 5, 55), (110, 145, 210, 265)],
    "tower": [(38, 50, 98, 110), (65, 105, 60, 140), (120, 160, 65, 145), (178, 194, 115, 150)],
    "trees": [(95, 130, 2, 16), (178, 208, 5, 75), (175, 208, 180, 315), (110, 150, 300, 318)],
}
COLORS = np.array([[86, 180, 233], [213, 94, 0], [0, 158, 115]]) / 255
UNLABELLED, STEPS, LEARNING_RATE = 255, 150, 5.0

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--plot", metavar="FILE", help="save a picture here")
options = parser.parse_args()

picture = load_sample_image("china.jpg")[::2, ::2] / 255  # (H, W, 3)
target = np.full((1, *picture.shape[:2]), UNLABELLED)  # (N, H, W)
for label, boxes in enumerate(BOXES.values()):
    for top, bottom, left, right in boxes:
        target[0, top : bottom + 1, left : right + 1] = label
labelled = target != UNLABELLED

places = np.meshgrid(*(np.linspace(-1, 1, size) for size in picture.shape[:2]), indexing="ij")
around = gaussian_filter(picture, (5, 5, 0))
linear = np.dstack([np.ones_like(places[0]), 2 * picture - 1, 2 * around - 1, *places]).reshape(-1, 9).T
first, second = np.triu_indices(len(linear))
features = linear[first] * linear[second]  # (F, H W), the linear ones among them: products with 1
weight = np.zeros((len(BOXES), len(features)))
print(f"{target.size} pixels, {labelled.mean():.0%} of them labelled\n\nstep    loss  labelled pixels right")
for step in range(STEPS + 1):
    logits = (weight @ features).reshape(1, len(BOXES), *picture.shape[:2])
    loss, grad = fx.cross_entropy_with_grad(logits, target, ignore_index=UNLABELLED)
    prediction = logits.argmax(axis=1)  # (N, H, W)
    if step % 30 == 0:
        print(f"{step:4}{loss:8.4f}{np.mean(prediction[labelled] == target[labelled]):23.1%}")
    weight -= LEARNING_RATE * grad.reshape(len(BOXES), -1) @ features.T

if options.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.5), dpi=150, layout="constrained")
    faded = np.where(labelled[0, ..., None], COLORS[target[0] % len(COLORS)], 0.5 + picture / 2)
    panels = {"Picture": picture, "Labelled pixels": faded, "Predicted classes": COLORS[prediction[0]]}
    for axes, (title, pixels) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axes.imshow(pixels)
        axes.set(title=title, xticks=[], yticks=[])
    for name, color in zip(BOXES, COLORS, strict=True):
        axes.plot([], [], "s", color=color, markersize=10, label=name)
    figure.legend(loc="outside lower center", ncols=len(BOXES), frameon=False)
    figure.savefig(options.plot)
