"""From logits to probabilities to cross-entropy, step by step.

A classifier gives each class a logit, any number at all. Softmax turns a sample's logits into probabilities, and the
loss is the surprise at its true class: minus the logarithm of that class's probability.
"""

import numpy as np

import fastxent as fx

CLASSES = ["cat", "dog", "bird"]
LOGITS = np.array([[3.0, 1.0, -2.0], [0.5, 0.5, 0.5], [-1.0, 4.0, 0.0]])  # (samples, classes)
TARGET = np.array([0, 2, 0])


def softmax(logits):
    """Exponentials, divided by their sum."""
    exponentials = np.exp(logits)  # positive, in the same order
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def surprisal_of(probabilities, target):
    """Minus the logarithm of each sample's probability of its true class."""
    return -np.log(probabilities[np.arange(len(target)), target])


probabilities = softmax(LOGITS)
losses = surprisal_of(probabilities, TARGET)
names = "".join(f"{name:>7}" for name in CLASSES)
print(f"{'':7}{'logits':^21}   {'probabilities':^21}\ntruth  {names}   {names}   loss")
for logits, row, label, surprisal in zip(LOGITS, probabilities, TARGET, losses, strict=True):
    numbers = "".join(f"{logit:7.1f}" for logit in logits) + "   " + "".join(f"{share:7.4f}" for share in row)
    print(f"{CLASSES[label]:7}{numbers}{surprisal:7.4f}")

grad = (probabilities - np.eye(len(CLASSES))[TARGET]) / len(TARGET)
loss, fused_grad = fx.cross_entropy_with_grad(LOGITS, TARGET)
print(f"\nmean loss, step by step     {losses.mean():.12f}")
print(f"mean loss, fx.cross_entropy {loss:.12f}")
print(f"gradient, (probabilities - one-hot) / samples: differs by {np.abs(grad - fused_grad).max():.0e}")

with np.errstate(all="ignore"):  # exp(3000) is inf, and inf / inf is nan
    naive = surprisal_of(softmax(1000 * LOGITS), TARGET).mean()
print("\nlogits 1000 times as large")
print(f"mean loss, step by step     {naive}")
print(f"mean loss, fx.cross_entropy {fx.cross_entropy(1000 * LOGITS, TARGET):.4f}")
