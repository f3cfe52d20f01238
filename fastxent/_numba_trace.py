"""Kernels as Python functions that run once for each combination of types, and write down LLVM code as they go.

Their values are numbers, pointers, and packs of LANES numbers, which are one vector to LLVM: every loop over packs is
SIMD code, on any machine, without having to be recognised as such. Python's own `if` and `for` choose what is written;
`when` and `each` are the ones that run. Numba only has to call the result, which leaves little to compile.
"""

from contextlib import contextmanager

from llvmlite import ir
from numba import types
from numba.core import cgutils

CACHE_LINE = 64  # bytes
LANES = 32  # two AVX-512 or four AVX2 registers of float32: enough to hide the latency of an addition

FLOAT32, FLOAT64, MASK = types.float32, types.float64, types.boolean
INT16, INT32, INT64 = types.int16, types.int32, types.int64
UINT16, UINT32, UINT64 = types.uint16, types.uint32, types.uint64


def llvm_type(kind):
    """LLVM's type of a number or of what a pointer points to."""
    if isinstance(kind, types.Float):
        return ir.FloatType() if kind == FLOAT32 else ir.DoubleType()
    return ir.IntType(1 if kind == MASK else kind.bitwidth)


def vector_of(kind, count):
    """LLVM's type of `count` numbers; 0 stands for one number that is no pack."""
    return ir.VectorType(llvm_type(kind), count) if count else llvm_type(kind)


# --- values ------------------------------------------------------------------------------------------------------


class Value:
    """A number of type `kind`, or a pack of `count` of them, as far as written code knows it."""

    def __init__(self, builder, code, kind, count=0):
        self.builder, self.code, self.kind, self.count = builder, code, kind, count

    def made(self, instruction, *operands, kind=None, **options):
        """What an instruction makes of this."""
        code = getattr(self.builder, instruction)(self.code, *operands, **options)
        return Value(self.builder, code, kind or self.kind, self.count)

    def like(self, other):
        """`other`, a number of Python's too, with this value's type and lanes."""
        if not isinstance(other, Value):
            number = float(other) if isinstance(self.kind, types.Float) else int(other)
            numbers = [number] * self.count if self.count else number
            return Value(self.builder, ir.Constant(vector_of(self.kind, self.count), numbers), self.kind, self.count)
        other = other.to(self.kind)
        return other.splat(self.count) if self.count > other.count else other

    def splat(self, count=LANES):
        """A pack of this number."""
        first = ir.Constant(INDEX, 0)
        code = self.builder.insert_element(ir.Constant(vector_of(self.kind, count), ir.Undefined), self.code, first)
        return Value(self.builder, code, self.kind, count).shuffle([0] * count)

    def to(self, kind):
        """Converted to another type of number."""
        if kind == self.kind:
            return self
        wider, signed = kind.bitwidth > getattr(self.kind, "bitwidth", 1), getattr(self.kind, "signed", False)
        if isinstance(kind, types.Float):
            integer = "sitofp" if signed else "uitofp"
            instruction = integer if isinstance(self.kind, types.Integer) else "fpext" if wider else "fptrunc"
        else:
            instruction = "trunc" if not wider else "sext" if signed else "zext"
        return self.made(instruction, vector_of(kind, self.count), kind=kind)

    def view(self, kind):
        """The same bits as another type of number."""
        return self.made("bitcast", vector_of(kind, self.count), kind=kind)

    def shuffle(self, lanes, other=None):
        """The numbers at `lanes` of this pack, followed by another."""
        lanes = list(lanes)
        places = ir.Constant(ir.VectorType(INDEX, len(lanes)), lanes)
        code = self.builder.shuffle_vector(self.code, (other or self).code, places)
        return Value(self.builder, code, self.kind, len(lanes))

    def lane(self, lane):
        """One number of a pack."""
        return Value(self.builder, self.builder.extract_element(self.code, ir.Constant(INDEX, lane)), self.kind)

    def __rshift__(self, other):
        return self.made("ashr" if self.kind.signed else "lshr", self.like(other).code)


INDEX = ir.IntType(32)


def _both(a, b):
    """Two values of the same type and lanes, those of the first pack."""
    return (b.like(a), b) if isinstance(b, Value) and b.count > a.count else (a, a.like(b))


def _arithmetic(for_floats, for_integers):
    def method(self, other):
        a, b = _both(self, other)
        if isinstance(a.kind, types.Float):
            # A fused multiply-add rounds once less; no other liberty, which would fold away what two-sums compute.
            return a.made(for_floats, b.code, flags=("contract",))
        return a.made(for_integers, b.code)

    return method, lambda self, other: method(self.like(other), self)


def _comparison(symbol):
    def method(self, other):
        a, b = _both(self, other)
        ordered = "fcmp_unordered" if symbol == "!=" else "fcmp_ordered"
        integers = "icmp_signed" if getattr(a.kind, "signed", False) else "icmp_unsigned"
        code = getattr(a.builder, ordered if isinstance(a.kind, types.Float) else integers)(symbol, a.code, b.code)
        return Value(a.builder, code, MASK, a.count)

    return method


ARITHMETIC = {
    "add": ("fadd", "add"), "sub": ("fsub", "sub"), "mul": ("fmul", "mul"), "truediv": ("fdiv", None),
    "floordiv": (None, "sdiv"), "mod": (None, "srem"), "lshift": (None, "shl"), "and": (None, "and_"),
    "or": (None, "or_"), "xor": (None, "xor"),
}  # fmt: skip
COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}

for _name, _instructions in ARITHMETIC.items():
    for _prefix, _method in zip(("", "r"), _arithmetic(*_instructions), strict=True):
        setattr(Value, f"__{_prefix}{_name}__", _method)
for _name, _symbol in COMPARISONS.items():
    setattr(Value, f"__{_name}__", _comparison(_symbol))


def where(mask, a, b):
    """`a` where the mask is set, else `b`; one of them is a value."""
    a, b = _both(a, b) if isinstance(a, Value) else _both(b, a)[::-1]
    return Value(mask.builder, mask.builder.select(mask.code, a.code, b.code), a.kind, a.count)


def larger(a, b):
    """The larger of both, `b` if one is nan."""
    return where(a > b, a, b)


def smaller(a, b):
    """The smaller of both."""
    return where(a < b, a, b)


def infinite(x):
    """Whether it is inf or -inf."""
    return (x == float("inf")) | (x == -float("inf"))


def how_many(mask):
    """The number of lanes that are set."""
    return Value(mask.builder, mask.builder.ctpop(mask.builder.bitcast(mask.code, ir.IntType(LANES))), INT32)


def halves(pack):
    """The first and the second half of a pack."""
    half = pack.count // 2
    return pack.shuffle(range(half)), pack.shuffle(range(half, 2 * half))


def folded(pack, combine):
    """All lanes combined, each with the one half a pack away."""
    while pack.count > 1:
        pack = combine(*halves(pack))
    return pack.lane(0)


# --- memory ------------------------------------------------------------------------------------------------------


class Pointer:
    """The address of numbers of type `kind`."""

    def __init__(self, builder, code, kind):
        self.builder, self.code, self.kind = builder, code, kind

    def _place(self, index, count):
        index = index.code if isinstance(index, Value) else ir.Constant(ir.IntType(64), index)
        place = self.builder.gep(self.code, [index])
        return self.builder.bitcast(place, vector_of(self.kind, count).as_pointer()), self.kind.bitwidth // 8

    def load(self, index, count=LANES):
        """The pack that begins there."""
        place, align = self._place(index, count)
        return Value(self.builder, self.builder.load(place, align=align), self.kind, count)

    def store(self, index, value):
        """Put a pack or a number there."""
        place, align = self._place(index, value.count)
        self.builder.store(value.code, place, align=align)

    def _masked(self, name, result, index, left, before, after):
        """A masked load or store of the first `left` numbers of a pack."""
        number = ir.IntType(32)
        place, align = self._place(index, LANES)
        lanes = Value(self.builder, ir.Constant(ir.VectorType(number, LANES), list(range(LANES))), INT32, LANES)
        arguments = [*before, place, ir.Constant(number, align), (lanes < left).code, *after]
        function = ir.FunctionType(result, [argument.type for argument in arguments])
        suffix = f"v{LANES}{'f' if isinstance(self.kind, types.Float) else 'i'}{self.kind.bitwidth}.p0"
        function = cgutils.get_or_insert_function(self.builder.module, function, f"llvm.masked.{name}.{suffix}")
        return self.builder.call(function, arguments)

    def load_first(self, index, left, filler):
        """The first `left` numbers of the pack that begins there, then those of `filler`."""
        code = self._masked("load", vector_of(self.kind, LANES), index, left, [], [filler.code])
        return Value(self.builder, code, self.kind, LANES)

    def stream(self, index, pack):
        """Put a pack at the beginning of a cache line, past the cache."""
        place, _ = self._place(index, pack.count)
        store = self.builder.store(pack.code, place, align=CACHE_LINE)
        store.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(INDEX, 1)]))

    def to_line(self, index):
        """How many numbers there are from there to the next cache line."""
        size = self.kind.bitwidth // 8
        place, _ = self._place(index, 0)
        address = Value(self.builder, self.builder.ptrtoint(place, ir.IntType(64)), INT64)
        return ((0 - address) & (CACHE_LINE - 1)) // size

    def __ne__(self, other):
        addresses = [self.builder.ptrtoint(p.code, ir.IntType(64)) for p in (self, other)]
        return Value(self.builder, addresses[0], INT64) != Value(self.builder, addresses[1], INT64)

    __hash__ = None

    def store_first(self, index, left, pack):
        """Put the first `left` numbers of a pack there."""
        self._masked("store", ir.VoidType(), index, left, [pack.code], [])

    def fetch(self, index):
        """Bring what a pack there takes into cache; there need not be anything."""
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        fetch = cgutils.get_or_insert_function(self.builder.module, function, "llvm.prefetch.p0")
        line = CACHE_LINE * 8 // self.kind.bitwidth
        for i in range(0, LANES, line):
            place = self.builder.gep(self.code, [(index + i).code])
            options = [ir.Constant(number, n) for n in (0, 2, 1)]  # to read, in all caches but the first, data
            self.builder.call(fetch, [self.builder.bitcast(place, byte), *options])

    def __getitem__(self, index):
        return self.load(index, 0)

    def __setitem__(self, index, value):
        self.store(index, value.to(self.kind))

    def number(self, number):
        """A number of Python's as a pack of those that are stored here."""
        return Value(self.builder, None, self.kind, LANES).like(number)

    def scratch(self, size):
        """A pointer to as many such numbers in the stack frame, not initialised."""
        place = cgutils.alloca_once(self.builder, llvm_type(self.kind), size=size)
        place.align = 64
        return Pointer(self.builder, place, self.kind)


def either(mask, a, b):
    """Pointer `a` if the mask is set, else `b`."""
    return Pointer(a.builder, a.builder.select(mask.code, a.code, b.code), a.kind)


class Array:
    """An array of Numba's: a pointer, and its shape and strides in numbers."""

    def __init__(self, context, builder, code, kind):
        array = context.make_array(kind)(context, builder, code)
        size = ir.Constant(ir.IntType(64), kind.dtype.bitwidth // 8)
        self.data = Pointer(builder, array.data, kind.dtype)
        self.shape = [Value(builder, n, INT64) for n in cgutils.unpack_tuple(builder, array.shape)]
        strides = cgutils.unpack_tuple(builder, array.strides)
        self.strides = [Value(builder, builder.sdiv(n, size), INT64) for n in strides]
        if kind.ndim == 2:  # an inner axis of length 1, which the compiler then knows
            self.shape.append(self.shape[0].like(1))
            self.strides.append(self.strides[0].like(0))
        self.size = Value(builder, array.nitems, INT64)

    def at(self, index):
        """The number at this index, where length 1 stands for a constant."""
        return self.data[where(self.size > 1, self.size.like(index), 0)]


class Variables:
    """Values that code may change as it runs, as attributes."""

    def __init__(self, **values):
        self.__dict__["places"] = {}
        for name, value in values.items():
            self.places[name] = cgutils.alloca_once(value.builder, value.code.type), value
            setattr(self, name, value)

    def __getattr__(self, name):
        place, value = self.places[name]
        return Value(value.builder, value.builder.load(place), value.kind, value.count)

    def __setattr__(self, name, value):
        place, first = self.places[name]
        first.builder.store(first.like(value).code, place)


# --- control -----------------------------------------------------------------------------------------------------


@contextmanager
def when(condition):
    """Code that runs if the condition holds."""
    with condition.builder.if_then(condition.code):
        yield


def during(builder, condition):
    """Python's while for code that runs: the body of a `for` over it, which must not break, is written once."""
    head, body, after = (builder.append_basic_block() for _ in range(3))
    builder.branch(head)
    builder.position_at_end(head)
    builder.cbranch(condition().code, body, after)
    builder.position_at_end(body)
    yield
    builder.branch(head)
    builder.position_at_end(after)


def each(start, stop, step=1):
    """Python's range for code that runs: the body of a `for` over it, which must not break, is written once."""
    state = Variables(index=stop.like(start))
    for _ in during(stop.builder, lambda: state.index < stop):
        yield state.index
        state.index = state.index + step


def tasks(counter, size, samples):
    """Begin and end of one task of samples after the other, until all threads have taken all of them.

    A counter of no numbers is one of this call's own; a second number is how many tasks this call may take.
    """
    own, most = counter.data.scratch(1), Variables(tasks=samples.like((1 << 63) - 1))
    own[0] = samples.like(0)
    with when(counter.size > 1):
        most.tasks = counter.data[1]
    taken_so_far = either(counter.size == 0, own, counter.data)
    state = Variables(begin=samples, left=most.tasks)

    def take():
        state.begin = samples
        with when(state.left > 0):
            one = ir.Constant(ir.IntType(64), 1)
            taken = samples.builder.atomic_rmw("add", taken_so_far.code, one, "monotonic")
            state.begin = Value(samples.builder, taken, INT64) * size
        state.left = state.left - 1
        return state.begin < samples

    for _ in during(samples.builder, take):
        yield state.begin, smaller(state.begin + size, samples)


def packs(start, stop):
    """Where packs between two places begin, and how many numbers the last one has if it is not whole (else None).

    The body is written twice, so that the loop over whole packs has no branch.
    """
    whole = stop - (stop - start) % LANES
    for index in each(start, whole, LANES):
        yield index, None
    with when(whole < stop):
        yield whole, stop - whole
