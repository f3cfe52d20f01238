/* CUDA's driver, as far as numba-cuda and cuda.core ask for it: devices whose memory is the host's, and on which kernels
   do nothing. What is allocated and launched is written to the standard error. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEVICES 2
#define NOT_FOUND 500
#define NO_CONTEXT 201

typedef uint64_t Address;

/* Contexts are numbers, as all handles here; each thread has a stack of them. */
static __thread uintptr_t contexts[64];
static __thread int depth;

static uintptr_t context(void) { return depth ? contexts[depth - 1] : 0; }
static uintptr_t of_device(int device) { return device + 1; }

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status)
{
    char symbol[128];
    snprintf(symbol, sizeof symbol, "fx_%s", name);
    static void *self;
    Dl_info info;
    if (!self && dladdr((void *)cuGetProcAddress_v2, &info))
        self = dlopen(info.dli_fname, RTLD_NOW);
    *function = dlsym(self, symbol);
    if (status)
        *status = *function ? 0 : 1;
    return *function ? 0 : NOT_FOUND;
}

int fx_cuGetProcAddress(const char *name, void **function, int version, uint64_t flags, int *status)
{
    return cuGetProcAddress_v2(name, function, version, flags, status);
}

/* --- devices and contexts ---------------------------------------------------------------------------------------- */

int fx_cuInit(unsigned flags) { return 0; }
int fx_cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int fx_cuDeviceGetCount(int *count) { *count = DEVICES; return 0; }
int fx_cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int fx_cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "nothing"); return 0; }
int fx_cuDeviceGetUuid(char *uuid, int device) { memset(uuid, device, 16); return 0; }

int fx_cuDeviceGetAttribute(int *value, int attribute, int device)
{
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1; /* compute capability 9.0 */
    return 0;
}

int fx_cuDevicePrimaryCtxRetain(uintptr_t *handle, int device) { *handle = of_device(device); return 0; }
int fx_cuDevicePrimaryCtxRelease(int device) { return 0; }
int fx_cuCtxGetCurrent(uintptr_t *handle) { *handle = context(); return 0; }
int fx_cuCtxPushCurrent(uintptr_t handle) { contexts[depth++] = handle; return 0; }

int fx_cuCtxPopCurrent(uintptr_t *handle)
{
    if (!depth)
        return NO_CONTEXT;
    *handle = contexts[--depth];
    return 0;
}

int fx_cuCtxSetCurrent(uintptr_t handle) /* in place of the one on top, not above it */
{
    depth -= depth > 0;
    if (handle)
        contexts[depth++] = handle;
    return 0;
}

int fx_cuCtxGetDevice(int *device)
{
    *device = (int)context() - 1;
    return depth ? 0 : NO_CONTEXT;
}

/* --- memory ------------------------------------------------------------------------------------------------------ */

int fx_cuMemGetInfo(size_t *available, size_t *total) { *available = *total = 1ull << 37; return 0; }
int fx_cuMemcpyHtoD(Address target, const void *source, size_t size) { memcpy((void *)target, source, size); return 0; }
int fx_cuMemcpyDtoH(void *target, Address source, size_t size) { memcpy(target, (void *)source, size); return 0; }
int fx_cuMemFree(Address address) { free((void *)address); return 0; }

int fx_cuMemAlloc(Address *address, size_t size)
{
    if (!depth)
        return NO_CONTEXT;
    fprintf(stderr, "memory on %d\n", (int)context() - 1);
    *address = (Address)calloc(1, size);
    return 0;
}

/* --- kernels ----------------------------------------------------------------------------------------------------- */

int fx_cuLibraryLoadData(uintptr_t *library, const void *code, void *a, void *b, unsigned c, void *d, void *e, unsigned f)
{
    static uintptr_t libraries;
    *library = ++libraries;
    return memcmp(code, "\177ELF", 4) ? NOT_FOUND : 0;
}

int fx_cuLibraryGetKernel(uintptr_t *kernel, uintptr_t library, const char *name) { *kernel = library; return 0; }
int fx_cuKernelGetFunction(uintptr_t *function, uintptr_t kernel) { *function = kernel; return 0; }
int fx_cuKernelGetAttribute(int *value, int attribute, uintptr_t kernel, int device) { *value = 1; return 0; }
int fx_cuLibraryUnload(uintptr_t library) { return 0; }
int fx_cuStreamSynchronize(uintptr_t stream) { return 0; }

struct launch {
    unsigned grid[3], block[3], shared;
    uintptr_t stream;
};

int fx_cuLaunchKernelEx(const struct launch *launch, uintptr_t function, void **parameters, void **extra)
{
    if (!depth)
        return NO_CONTEXT;
    fprintf(stderr, "launch on %d, stream %d: %u x %u\n", (int)context() - 1, (int)launch->stream, launch->grid[0],
            launch->block[0]);
    return 0;
}

int fx_cuLaunchKernel(uintptr_t function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, uintptr_t stream, void **parameters, void **extra)
{
    struct launch launch = {{gx, gy, gz}, {bx, by, bz}, shared, stream};
    return fx_cuLaunchKernelEx(&launch, function, parameters, extra);
}
