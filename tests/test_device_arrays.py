"""How arrays on a device are seen and allocated, whichever library they are of; kernels run in Numba's simulator."""

import ctypes
import sys
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from cases import LOSSES, assert_close
from gpu_arrays import GpuArray, to_gpu

import fastxent as fx
from fastxent import _device

pytest.importorskip("numba.cuda")

_cuda_launch = pytest.importorskip("fastxent._cuda_launch")
F32 = np.float32


class OnlyDlpack:
    """An array that shows nothing but DLPack; NumPy's are on the host, which nobody notices here."""

    def __init__(self, array):
        self.array, self.streams = array, []

    def __dlpack_device__(self):
        return _device.CUDA, 0

    def __dlpack__(self, stream):
        self.streams.append(stream)
        return self.array.__dlpack__()


def test_dlpack_is_read():
    a = np.arange(24, dtype=np.float32).reshape(4, 6)[1:, ::2]
    array = OnlyDlpack(a)
    view = _device.view("x", array)
    _device.view("x", array, _device.NOWHERE._replace(stream=5))  # beside an array on that stream
    assert array.streams == [1, 5]
    assert (view.shape, view.strides, view.dtype) == (a.shape, (6, 2), "float32")
    assert view.pointer == a.ctypes.data
    assert ctypes.c_float.from_address(view.pointer).value == a[0, 0]


class JaxDevice(NamedTuple):
    local_hardware_id: int = 0


class JaxArray(GpuArray):
    """As far as it is asked for what others are not."""

    device = JaxDevice()

    def block_until_ready(self):
        return self

    def unsafe_buffer_pointer(self):
        return self._array.ctypes.data


def empty_of_jax(shape, dtype, device):
    assert dtype == to_32_bits(dtype)  # else it would be shorter than asked for
    return JaxArray(np.full(shape, 77, dtype))


def to_32_bits(dtype):
    return np.dtype({"int64": "int32", "float64": "float32"}.get(dtype.name, dtype))


def test_jax_without_64_bits(monkeypatch):
    jax = SimpleNamespace(
        dtypes=SimpleNamespace(canonicalize_dtype=to_32_bits), numpy=SimpleNamespace(empty=empty_of_jax)
    )
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setattr(JaxArray, "__module__", "jaxlib._jax")
    x, y = LOSSES["cross_entropy"].make((5, 4), 1, F32)
    loss, grad = fx.cross_entropy_with_grad(JaxArray(x), JaxArray(y.astype(np.int32)))
    assert type(loss) is type(grad) is JaxArray
    expected = fx.cross_entropy_with_grad(x, y)
    assert_close(loss.get(), expected[0])
    assert_close(grad.get(), expected[1])


@pytest.mark.parametrize("value", [[1.0], np.zeros(3), 2.0, None, np.float32(1)])
def test_arrays_of_the_host_are_not_on_a_device(value):
    assert not _device.on_device(value)


class Streamed(GpuArray):
    """Of no library that is known, still being written on a stream of its own."""

    @property
    def __cuda_array_interface__(self):
        return super().__cuda_array_interface__ | {"stream": 5}


def test_other_streams_are_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(_cuda_launch, "wait", lambda memory: waited.append(memory.stream))
    x, y = LOSSES["cross_entropy"].make((5, 4), 1, F32)
    fx.cross_entropy(to_gpu(x), Streamed(y))
    assert waited == [5]
    with fx.config_context(check_targets=False):
        fx.cross_entropy(Streamed(x), Streamed(y))
    assert waited == [5]


class TorchTensor:
    """As far as it is asked for what others are not."""

    requires_grad = False

    def __init__(self, array, index=0):
        self.array, self.shape, self.dtype = array, array.shape, f"torch.{array.dtype}"
        self.device = SimpleNamespace(index=index)

    def __dlpack_device__(self):
        return _device.CUDA, self.device.index

    def data_ptr(self):
        return self.array.ctypes.data

    def stride(self):
        return tuple(step // self.array.itemsize for step in self.array.strides)


@pytest.fixture
def torch_on_stream_5(monkeypatch):
    torch = SimpleNamespace(cuda=SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=5)))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(_device, "_torch_allocator", lambda device: None)
    monkeypatch.setattr(TorchTensor, "__module__", "torch")


def test_torch_beside_arrays_of_another_library_is_waited_for(torch_on_stream_5, monkeypatch):
    waited = []
    monkeypatch.setattr(_cuda_launch, "wait", lambda memory: waited.append(memory.stream))
    x, y = LOSSES["cross_entropy"].make((5, 4), 1, F32)
    loss = fx.cross_entropy(to_gpu(x), TorchTensor(y))
    assert waited == [5]
    assert_close(loss.get(), fx.cross_entropy(x, y))


def test_arrays_on_two_gpus_are_refused(torch_on_stream_5, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace())
    monkeypatch.setattr(JaxArray, "__module__", "jaxlib._jax")
    monkeypatch.setattr(JaxArray, "device", JaxDevice(1))
    x, y = LOSSES["cross_entropy"].make((5, 4), 1, F32)
    for target in (TorchTensor(y, 1), JaxArray(y)):
        with pytest.raises(ValueError, match="target is on GPU 1, expected GPU 0, where the first array is"):
            fx.cross_entropy(to_gpu(x), target)


def test_views_of_views():
    a = _device.DeviceArray(0, (2, 3, 4), (12, 4, 1), "float32", None)
    assert a.reshape((6, 4)).strides == (4, 1)
    assert a.reshape((2, 1, 12)).strides == (12, 0, 1)
    assert a.transpose((0, 2, 1)).reshape((2, 12)) is None
    assert a.transpose((0, 2, 1)).reshape((2, 2, 2, 3)).strides == (12, 2, 1, 4)
    assert a.broadcast((5, 2, 3, 4)).strides == (0, 12, 4, 1)
    assert a.broadcast((2, 3, 5)) is None
    assert a.is_contiguous()
    assert not a.transpose((1, 0, 2)).is_contiguous()
