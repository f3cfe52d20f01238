# The kernels of _kernels.pyx, compiled for x86-64-v3.
include "_kernels.pyx"
