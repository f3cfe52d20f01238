"""What threads of a GPU do beyond Python: 16 bytes at a time, 16-bit floats, one number from all lanes of a warp.

Pointers are typed by what they point to: float32, float64, int16 (the bits of float16) or uint16 (those of bfloat16).
"""

import math
from functools import cache

import numpy as np
from llvmlite import ir

from ._cuda_package import cuda, intrinsic, libdevice, types

WARP = 32
VECTOR = 16  # bytes, the most that one instruction loads or stores
ALL = 0xFFFFFFFF  # lanes

LOG2E, LOG2E_LOW = np.float32(1.4426950408889634), np.float32(1.925963033500011e-08)
LN2 = np.float32(0.6931471805599453)
LEAST = np.float32(-150.0)  # whose exponential is 0

FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()
INT16, INT32, INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


def device(function):
    """A function that kernels call."""
    return cuda.jit(device=True, forceinline=True)(function)


def assembly(builder, result, template, constraints, *operands, side_effect=False):
    """One PTX instruction, or a few."""
    kind = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(ir.InlineAsm(kind, template, constraints, side_effect), operands)


# --- numbers as they are stored ----------------------------------------------------------------------------------


def unpack(builder, storage, word):
    """The two numbers in 32 bits, the lower one first."""
    low, high = builder.trunc(word, INT16), builder.trunc(builder.lshr(word, INT32(16)), INT16)
    if storage == types.int16:
        return [assembly(builder, FLOAT, "cvt.f32.f16 $0, $1;", "=f,h", half) for half in (low, high)]
    low, high = builder.shl(word, INT32(16)), builder.and_(word, INT32(0xFFFF0000))
    return [builder.bitcast(half, FLOAT) for half in (low, high)]


def pack(builder, storage, low, high):
    """The way back, each rounded once."""
    name = "f16x2" if storage == types.int16 else "bf16x2"
    return assembly(builder, INT32, f"cvt.rn.{name}.f32 $0, $1, $2;", "=r,f,f", high, low)


def widen(builder, storage, number):
    """One number as it is stored in the type that we compute in."""
    if storage == types.int16:
        return assembly(builder, FLOAT, "cvt.f32.f16 $0, $1;", "=f,h", number)
    if storage == types.uint16:
        return builder.bitcast(builder.shl(builder.zext(number, INT32), INT32(16)), FLOAT)
    return number


def narrow(builder, storage, number):
    """The way back, rounded once."""
    if storage == types.int16:
        return assembly(builder, INT16, "cvt.rn.f16.f32 $0, $1;", "=h,f", number)
    if storage == types.uint16:
        return assembly(builder, INT16, "cvt.rn.bf16.f32 $0, $1;", "=h,f", number)
    return number


def place(builder, pointer, index, kind):
    """The address of an element in global memory."""
    element = builder.gep(pointer, [index])
    return builder.addrspacecast(element, ir.PointerType(kind, addrspace=1))


def slots(context, builder, values, array, slot, count):
    """The addresses of some consecutive elements of a private array."""
    data = context.make_array(values)(context, builder, array).data
    return [builder.gep(data, [builder.add(slot, ir.Constant(slot.type, i))]) for i in range(count)]


def vector_type(storage):
    """16 bytes of such numbers, as LLVM loads them, and how many numbers these are."""
    if storage.bitwidth == 16:
        return ir.VectorType(INT32, 4), 8
    return (ir.VectorType(DOUBLE, 2), 2) if storage == types.float64 else (ir.VectorType(FLOAT, 4), 4)


def computed(storage):
    """The type that such numbers are computed in."""
    return types.float64 if storage == types.float64 else types.float32


@intrinsic
def load(typing, pointer, index, values, slot):
    """values[slot:] = the 16 bytes of numbers that begin at pointer[index], which is aligned."""
    storage = pointer.dtype
    kind, count = vector_type(storage)

    def code(context, builder, signature, arguments):
        address, index, array, slot = arguments
        vector = builder.load(place(builder, address, index, kind), align=VECTOR)
        lanes = [builder.extract_element(vector, INT32(i)) for i in range(kind.count)]
        if storage.bitwidth == 16:
            lanes = [number for word in lanes for number in unpack(builder, storage, word)]
        for number, target in zip(lanes, slots(context, builder, values, array, slot, count), strict=True):
            builder.store(number, target)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, values, types.int64), code


@intrinsic
def store(typing, pointer, index, values, slot):
    """The way back."""
    storage = pointer.dtype
    kind, count = vector_type(storage)

    def code(context, builder, signature, arguments):
        address, index, array, slot = arguments
        lanes = [builder.load(source) for source in slots(context, builder, values, array, slot, count)]
        if storage.bitwidth == 16:
            lanes = [pack(builder, storage, *lanes[i : i + 2]) for i in range(0, count, 2)]
        vector = ir.Constant(kind, ir.Undefined)
        for i, number in enumerate(lanes):
            vector = builder.insert_element(vector, number, INT32(i))
        builder.store(vector, place(builder, address, index, kind), align=VECTOR)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, values, types.int64), code


@intrinsic
def get(typing, pointer, index):
    """The number at pointer[index]."""
    storage = pointer.dtype

    def code(context, builder, signature, arguments):
        address, index = arguments
        kind = context.get_data_type(storage)
        number = builder.load(place(builder, address, index, kind), align=storage.bitwidth // 8)
        return widen(builder, storage, number)

    return computed(storage)(pointer, types.int64), code


@intrinsic
def put(typing, pointer, index, number):
    """pointer[index] = number."""
    storage = pointer.dtype

    def code(context, builder, signature, arguments):
        address, index, number = arguments
        kind = context.get_data_type(storage)
        stored = narrow(builder, storage, number)
        builder.store(stored, place(builder, address, index, kind), align=storage.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, computed(storage)), code


@intrinsic
def misaligned(typing, pointer, index, width):
    """How many numbers pointer[index] is past an address that is a multiple of `width` numbers."""

    def code(context, builder, signature, arguments):
        address, index, width = arguments
        element = builder.ptrtoint(builder.gep(address, [index]), INT64)
        return builder.urem(builder.udiv(element, INT64(pointer.dtype.bitwidth // 8)), width)

    return types.int64(pointer, types.int64, types.int64), code


# --- maths -------------------------------------------------------------------------------------------------------

larger, exp_any, log, log1p = max, math.exp, math.log, math.log1p  # max gives a nan only of two


@intrinsic
def at_least(typing, number, least):
    """The larger one of both; a nan stays."""

    def code(context, builder, signature, arguments):
        return assembly(builder, FLOAT, "max.NaN.f32 $0, $1, $2;", "=f,f,f", *arguments)

    return types.float32(types.float32, types.float32), code


@intrinsic
def divide(typing, number, other):
    """The quotient, within 2 ulp for float32: without the cases that take a call."""

    def code(context, builder, signature, arguments):
        if number == types.float64:
            return builder.fdiv(*arguments)
        return assembly(builder, FLOAT, "div.full.f32 $0, $1, $2;", "=f,f,f", *arguments)

    return number(number, number), code


@device
def exp_short(x):
    """exp(x) for x <= 0 within 2 + 0.6 |x| ulp: of 16-bit logits, whose differences are exact."""
    return libdevice.exp2f(x * LOG2E)


@device
def exp_float32(x):
    """exp(x) for x <= 0 within 2 ulp: what rounding takes from the product is put back."""
    x = at_least(x, LEAST)
    power = x * LOG2E
    lost = libdevice.fmaf(x, LOG2E_LOW, libdevice.fmaf(x, LOG2E, -power))
    e = libdevice.exp2f(power)
    return libdevice.fmaf(e, lost * LN2, e)


@device
def exp_float64(x):
    """exp(x)."""
    return math.exp(x)


# --- the lanes of a warp -----------------------------------------------------------------------------------------


@device
def sync_warp():
    """Wait for all lanes."""
    cuda.syncwarp()


@device
def largest(number, width):
    """The largest number of `width` lanes, a power of two; a nan only if there is nothing else."""
    step = width // 2
    while step > 0:
        number = max(number, cuda.shfl_xor_sync(ALL, number, step))
        step //= 2
    return number


@device
def total_of(number, width):
    """The sum of the numbers of `width` lanes, in an order that depends on nothing else."""
    step = width // 2
    while step > 0:
        number += cuda.shfl_xor_sync(ALL, number, step)
        step //= 2
    return number


@device
def count_of(chosen, width):
    """How many of `width` lanes have a true value."""
    votes = cuda.ballot_sync(ALL, chosen)
    if width < WARP:
        votes = (votes >> (cuda.laneid // width * width)) & ((1 << width) - 1)
    return cuda.popc(votes)


# --- the blocks of a cluster -------------------------------------------------------------------------------------


@cache
def cluster_of(blocks):
    """form_cluster(): so many blocks run side by side and see each other's shared memory."""

    @intrinsic
    def form_cluster(typing):
        def code(context, builder, signature, arguments):
            module, one = builder.module, INT32(1)
            for axis, size in (("x", INT32(blocks)), ("y", one), ("z", one)):
                entry = module.add_metadata([builder.function, ir.MetaDataString(module, f"cluster_dim_{axis}"), size])
                module.add_named_metadata("nvvm.annotations", entry)
            return context.get_dummy_value()

        return types.void(), code

    return form_cluster


@intrinsic
def barrier_of_cluster(typing):
    """Wait for all threads of the cluster, and see what they have written to shared memory."""
    template = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"

    def code(context, builder, signature, arguments):
        assembly(builder, ir.VoidType(), template, "~{memory}", side_effect=True)
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def from_block(typing, array, index, block):
    """An element of another block's shared array, or of one's own."""
    letter, suffix = ("d", "f64") if array.dtype == types.float64 else ("f", "f32")
    template = (
        "{ .reg .u64 a; .reg .u32 b; cvta.to.shared.u64 a, $1; cvt.u32.u64 b, a; "
        f"mapa.shared::cluster.u32 b, b, $2; ld.shared::cluster.{suffix} $0, [b]; }}"
    )

    def code(context, builder, signature, arguments):
        shared, index, block = arguments
        data = context.make_array(array)(context, builder, shared).data
        address = builder.ptrtoint(builder.gep(data, [index]), INT64)
        kind, block = context.get_data_type(array.dtype), builder.trunc(block, INT32)
        return assembly(builder, kind, template, f"={letter},l,r,~{{memory}}", address, block, side_effect=True)

    return array.dtype(array, types.int64, types.int64), code
