"""The hot loops are SIMD code as wide as each instruction-set level allows: GCC itself lists those that are."""

import importlib.util
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

# Level -> what its modules' names end in, and the bytes of its vectors.
LEVELS = {"v2": ("", 16), "v3": ("_v3", 32), "v4": ("_v4", 64)}

HOT = re.compile(r"( +)for (lane in range\(LANES\)|j in range\(.+\)):")  # all lanes, or the numbers of a block

UNROLLED, COPIES = "_make_few", 3  # where loops over classes are compiled for so many constant numbers of them

# What GCC need not do once loops are vectorised: it takes a fifth of the time, and changes no loop any more.
LATE = ["-fira-algorithm=priority", "-fno-ivopts", "-fno-gcse", "-fno-gcse-after-reload", "-fno-schedule-insns2"]

# Part of a loop's text -> the levels at which it may stay scalar; why.
EXCEPTIONS = {
    "return": "v2 v3 v4",  # a search that ends at the first hit
    "range(count // LANES * LANES, count)": "v2 v3 v4",  # the tail of a block, shorter than LANES
    "_halves(": "v3 v4",  # what the processor's conversion of whole vectors has left
    "widen(source + j * step": "v2 v3 v4",  # numbers that lie apart: gathering them is no faster
    "target + j * step)": "v2 v3 v4",  # the same, scattering them
    "exp_negative(<real>(x[lane] - top[lane]))": "v4",  # written in vectors of that level, where it has them
    "scale = exp_negative(<real>-rise)": "v2",  # a branch where there are no masks; once a tile, and not in the first
}

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None or sys.platform != "linux", reason="needs GCC on Linux"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the levels are those of x86-64"),
    pytest.mark.skipif(importlib.util.find_spec("Cython") is None, reason="needs Cython"),
]


class Loop(NamedTuple):
    """A loop in one version of a function: with fused types, C has one for each combination."""

    file: str
    line: int
    function: str

    @property
    def in_double(self):
        """Whether any of its types is the second of the fused ones, which is `double` in both of them."""
        return re.match(r"__pyx_fuse_(\d_)?1_", self.function) is not None


def hot_loops(level):
    """(file, line) of every loop that has to be SIMD code: the innermost ones, but for those that are unrolled."""
    found = set()
    for path in (ROOT / "fastxent").glob("*.pxi"):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines, 1):
            if head := HOT.match(line):
                body = list(takewhile(lambda text, indent=head[1]: text.startswith(indent + " "), lines[number:]))
                inner = {text.strip() for text in body if text.lstrip().startswith("for ")}
                innermost = not inner or (path.name == "_few_classes.pxi" and inner == {"for c in range(classes):"})
                excepted = any(part in "\n".join([line, *body]) for part, at in EXCEPTIONS.items() if level in at)
                if innermost and not excepted:
                    found.add((path.name, number))
    return found


@pytest.fixture(scope="module")
def setup_py():
    """The names in setup.py, run without building anything."""

    def extension(name, sources, **options):
        return SimpleNamespace(name=name, sources=sources, **options)

    stand_in = SimpleNamespace(Extension=extension, setup=lambda **_: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "setuptools", stand_in)
        patch.setitem(sys.modules, "Cython.Build", SimpleNamespace(cythonize=lambda *_, **__: []))
        return SimpleNamespace(**runpy.run_path(str(ROOT / "setup.py")))


@pytest.fixture(scope="module")
def translated(setup_py, tmp_path_factory):
    """C of the kernels, which is the same at every level, and the loops in it."""
    target = tmp_path_factory.mktemp("translated") / "kernels.c"
    return target, translate("fastxent/_kernels.pyx", setup_py.DIRECTIVES, target)


def translate(source, directives, target):
    """Make C of `source`, in which every #line names the function too: fused types share their lines."""
    options = [f"--directive={name}={value}" for name, value in directives.items()]
    command = [sys.executable, "-m", "cython", "--line-directives", *options, "-I", "fastxent", "-o", target, source]
    subprocess.run(command, cwd=ROOT, check=True)
    function, lines = "", []
    for line in target.read_text().splitlines():
        if start := re.match(r"static .*?((?:__pyx_fuse_[\d_]+)?__pyx_f_\w+)\(.*\{$", line):
            function = start[1]
        lines.append(re.sub(r'^#line (\d+) ".*?(\w+\.pxi)"', rf'#line \1 "\2 {function}"', line))
    target.write_text("\n".join(lines))
    places = re.findall(r'^#line (\d+) "(\S+) (\w+)"', "\n".join(lines), re.MULTILINE)
    return {Loop(file, int(line), function) for line, file, function in places}


def what_gcc_says(source, extension, notes):
    """Loop -> GCC's notes on all its copies, when it compiles `source` as setuptools would compile the extension."""
    includes = [f"-I{path}" for path in (ROOT / "fastxent", *extension.include_dirs, sysconfig.get_path("include"))]
    options = ["-w", "-fwrapv", "-fPIC", *extension.extra_compile_args, *LATE, f"-fopt-info-vec-loop-optimized={notes}"]
    subprocess.run(["gcc", "-S", "-o", notes.with_suffix(".s"), *options, *includes, source], check=True)
    said = {}
    for line in notes.read_text().splitlines():
        if note := re.match(r"(\S+) (\w+):(\d+):\d+: optimized: +(.*)", line):
            said.setdefault(Loop(note[1], int(note[3]), note[2]), []).append(note[4])
    return said


def is_simd(loop, notes, width):
    """Fills and copies become calls of memset and memcpy."""
    wanted = f"loop vectorized using {width} byte vectors", "split to 0 loops and "
    copies = sum(any(part in note for part in wanted) for note in notes)
    return copies >= (COPIES if loop.function.endswith(UNROLLED) else 1)


@pytest.mark.parametrize("level", LEVELS)
def test_hot_loops_are_simd_code(level, setup_py, translated, tmp_path):
    ending, width = LEVELS[level]
    extension = next(each for each in setup_py.extensions() if each.name == f"fastxent._kernels{ending}")
    assert not ending or (ROOT / extension.sources[0]).read_text().splitlines()[1:] == ['include "_kernels.pyx"']
    (source, loops), hot = translated, hot_loops(level)
    loops = {loop for loop in loops if (loop.file, loop.line) in hot and not loop.in_double}
    assert {(loop.file, loop.line) for loop in loops} == hot
    said = what_gcc_says(source, extension, tmp_path / "notes")
    narrow = [loop for loop in sorted(loops) if not is_simd(loop, said.get(loop, ()), width)]
    assert not narrow, "\n".join(f"{loop.file}:{loop.line}, {loop.function}: {said.get(loop)}" for loop in narrow)
