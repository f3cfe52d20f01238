"""NLLLoss is CrossEntropyLoss without the log-softmax.

cross_entropy(logits, target) = nll_loss(log_softmax(logits), target), with every option, and so is the gradient by the
chain rule. One call passes over the logits once and needs no array of log-probabilities.
"""

import numpy as np

import fastxent as fx

rng = np.random.default_rng(0)
logits = rng.normal(scale=3, size=(64, 10))  # (samples, classes)
target = rng.integers(10, size=64)
log_probs = fx.log_softmax(logits, axis=1)

OPTIONS = {
    "no options": {},
    "class weights": {"weight": np.linspace(0.5, 1.5, 10)},
    "class 3 ignored": {"ignore_index": 3},
    "summed": {"reduction": "sum"},
}
print(f"{'':16}{'cross_entropy':>16}{'nll_loss':>16}{'gradients differ by':>21}")
for name, options in OPTIONS.items():
    loss, grad = fx.cross_entropy_with_grad(logits, target, **options)
    nll, nll_grad = fx.nll_loss_with_grad(log_probs, target, **options)
    chained = fx.log_softmax_vjp(nll_grad, log_probs, axis=1)  # from the log-probabilities back to the logits
    print(f"{name:16}{loss:16.10f}{nll:16.10f}{np.abs(grad - chained).max():21.0e}")

print("\nThe one taken for the other")
print(f"cross_entropy(log_probs, target) {fx.cross_entropy(log_probs, target):8.4f}  right: log_probs are logits too")
print(f"nll_loss(logits, target)         {fx.nll_loss(logits, target):8.4f}  wrong: logits are no log_probs")
