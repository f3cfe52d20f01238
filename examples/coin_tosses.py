"""Maximum likelihood: the bias of a coin that shows 60 heads in 100 tosses minimises the binary cross-entropy.

The summed binary cross-entropy of the tosses is the negative logarithm of their likelihood.
"""

import argparse

import numpy as np

import fastxent as fx

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--plot", metavar="FILE", help="save a picture here")
options = parser.parse_args()

tosses = np.repeat([1.0, 0.0], [60, 40])
biases = np.linspace(0.4, 0.8, 401)  # candidates for the probability of heads
probs = np.repeat(biases[:, np.newaxis], len(tosses), axis=1)  # (biases, tosses)
losses = fx.binary_cross_entropy(probs, np.broadcast_to(tosses, probs.shape), reduction="none").sum(axis=1)

best = losses.argmin()
plausible = biases[losses <= losses[best] + 1.92]  # half the 95 % quantile of chi squared with one degree of freedom
print("bias      -log likelihood   its slope")
for bias in (0.5, 0.55, 0.6, 0.65, 0.7):
    loss, grad = fx.binary_cross_entropy_with_grad(np.full(100, bias), tosses, reduction="sum")
    print(f"{bias:.2f}{loss:21.4f}{grad.sum():z12.2f}")
print(f"\nmost likely bias      {biases[best]:.3f}")
print(f"95% interval          {plausible[0]:.3f} to {plausible[-1]:.3f}")
print(f"likelihood            {np.exp(100 * np.log(2) - losses[best]):.2f} times that of a fair coin")

if options.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.axvspan(plausible[0], plausible[-1], color="#56b4e9", alpha=0.25, linewidth=0, label="95% interval")
    axes.plot(biases, losses, color="#0072b2", label="binary cross-entropy, summed")
    axes.plot(biases[best], losses[best], "o", color="#d55e00", label=f"minimum at {biases[best]:.1f}")
    axes.axvline(0.5, color="0.4", linestyle=":", label="fair coin")
    axes.set(title="60 heads in 100 tosses", xlabel="probability of heads", ylabel="negative log-likelihood")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(options.plot)
