"""Compile the CUDA kernels without a GPU and print what machine code they became, a line of JSON for each.

Run by test_cuda_code.py; by hand, ``NUMBA_ENABLE_CUDASIM=0 python tests/cuda_kernels.py 90 all`` compiles all of them.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numba.cuda.dispatcher
from cuda.bindings import nvjitlink
from numba import cuda

from fastxent import _cuda_launch, _cuda_run
from fastxent._device import DeviceArray, Memory, contiguous_strides

DTYPES = ("float32", "bfloat16", "float16", "float64")
# Of each kind of geometry: a thread, lanes of a warp, a warp, a block, a large one, clusters, more than those hold.
CLASSES = (8, 64, 256, 1024, 2048, 4096, 16384, 32768, 131072, 262144, 1048576)
FEW = (8, 1024, 16384, 262144)
TERMS = ("bce_with_logits", "bce", "kl_div", "kl_div_log", "entropy", "probs_cross_entropy", "kl_divergence", "outside")
MEMORY = Memory(lambda shape, dtype: (None, 256), 0)


def array(shape, dtype):
    return DeviceArray(256, shape, contiguous_strides(shape), dtype, MEMORY)


class Kernels:
    """Collects kernels instead of launching them."""

    def __init__(self, clusters):
        self.found, self.label = {}, ""
        _cuda_run.launch = self.launch
        _cuda_run.constant = lambda value, dtype, device: array((1,), dtype)
        _cuda_run.has_clusters = lambda device: clusters

    def launch(self, kernel, blocks, bounds, memory, *arguments):
        if kernel not in {known for known, *_ in self.found.values()}:
            types = tuple(map(_cuda_launch.type_of, arguments))
            self.found[self.label + f" #{len(self.found)}"] = kernel, bounds, types

    def rows(self, operation, dtype, classes, form="", writes=True, shape=None):
        self.label = f"{operation} {form or '-'} {dtype} {classes} {'out' if writes else 'no out'}"
        shape = shape or (64, classes)
        x = array(shape, dtype)
        samples = shape[0] * (shape[2] if len(shape) == 3 else 1)
        target = {"": None, "probs": array(shape, dtype)}.get(form, array((samples,), "int64"))
        _cuda_run.rows(
            operation, x, x if writes else None, target, losses=array((samples,), _cuda_run.computing(x)),
            label_smoothing=0.1 if form == "smoothed" else 0.0,
        )  # fmt: skip

    def pairs(self, operation, dtype, classes):
        self.label = f"{operation} - {dtype} {classes} out"
        _cuda_run.pairs(operation, *[array((64, classes), dtype)] * 3)

    def elements(self, name, dtype, gradient):
        self.label = f"{name} - {dtype} 65536 {'out' if gradient else 'no out'}"
        x, constant = array((1, 1, 65536), dtype), array((1,), "float64" if dtype == "float64" else "float32")
        arrays = x, x, constant, constant, constant, None, x if gradient else None
        strides = x.strides, x.strides, *[(0, 0, 0)] * 3, None, x.strides if gradient else None
        _cuda_run.elements(name, arrays, x.shape, strides, 1.0)

    def sums(self):
        self.label = "sums"
        one, many = array((1,), "float32"), array((100000,), "float32")
        _cuda_run.sums("labels", 100000, None, one, array((100000,), "int64"), one)
        _cuda_run.sums("values", 100000, many, None, None, one)


def collect_few(kernels):
    """The kernel with most in it, of each kind of geometry, and a term."""
    for dtype, classes in product(("float32", "bfloat16"), FEW):
        kernels.rows("cross_entropy", dtype, classes, "label")
    kernels.elements("bce_with_logits", "float32", True)


def collect_some(kernels):
    """Every operation, type, access and geometry, but not all combinations of these."""
    kernels.sums()
    for classes in CLASSES:
        kernels.rows("cross_entropy", "float32", classes, "label")
    for dtype, classes in product(("bfloat16", "float16", "float64"), FEW[1:3]):
        kernels.rows("cross_entropy", dtype, classes, "label")
    for dtype in DTYPES:
        kernels.rows("cross_entropy", dtype, 1025, "label")
    collect_operations(kernels, "float32", 1024)
    for classes in (4, 21, 100):
        kernels.rows("cross_entropy", "float32", classes, "label", shape=(4, classes, 4096))
    for name in TERMS:
        kernels.elements(name, "float32", name in TERMS[:4])


def collect_all(kernels):
    """Every kernel that tables of `_cuda_geometry` and functions of `_cuda_run` can ask for, with equal types."""
    kernels.sums()
    for dtype, classes, odd in product(DTYPES, CLASSES, (0, 1)):
        kernels.rows("cross_entropy", dtype, classes + odd, "label")
        collect_operations(kernels, dtype, classes + odd)
    for dtype, classes in product(DTYPES, (4, 21, 100)):
        kernels.rows("cross_entropy", dtype, classes, "label", shape=(4, classes, 4096))
    for dtype, name in product(DTYPES, TERMS):
        for gradient in (False, True) if name in TERMS[:4] else (False,):
            kernels.elements(name, dtype, gradient)


def collect_operations(kernels, dtype, classes):
    """What there is beside the gradient of cross-entropy of labels."""
    for form in ("smoothed", "probs"):
        kernels.rows("cross_entropy", dtype, classes, form)
    kernels.rows("cross_entropy", dtype, classes, "label", writes=False)
    kernels.rows("logsumexp", dtype, classes, writes=False)
    kernels.rows("softmax", dtype, classes)
    kernels.rows("log_softmax", dtype, classes)
    for form, writes in product(("label", "probs"), (False, True)):
        kernels.rows("nll", dtype, classes, form, writes)
    for operation in ("softmax_vjp", "log_softmax_vjp"):
        kernels.pairs(operation, dtype, classes)


COLLECTIONS = {"few": collect_few, "some": collect_some, "all": collect_all}


def compile_kernel(kernel, bounds, types, capability):
    """The machine code, and what the assembler says about it."""
    numba.cuda.dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    code, _ = cuda.compile(  # as when it is launched
        kernel, types, cc=capability, output="ltoir", device=False, abi="numba", launch_bounds=bounds
    )
    arch = f"-arch=sm_{capability[0]}{capability[1]}"
    linker = nvjitlink.create(4, [arch, "-lto", "-verbose", "-Xptxas=-v"])
    try:
        nvjitlink.add_data(linker, nvjitlink.InputType.LTOIR, code, len(code), "kernel")
        nvjitlink.complete(linker)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(linker))
        nvjitlink.get_linked_cubin(linker, cubin)
        log = bytearray(nvjitlink.get_info_log_size(linker))
        nvjitlink.get_info_log(linker, log)
    finally:
        nvjitlink.destroy(linker)
    return bytes(cubin), log.decode(errors="replace")


def disassemble(cubin):
    """How often each instruction is in the code."""
    tool = Path(find_spec("nvidia.cu13").submodule_search_locations[0]) / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout
    return Counter(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)", text, re.MULTILINE))


def main(capability, which):
    capability = int(capability) // 10, int(capability) % 10
    kernels = Kernels(clusters=capability >= (9, 0))
    COLLECTIONS[which](kernels)
    for label, (kernel, bounds, types) in kernels.found.items():
        cubin, log = compile_kernel(kernel, bounds, types, capability)
        facts = {
            "label": label,
            "threads": bounds[0],
            "registers": int(re.search(r"Used (\d+) registers", log)[1]),
            "spilled": int(re.search(r"(\d+) bytes spill stores", log)[1]),
            "stack": int(re.search(r"(\d+) bytes stack frame", log)[1]),
            "instructions": disassemble(cubin),
        }
        cells = dict(zip(kernel.__code__.co_freevars, kernel.__closure__, strict=True))
        facts["constants"] = {
            name: cell.cell_contents for name, cell in cells.items() if type(cell.cell_contents) in (int, bool, str)
        }
        print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
