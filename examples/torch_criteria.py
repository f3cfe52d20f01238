"""Code written for the criteria of torch.nn runs with the import changed, on arrays in place of tensors.

Only backward() has no counterpart, since NumPy records no operations: with_grad gives the gradient with the loss.
"""

import numpy as np

from fastxent import BCEWithLogitsLoss, CrossEntropyLoss  # was: from torch.nn import ...

SAMPLES, BATCH_SIZE, EPOCHS, LEARNING_RATE = 2000, 50, 20, 0.3


def train(weight, criterion, batches):
    """Stochastic gradient descent; was: loss = criterion(logits, target), loss.backward() and optimizer.step()."""
    for _ in range(EPOCHS):
        for x, target in batches:
            logits = x @ weight
            _, grad = criterion.with_grad(logits, target, out=logits)  # (samples, classes)
            weight -= LEARNING_RATE * x.T @ grad


def validate(weight, criterion, batches):
    """The mean loss of a batch, by the same code for arrays and tensors."""
    total = 0.0
    for x, target in batches:
        total += criterion(x @ weight, target).item()
    return total / len(batches)


rng = np.random.default_rng(0)
labels = rng.choice(3, size=SAMPLES, p=[0.45, 0.45, 0.1])  # the last class is rare
centres = np.array([[0.0, 2.0], [-2.0, -1.0], [1.0, -0.5]])
x = np.column_stack([centres[labels] + rng.normal(size=(SAMPLES, 2)), np.ones(SAMPLES)])
starts = np.split(np.arange(0, SAMPLES, BATCH_SIZE), 2)  # of the batches for training and for validation

print(f"{'loss before':>11}{'after':>8}{'right':>8}{'rare class':>12}   criterion")
for criterion, target in (
    (CrossEntropyLoss(), labels),
    (CrossEntropyLoss(label_smoothing=0.1), labels),
    (CrossEntropyLoss(weight=[1, 1, 5]), labels),
    (BCEWithLogitsLoss(), np.eye(3)[labels]),
):
    training, validation = ([(x[i : i + BATCH_SIZE], target[i : i + BATCH_SIZE]) for i in half] for half in starts)
    weight = np.zeros((x.shape[1], 3))
    before = validate(weight, criterion, validation)
    train(weight, criterion, training)
    after = validate(weight, criterion, validation)
    right = ((x @ weight).argmax(axis=1) == labels)[SAMPLES // 2 :]
    rare = labels[SAMPLES // 2 :] == 2
    print(f"{before:11.4f}{after:8.4f}{right.mean():8.1%}{right[rare].mean():12.1%}   {criterion}")
