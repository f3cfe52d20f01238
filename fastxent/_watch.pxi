# Signals during a long call: Python's handlers run in its main thread, which therefore asks for them now and then.
#
# When a handler raises, as that of Ctrl-C does, every thread leaves its work at the next look at the call's `Watch`.

import os
import threading

cdef extern from *:
    """
    #include <time.h>
    #if defined(__GNUC__)
    #define fx_set(flag) __atomic_store_n(flag, 1, __ATOMIC_RELAXED)
    #define fx_is_set(flag) __atomic_load_n(flag, __ATOMIC_RELAXED)
    #else /* there is one thread only */
    #define fx_set(flag) (*(flag) = 1)
    #define fx_is_set(flag) (*(flag))
    #endif
    static long long fx_milliseconds(void) {
    #if defined(CLOCK_MONOTONIC_COARSE) /* a quarter of the time that the exact one takes */
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    #elif defined(CLOCK_MONOTONIC)
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
    #else
        return (long long)(clock() * (1000.0 / CLOCKS_PER_SEC));
    #endif
    #if defined(CLOCK_MONOTONIC)
        return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
    #endif
    }
    """
    void set_flag "fx_set"(int* flag) noexcept nogil
    bint is_set "fx_is_set"(int* flag) noexcept nogil
    int64_t milliseconds "fx_milliseconds"() noexcept nogil
    int PyErr_CheckSignals() noexcept  # what a handler raises stays set, for the kernel to raise
    unsigned long PyThread_get_thread_ident() noexcept nogil

cdef enum:
    PATIENCE = 50  # milliseconds between two looks for signals: taking Python's lock may take 5, if others want it
    STRETCH = 256  # blocks between two looks at the watch: a million classes, or as many numbers of several samples

cdef struct Watch:
    unsigned long asker  # the thread that asks for signals; 0 if the caller is not the main thread
    int64_t due  # when to ask again; 0 before the first look at the clock
    int stopped

cdef unsigned long main_thread


def _find_main_thread():
    global main_thread
    main_thread = threading.main_thread().ident


_find_main_thread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_find_main_thread)  # it is the one that has forked


cdef inline Watch new_watch() noexcept nogil:
    cdef Watch watch
    cdef unsigned long caller = PyThread_get_thread_ident()
    watch.asker = caller if caller == main_thread else 0
    watch.due = watch.stopped = 0
    return watch


cdef bint handler_raises() noexcept with gil:
    return PyErr_CheckSignals() != 0


cdef bint is_stopped(Watch* watch) noexcept nogil:
    """Whether the call is to be left; between two tasks or STRETCHes."""
    cdef int64_t now
    if watch.asker == PyThread_get_thread_ident() and not watch.stopped:
        now = milliseconds()
        if watch.due and now >= watch.due and handler_raises():
            set_flag(&watch.stopped)
        if now >= watch.due:
            watch.due = now + PATIENCE
    return is_set(&watch.stopped)


cdef inline bint is_stopped_at(Watch* watch, Py_ssize_t block) noexcept nogil:
    """The same before a block, where one in STRETCH is worth a look."""
    return block % STRETCH == STRETCH - 1 and is_stopped(watch)
