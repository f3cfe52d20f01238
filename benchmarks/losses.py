"""Airspeed-velocity suite: cross-entropy at the shapes that users have."""

import numpy as np

import fastxent as fx


class CrossEntropy:
    """Forward, and forward + gradient into a reused array; float32."""

    # small batch, segmentation-like, ImageNet-like, vocabulary-like
    params = (((32, 10), (4, 21, 128, 128), (1024, 1000), (64, 32000)), ("cython", "numba"))
    param_names = ("shape", "backend")

    def setup(self, shape, backend):
        rng = np.random.default_rng(0)
        self.logits = rng.standard_normal(shape, np.float32)
        self.target = rng.integers(shape[1], size=shape[:1] + shape[2:])
        self.out = np.zeros_like(self.logits)
        self.context = fx.config_context(backend=backend)
        self.context.__enter__()
        self.time_forward(shape, backend)  # compiles, for Numba
        self.time_with_grad(shape, backend)

    def teardown(self, shape, backend):
        self.context.__exit__(None, None, None)

    def time_forward(self, shape, backend):
        fx.cross_entropy(self.logits, self.target)

    def time_with_grad(self, shape, backend):
        fx.cross_entropy_with_grad(self.logits, self.target, out=self.out)
