# The limits of _limits.pyx, compiled for x86-64-v3.
include "_limits.pyx"
