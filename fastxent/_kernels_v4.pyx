# The kernels of _kernels.pyx, compiled for x86-64-v4.
include "_kernels.pyx"
