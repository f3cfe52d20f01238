"""What ``fastxent bench`` compares: fastxent and its peers, each the way its own users would run it."""

import importlib
import math
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastxent as fx

Array = NDArray[Any]


class Mode(StrEnum):
    """What a call returns: the mean loss, for most modes with its gradient, which lands in various places."""

    LOSS = "loss"
    REUSED = "grad, out="
    IN_PLACE = "grad, in place"
    FRESH = "grad, fresh"
    LOSSES = "losses"  # of the samples, to see how precise they are; never timed

    @property
    def with_gradient(self) -> bool:
        """Whether there is a gradient, wherever it goes."""
        return self in (Mode.REUSED, Mode.IN_PLACE, Mode.FRESH)


class Problem(NamedTuple):
    """One batch."""

    logits: Array  # (N, C, ...)
    target: Array  # (N, ...), class indices


Calls = dict[Mode, Callable[[], Any]]
Bind = Callable[[Problem], Calls]


class Peer(NamedTuple):
    """Another implementation: `setup` takes its modules and a number of threads, and what it returns a problem."""

    name: str
    modules: tuple[str, ...]
    setup: Callable[..., Bind]
    dtypes: tuple[str, ...] = ("float32", "float64")
    dimensions: float = math.inf  # of the logits, at most
    slow_start: bool = False


def cannot_run(peer: Peer, logits: Array) -> str:
    """Why a peer is left out; empty if it is not."""
    if logits.dtype.name not in peer.dtypes:
        return f"no {logits.dtype.name}"
    if logits.ndim > peer.dimensions:
        return f"no logits of {logits.ndim} dimensions"
    try:
        peer_modules(peer)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    return ""


def peer_modules(peer: Peer) -> list[ModuleType]:
    """What its `setup` is called with."""
    return [importlib.import_module(name) for name in peer.modules]


def peer_version(peer: Peer) -> str:
    """The version of an installed peer."""
    return str(sys.modules[peer.modules[0].partition(".")[0]].__version__)


def bind_fastxent(problem: Problem) -> Calls:
    """Fastxent, with the backend and threads of the configuration in force when it is called."""
    logits, target = problem
    out, replaced = np.empty_like(logits), logits.copy()
    return {
        Mode.LOSSES: lambda: fx.cross_entropy(logits, target, reduction="none"),
        Mode.LOSS: lambda: fx.cross_entropy(logits, target),
        Mode.REUSED: lambda: fx.cross_entropy_with_grad(logits, target, out=out),
        # From the second call on these are gradients of gradients, which take as long.
        Mode.IN_PLACE: lambda: fx.cross_entropy_with_grad(replaced, target, out=replaced),
        Mode.FRESH: lambda: fx.cross_entropy_with_grad(logits, target),
    }


def torch_eager(torch: Any, threads: int) -> Bind:
    """``F.cross_entropy`` and autograd."""
    torch.set_num_threads(threads)
    return lambda problem: bind_torch(torch, torch.nn.functional.cross_entropy, problem)


def torch_compiled(torch: Any, threads: int) -> Bind:
    """The same through ``torch.compile``."""
    torch.set_num_threads(threads)
    torch.compiler.reset()  # or from the ninth shape on it would quietly run the eager code
    compiled = torch.compile(torch.nn.functional.cross_entropy, dynamic=False)
    return lambda problem: bind_torch(torch, compiled, problem)


def bind_torch(torch: Any, cross_entropy: Callable[..., Any], problem: Problem) -> Calls:
    """Tensors that share the problem's memory."""
    target = torch.from_numpy(problem.target)
    if problem.logits.dtype.name == "bfloat16":
        logits = torch.from_numpy(problem.logits.view(np.int16)).view(torch.bfloat16)
    else:
        logits = torch.from_numpy(problem.logits)
    tracked = logits.detach().requires_grad_()

    def with_gradient() -> Any:
        loss = cross_entropy(tracked, target)
        return loss.detach(), torch.autograd.grad(loss, tracked)[0]

    return {
        Mode.LOSSES: lambda: cross_entropy(logits, target, reduction="none").double(),
        Mode.LOSS: lambda: cross_entropy(logits, target),
        Mode.FRESH: with_gradient,
    }


def jax_jit(jax: Any, backend: Any, threads: int) -> Bind:
    """Optax's formula for class indices, compiled."""
    if os.environ.get("PJRT_NPROC") != str(threads):
        os.environ["PJRT_NPROC"] = str(threads)  # read once, when JAX sets up its processors
        backend.clear_backends()
    jax.config.update("jax_platforms", "cpu")

    def losses(logits: Any, target: Any) -> Any:
        chosen = jax.numpy.take_along_axis(logits, jax.numpy.expand_dims(target, 1), 1).squeeze(1)
        return jax.nn.logsumexp(logits, axis=1) - chosen

    def loss(logits: Any, target: Any) -> Any:
        return losses(logits, target).mean()

    functions = {Mode.LOSSES: losses, Mode.LOSS: loss, Mode.FRESH: jax.value_and_grad(loss)}
    compiled = {mode: jax.jit(function) for mode, function in functions.items()}

    def run_to_end(function: Callable[..., Any], arrays: list[Any]) -> Any:
        return jax.block_until_ready(function(*arrays))

    def bind(problem: Problem) -> Calls:
        jax.config.update("jax_enable_x64", problem.logits.dtype == np.float64)
        arrays = [jax.numpy.asarray(array) for array in problem]
        return {mode: partial(run_to_end, run, arrays) for mode, run in compiled.items()}

    return bind


def scipy_formula(special: Any, _threads: int) -> Bind:
    """The formulas in NumPy and SciPy, which use one thread."""
    return lambda problem: bind_scipy(special, problem)


def bind_scipy(special: Any, problem: Problem) -> Calls:
    """``logsumexp`` for the loss alone, ``log_softmax`` where the gradient needs all of it."""
    logits, target = problem
    labels = np.expand_dims(target, 1)

    def losses() -> Any:
        return special.logsumexp(logits, axis=1) - np.take_along_axis(logits, labels, 1).squeeze(1)

    def with_gradient() -> tuple[Any, Array]:
        log_probs = special.log_softmax(logits, axis=1)
        chosen = np.take_along_axis(log_probs, labels, 1)
        grad = np.exp(log_probs)
        np.put_along_axis(grad, labels, np.exp(chosen) - 1, 1)
        grad /= target.size
        return -chosen.mean(), grad

    return {Mode.LOSSES: losses, Mode.LOSS: lambda: losses().mean(), Mode.FRESH: with_gradient}


def sklearn_loss(module: Any, threads: int) -> Bind:
    """The loss within ``LogisticRegression``; private, but the only public equal is the whole model."""
    return lambda problem: bind_sklearn(module, threads, problem)


def bind_sklearn(module: Any, threads: int, problem: Problem) -> Calls:
    """Sample weights of 1 / N make its sum and its gradients those of the mean."""
    logits, target = problem
    labels = target.astype(logits.dtype)
    share = np.full_like(labels, 1 / len(labels))
    losses, out = np.empty_like(labels), np.empty_like(logits)
    loss = module.HalfMultinomialLoss(n_classes=logits.shape[1])

    def with_gradient() -> tuple[Any, Array]:
        loss.loss_gradient(labels, logits, share, losses, out, threads)
        return losses.sum(), out

    return {
        Mode.LOSSES: lambda: loss.loss(labels, logits, n_threads=threads),
        Mode.LOSS: lambda: loss.loss(labels, logits, share, losses, threads).sum(),
        Mode.REUSED: with_gradient,
    }


def onnx_session(onnxruntime: Any, onnx: Any, threads: int) -> Bind:
    """ONNX's operator ``SoftmaxCrossEntropyLoss``, which has no gradient for inference."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def session(reduction: str) -> Any:
        node = onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["logits", "target"], ["loss"], reduction=reduction)
        types = {"logits": onnx.TensorProto.FLOAT, "target": onnx.TensorProto.INT64, "loss": onnx.TensorProto.FLOAT}
        *inputs, output = (onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in types.items())
        graph = onnx.helper.make_graph([node], "loss", inputs, [output])
        model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    mean, none = session("mean"), session("none")

    def bind(problem: Problem) -> Calls:
        feeds = problem._asdict()
        return {Mode.LOSSES: lambda: none.run(None, feeds)[0], Mode.LOSS: lambda: mean.run(None, feeds)[0]}

    return bind


ALL_DTYPES = ("float32", "float64", "bfloat16", "float16")

PEERS = (
    Peer("torch", ("torch",), torch_eager, ALL_DTYPES),
    Peer("torch.compile", ("torch",), torch_compiled, ALL_DTYPES, slow_start=True),
    Peer("JAX jit", ("jax", "jax.extend.backend"), jax_jit, ALL_DTYPES),
    Peer("SciPy", ("scipy.special",), scipy_formula),
    Peer("scikit-learn", ("sklearn._loss",), sklearn_loss, dimensions=2),
    Peer("onnxruntime", ("onnxruntime", "onnx"), onnx_session, ("float32",)),
)
