"""The most memory that a process has held after one call, its inputs of 32 MiB included."""

from .calls import BACKENDS, bind_arrays, cases, make_constant_inputs, use

SHAPE = (8192, 1024)  # a temporary like the logits would add 32 MiB to less than twice that and the interpreter


class Peak:
    param_names = ("function", "backend")
    version = 1
    with_grad = False

    def setup(self, function, backend):
        loss = cases.ALL[function]
        use(loss, backend)
        bind_arrays(loss, loss.make((1, SHAPE[1]), 1, cases.DTYPES["float32"]), self.with_grad)  # compiles
        self.loss, self.arrays = loss, make_constant_inputs(loss, SHAPE, "float32")


class Memory(Peak):
    params = (tuple(cases.ALL), BACKENDS)

    def peakmem_forward(self, function, backend):
        self.loss.function(*self.arrays, **self.loss.at(1))


class MemoryWithGrad(Peak):
    params = (tuple(cases.ALL_WITH_GRAD), BACKENDS)
    with_grad = True

    def peakmem_with_grad(self, function, backend):
        self.loss.with_grad(*self.arrays, **self.loss.at(1))
