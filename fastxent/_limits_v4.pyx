# The limits of _limits.pyx, compiled for x86-64-v4.
include "_limits.pyx"
