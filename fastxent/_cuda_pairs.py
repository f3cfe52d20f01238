"""Gradients of softmax and of its logarithm: one sum over a sample of two arrays, then one number for each class."""

from functools import cache

from ._cuda_device import WARP, cuda, device, exp_any, misaligned, total_of
from ._cuda_tiles import finder, number_type, placer, reader, writer


@cache
def sample_total(kind, geometry):
    """total_of_sample(number): the sum of the numbers of all threads of a sample."""
    WARPS, LANES = max(1, geometry.threads // WARP), min(geometry.threads, WARP)
    ZERO = kind(0)

    @device
    def total_of_sample(number):
        number = total_of(number, LANES)
        if WARPS > 1:
            parts = cuda.shared.array(WARPS, kind)
            if cuda.threadIdx.x % WARP == 0:
                parts[cuda.threadIdx.x // WARP] = number
            cuda.syncthreads()
            number = ZERO
            for warp in range(WARPS):
                number += parts[warp]
        return number

    return total_of_sample


@cache
def pair_kernel(operation, storage, grad_storage, geometry):
    """softmax_vjp: out = p (g - sum(g p)); log_softmax_vjp: out = g - exp(p) sum(g), with log-probabilities p.

    Strides in elements for (outer, class, inner). Both arrays are read once, unless samples are long: then twice.
    """
    KIND, COUNT, WIDTH, LONG = number_type(storage), geometry.count, geometry.width, geometry.long
    CAPACITY, ZERO, PEELED, PLAIN = geometry.capacity, KIND(0), geometry.access == "peeled", operation == "softmax_vjp"
    read, read_grad, write = reader(geometry, storage), reader(geometry, grad_storage), writer(geometry, storage)
    place, find, total_of_sample = placer(geometry), finder(geometry), sample_total(KIND, geometry)

    def kernel(grad, probs, out, shape, grad_strides, strides, out_strides):
        p, g = cuda.local.array(COUNT, KIND), cuda.local.array(COUNT, KIND)
        samples, classes, inner = shape
        s, lane = place()
        length, s = classes if s < samples else 0, min(s, samples - 1)
        start, grad_start = find(s, inner, strides), find(s, inner, grad_strides)
        out_start = find(s, inner, out_strides)
        skew = misaligned(probs, start, WIDTH) if PEELED else 0
        grad_fits = not PEELED or misaligned(grad, grad_start, WIDTH) == skew
        out_fits = not PEELED or misaligned(out, out_start, WIDTH) == skew
        tiles = (classes + skew + CAPACITY - 1) // CAPACITY if LONG else 1
        total = ZERO
        for tile in range(tiles):
            first = tile * CAPACITY + lane * WIDTH - skew
            read(probs, start, strides[1], first, length, True, ZERO, p)
            read_grad(grad, grad_start, grad_strides[1], first, length, grad_fits, ZERO, g)
            part = ZERO
            for k in range(COUNT):
                part += g[k] * p[k] if PLAIN else g[k]
            total += part
        total = total_of_sample(total)
        for tile in range(tiles):
            first = tile * CAPACITY + lane * WIDTH - skew
            if LONG:
                read(probs, start, strides[1], first, length, True, ZERO, p)
                read_grad(grad, grad_start, grad_strides[1], first, length, grad_fits, ZERO, g)
            for k in range(COUNT):
                p[k] = p[k] * (g[k] - total) if PLAIN else g[k] - exp_any(p[k]) * total
            write(out, out_start, out_strides[1], first, length, out_fits, p)

    return kernel
