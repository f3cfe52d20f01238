"""What kernels are written with: `cuda`, and functions of one thread, of a warp or of a cluster.

Each function has two faces: `_cuda_hardware.py` writes instructions,
`_cuda_simulator.py` does the same in Python, where Numba runs kernels without a GPU (``NUMBA_ENABLE_CUDASIM=1``).
It also stands in for `_cuda_driver.py`, which launches them.
"""

from ._cuda_package import SIMULATED

if SIMULATED:
    from . import _cuda_simulator as driver
    from . import _cuda_simulator as face
else:
    from . import _cuda_driver as driver
    from . import _cuda_hardware as face

cuda, WARP, device = face.cuda, face.WARP, face.device
get, load, misaligned, put, store = face.get, face.load, face.misaligned, face.put, face.store
exp_float32, exp_float64, exp_short, exp_any = face.exp_float32, face.exp_float64, face.exp_short, face.exp_any
divide, larger, log, log1p = face.divide, face.larger, face.log, face.log1p
count_of, largest, sync_warp, total_of = face.count_of, face.largest, face.sync_warp, face.total_of
barrier_of_cluster, cluster_of, from_block = face.barrier_of_cluster, face.cluster_of, face.from_block
address_of, function_of, here, on = driver.address_of, driver.function_of, driver.here, driver.on
start, synchronize = driver.start, driver.synchronize
