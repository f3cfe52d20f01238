"""KL divergence is cross-entropy minus entropy, and never negative (Gibbs' inequality).

Coding what follows p with a code made for q costs H(p, q); the best code costs H(p). The difference is D(p || q).
"""

import argparse

import numpy as np

import fastxent as fx

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--plot", metavar="FILE", help="save a picture here")
options = parser.parse_args()

rng = np.random.default_rng(0)
p = rng.dirichlet(np.ones(4), 10_000)  # (pairs, outcomes), spread evenly over all distributions
q = fx.softmax(np.log(p) + rng.normal(size=p.shape) * rng.uniform(0, 2, (len(p), 1)))  # some close to p, some not

entropy = fx.entropy(p)
cross_entropy = fx.categorical_cross_entropy(p, q)
divergence = fx.kl_divergence(p, q)
backward = fx.kl_divergence(q, p)

print(f"{len(p)} random pairs of distributions over {p.shape[1]} outcomes, in nats\n")
print(f"{'':20}{'least':>10}{'mean':>10}{'most':>10}")
for name, values in (("H(p)", entropy), ("H(p, q)", cross_entropy), ("D(p || q)", divergence), ("D(q || p)", backward)):
    print(f"{name:20}{values.min():10.6f}{values.mean():10.6f}{values.max():10.6f}")
print(f"\nH(p, q) - H(p) differs from D(p || q) by at most {np.abs(cross_entropy - entropy - divergence).max():.0e}")
print(f"pairs with D(p || q) < 0:  {np.sum(divergence < 0)}")
print(f"D(p || p) is at most       {fx.kl_divergence(p, p).max():.0e}")
print(f"H(p) is at most log 4 =    {np.log(4):.6f}")
print(f"fx.kl_div, as in PyTorch   {fx.kl_div(np.log(q), p, reduction='batchmean'):.6f}, the mean of D(p || q)")

if options.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    points = axes.scatter(entropy, cross_entropy, c=divergence, s=3, vmin=0, vmax=1)
    axes.axline((0, 0), slope=1, color="black", linewidth=1)
    axes.annotate("q = p", (0.25, 0.25), (8, -4), textcoords="offset points", va="top")
    axes.set(xlabel="entropy H(p)", xlim=(0, 1.45), ylabel="cross-entropy H(p, q)", ylim=(0, 3))
    axes.set_title("Gibbs' inequality: no pair lies below the line")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.colorbar(points, label="KL divergence D(p || q)", extend="max")
    figure.savefig(options.plot)
