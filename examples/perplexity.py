"""Perplexity of next-token logits (batch, time, vocab): a bigram model learns the Zen of Python.

Perplexity is the exponential of the mean cross-entropy: among how many equally likely tokens the model has to choose.
"""

import argparse
import codecs
import contextlib

import numpy as np

import fastxent as fx

with contextlib.redirect_stdout(None):  # the module prints its text
    import this

PADDING, STEPS, LEARNING_RATE = -1, 500, 20.0
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--plot", metavar="FILE", help="save a picture here")
options = parser.parse_args()

lines = [f"\n{line}\n" for line in codecs.decode(this.s, "rot13").splitlines() if line]
vocab = sorted(set("".join(lines)))
text = np.full((len(lines), max(map(len, lines))), PADDING)
for row, line in zip(text, lines, strict=True):
    row[: len(line)] = [vocab.index(character) for character in line]
inputs, target = text[:, :-1], text[:, 1:]  # (batch, time); the input does not matter where the target is padding
rules = {"axis": -1, "ignore_index": PADDING}

pairs = np.zeros((len(vocab), len(vocab)))
np.add.at(pairs, (inputs[target != PADDING], target[target != PADDING]), 1)
everywhere = np.broadcast_to(np.log(pairs.sum(axis=0)), (*inputs.shape, len(vocab)))  # the same logits at each place
single = np.exp(fx.cross_entropy(everywhere, target, **rules))
with np.errstate(divide="ignore"):  # a pair that never occurs has the logit -inf
    best = np.exp(fx.cross_entropy(np.log(pairs)[inputs], target, **rules))

print(f"{len(lines)} lines, {len(vocab)} different characters, {pairs.sum():.0f} to predict\n\nstep   perplexity")
table, history = np.zeros_like(pairs), []  # a row of logits for each token that comes before
for step in range(STEPS + 1):
    loss, grad = fx.cross_entropy_with_grad(table[inputs], target, **rules)
    history.append(np.exp(loss))
    if step in (0, 1, 10, 100, STEPS):
        print(f"{step:4}{history[-1]:13.4f}")
    np.subtract.at(table, inputs, LEARNING_RATE * grad)
print(f"\nfrequencies of characters {single:8.4f}\nfrequencies of pairs      {best:8.4f}, the optimum")

if options.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.semilogx(history, color="#0072b2", label="gradient descent")
    axes.axhline(single, color="#d55e00", linestyle="--", label="frequencies of characters")
    axes.axhline(best, color="#009e73", linestyle="--", label="frequencies of pairs")
    axes.set(title="A bigram model of the Zen of Python", xlabel="step", xlim=(1, STEPS), ylabel="perplexity", ylim=0)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(options.plot)
