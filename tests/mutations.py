"""Do the tests notice? Plants small faults one at a time, in a copy of the checkout, and runs the tests on each.

`make mutants` prints which survive. A fault is a text that occurs exactly once in its file, and what replaces it: once
the code has changed, an entry that no longer fits is an error. What changes nothing that is promised is no fault.
Compiled faults are built for the best level alone, and with little optimisation, which takes a third of the time.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastxent import _backends

ROOT = Path(__file__).parents[1]

# Which backend's tests, and the tests: those that fail soonest first, the next ones for what has survived.
CYTHON = ("not numba and not cuda", "fuzz", "odd_inputs elementwise_kernel determinism", "semantics accuracy reference",
          "elementwise_accuracy properties elementwise out backends concurrency")  # fmt: skip
NUMBA = ("numba and not cuda", "odd_inputs", "semantics elementwise_kernel", "reference accuracy determinism")
PYTHON = ("not numba and not cuda", "bad_inputs", "odd_inputs out fuzz", "semantics elementwise modules reference")

# file -> faults in it, and perhaps the test that should notice first: its file, and a part of its name
FAULTS = {
    "fastxent/_rows.pxi": [
        ("(row.rest + 1) * exp_double(row.top - block_top)", "row.rest * exp_double(row.top - block_top)",
         "reference::every_block"),
        ("row.cross -= row.mass * (block_top - row.top)", "row.cross += row.mass * (block_top - row.top)",
         "reference::every_block"),
        ("row.at = b * BLOCK + block_find(", "row.at = block_find(", "reference::largest_logit"),
        ("    if isinf(row.top):\n        row.rest = NAN", "    if row.top == INFINITY:\n        row.rest = NAN",
         "semantics::row_of_only"),
        ("if isnan(read_one(&job.x, sample, j)):", "if False:", "semantics::nan_is_seen"),
        ("g[j] = g[j] - exp_any(p[j]) * <real>total", "g[j] = g[j] + exp_any(p[j]) * <real>total",
         "reference::any_number_of_classes"),
        ("p.z = 2 * job.z_loss * (p", "p.z = job.z_loss * (p", "reference::any_number_of_classes"),
        ("losses.hot[i] * (log_total - losses.below[i])", "losses.hot[i] * log_total", "reference::random"),
        ("losses.count = i + 1", "losses.count = i", "reference::any_number_of_classes"),
        ("    losses.count = 0\n", "", "reference::random"),
        ("row.mass, row.cross = 1, -row.top", "row.mass, row.cross = 1, 0", "reference::any_number_of_classes"),
        ("            block[label - b * BLOCK] = 0\n", "            pass\n", "reference::any_number_of_classes"),
        ("if 0 <= label < job.classes:\n            return False", "if label < job.classes:\n            return False",
         "backends::changed_since"),
    ],
    "fastxent/_gradient.pxi": [
        ("return factor * exp_double(p.tops[b] - p.row.top) if", "return factor if", "reference::every_block"),
        ("(p.hot + t_k) * (rest + (1 - p.e_k))", "(p.hot + t_k) * rest", "reference::any_number_of_classes"),
        ("turns.before, turns.now = s, 1 - turns.now", "turns.before = s", "determinism::large_softmax"),
        ("min(count, <Py_ssize_t>(-<size_t>behind.result % 64 // size))",
         "<Py_ssize_t>(-<size_t>behind.result % 64 // size)", "determinism::large_results"),
        ("    send(turns.sink, behind.result, <const char*>piece, behind.begin * size)\n",
         "    if behind.begin:\n        send(turns.sink, behind.result, <const char*>piece, behind.begin * size)\n",
         "determinism::large_results"),
        ("    if 0 <= k < LANES:\n", "    if 0 <= k < LANES - 1:\n", "determinism::large_results"),
        ("(p.k - b * BLOCK - behind.begin) // LANES", "(p.k - b * BLOCK) // LANES", "determinism::large_results"),
        ("for step in range(behind.steps):", "for step in range(behind.steps - 1):", "determinism::large_results"),
        ("if behind.begin <= p.k - b * BLOCK < after:", "if False:", "determinism::large_results"),
    ],
    "fastxent/_lanes.pxi": [
        ("value = (rest + lost + one) * scale", "value = (rest + lost) * scale", "reference::every_block"),
        ("at[lane] = c_real if value > top[lane] else at[lane]", "at[lane] = c_real",
         "reference::any_number_of_classes"),
        ("<real>NAN if size > largest else rest", "rest", "semantics::row_of_only"),
        ("add_unless(c_real == at[lane], part", "add_unless(False, part", "reference::any_number_of_classes"),
        ("state[REST + lane] = value if rise > zero else state[REST + lane]", "state[REST + lane] = value",
         "odd_inputs::result"),
        ("top[lane] if top[lane] < values[lane]", "values[lane] if top[lane] < values[lane]",
         "reference::any_number_of_classes"),
        ("range(0 if begin > 0 else 1, classes)", "range(1, classes)", "reference::every_block"),
        ("cross - mass * rise if mass != zero else cross", "cross - mass * rise", "accuracy::largest_numbers"),
    ],
    "fastxent/_lane_operations.pxi": [
        ("state[FACTOR + lane] = two_z * lse", "state[FACTOR + lane] = z_loss * lse", "properties::z_term"),
        ("value if label[lane] < zero else g", "g", "semantics::ignored_targets_give"),
        ("= 0 if job.labels[first + lane] == job.ignore_index else <real>NAN", "= 0", "backends::changed_since"),
        ("<real>(job.keep * weight[max(label[lane], 0)])", "<real>(job.keep * weight[0])",
         "semantics::mean_over_class_indices"),
        ("g = g - minus[lane] * q[c * LANES + lane]", "g = g - q[c * LANES + lane]",
         "reference::any_number_of_classes"),
        ("turn = first % LANES  #", "turn = 0  #", "determinism::where_the_gradient_is_stored"),
    ],
    "fastxent/_few_classes.pxi": [
        ("ties = add_unless(x != top, ties, one)", "ties = 0", "reference::any_number_of_classes"),
        ("rest = <real>NAN if size > largest else rest + ties", "rest = rest + ties", "semantics::row_of_only"),
        ("patch = -factor * (rest + (one - e_k))", "patch = -factor * rest", "reference::any_number_of_classes"),
        ("            skip_class(tile + c * LANES, state)\n", "            pass\n", "semantics::ignored_targets_give"),
        ("        skip_lanes(job, first, count, state + PATCH, state)\n", "", "semantics::ignored_targets_give"),
        ("        make_few(tile, 4, state)", "        make_few(tile, 3, state)", "reference::any_number_of_classes"),
        ("and job.spread == 0", "", "semantics::label_smoothing"),
        ("and job.z_loss == 0", "", "properties::z_term"),
    ],
    "fastxent/_short_rows.pxi": [
        ("state[REST + lane] += ones[lane] - 1", "state[REST + lane] += ones[lane]",
         "reference::any_number_of_classes"),
        ("        elif job.operation == CROSS_ENTROPY:\n", "        elif False:\n", "reference::any_number_of_classes"),
        ("stride == job.classes * job.out.itemsize", "True", "determinism::large_results"),
        ("    finish_late_rows(job, (count + STORED - 1) // STORED * STORED, LANES, tile, state, work)\n", "",
         "determinism::large_results"),
        ("        if plain and lane % STORED == 0:", "        if plain and lane % STORED == 1:",
         "determinism::large_results"),
    ],
    "fastxent/_tiles.pxi": [
        ("count == LANES and (classes >= 4 or lane_step == classes):\n            rows",
         "count == LANES:\n            rows", "odd_inputs::nothing_behind"),
        ("smoothed(w, keep, q[c * LANES + lane], spread)", "smoothed(w, keep, q[c * LANES + lane], <real>0)",
         "semantics::label_smoothing"),
        ("lost[lane] += (before - (after - shift)) + (term[lane] - shift)", "lost[lane] += before - (after - shift)",
         "accuracy::side_by_side"),
    ],
    "fastxent/_split.pxi": [
        ("(low.rest + 1) * exp_double(low.top - row.top)", "low.rest * exp_double(low.top - row.top)",
         "reference::few_samples"),
        ("row.rest += low.rest  # 0, or nan", "pass", "reference::segments"),
        ("row.cross -= low.mass * (row.top - low.top)", "row.cross += low.mass * (row.top - low.top)",
         "reference::few_samples"),
    ],
    "fastxent/_tasks.pxi": [
        ("bad[0] = s\n", "bad[0] = begin\n", "determinism::bad_label"),
        ("while s < end:\n        add(&total", "while s < end - 1:\n        add(&total",
         "reference::random_combinations"),
        ("counted += label != job.ignore_index", "counted += 1", "semantics::ignored_targets_give"),
        ("    if turns != NULL:\n        catch_up(job, turns, block)\n", "    pass\n", "determinism::large_results"),
        ("    settle_losses(job, work, block)\n", "", "reference::any_number_of_classes"),
    ],
    "fastxent/_blocks.pxi": [
        ("while start + LANES < count:", "while start + 2 * LANES < count:", "reference::largest_logit"),
        ("(few[0] + few[1]) + (few[2] + few[3])", "(few[0] + few[1]) + few[2]", "reference::any_number_of_classes"),
        ("if step >= behind.steps or step == behind.apart:", "if step == behind.apart:", "determinism::large_results"),
        ("lane >= LANES - counted", "lane > LANES - counted", "reference::any_number_of_classes"),
        ("for lane in range(count - groups * LANES):", "for lane in range(0):", "reference::any_number_of_classes"),
        ("LARGE_SUM = 8 ", "LARGE_SUM = 1 ", "accuracy::tiny_losses_among"),
        ("return others + (rint(total - others) - 1)", "return others", "accuracy::equal_largest"),
    ],
    "fastxent/_numbers.pxi": [
        ("p = p * r + <float>0.16666521", "p = p * r + <float>0.16666", "accuracy::exponentials"),
        ("if x < <float>-87.33654 else", "if x < <float>-89.0 else", "accuracy::smallest_normal"),
        ("<uint32_t>0xFFF + ((magnitude >> 13) & 1)) >> 13", "<uint32_t>0xFFF) >> 13", "accuracy::every_kind"),
        ("        rounded = (bits >> 16) | 0x40\n", "        pass\n", "accuracy::every_kind"),
    ],
    "fastxent/_job.pxi": [
        ("return value * weight if value != 0 else 0", "return value * weight", "semantics::ignored_samples_may"),
        ("return total + error if not isinf(total) else total", "return total + error", "semantics::infinite_loss"),
        ("error[0] += (before - (after - shift)) + (term - shift)", "pass", "sums::exact_to_the_last"),
    ],
    "fastxent/_terms.pxi": [
        ("log_rest = least if p == one else log_rest", "pass", "elementwise::stop_at"),
        ("near if half * y[j] < x[j] < twice * y[j] else apart", "apart", "elementwise_accuracy::divergence"),
        ("product = least if product < least else product", "pass", "elementwise_kernel::terms"),
    ],
    "fastxent/_elementwise.pxi": [
        ("column[j] += f[j]", "column[j] = f[j]", "elementwise_kernel::what_is_broadcast"),
        ("for lane in range(count % LANES):", "for lane in range(0):", "elementwise_kernel::terms"),
    ],
    "fastxent/_simd.h": [
        ("FX(loadu_##s)(source + i)", "FX(loadu_##s)(source)", "determinism::large_results"),
        ("bytes < 64 - begun ? bytes : 64 - begun", "64 - begun", "determinism::large_results"),
        ("((1u << classes % 16) - 1)", "((1u << classes % 16) - 2)", "reference::any_number_of_classes"),
        ("1.04427373f", "1.04427423f", "accuracy::exponentials"),
        ("return (int)classes - ones;", "return 1;", "accuracy::equal_largest"),
        ("0x30001, 0x70005", "0x30001, 0x70004", "determinism::large_results"),
        ("_mm512_set1_epi32(0x7FFF)", "_mm512_set1_epi32(0x8000)", "determinism::large_results"),
    ],
    "fastxent/_watch.pxi": [
        ("set_flag(&watch.stopped)", "pass", "interrupts::long_call"),
        ("block % STRETCH == STRETCH - 1", "block % STRETCH == STRETCH", "interrupts::long_call"),
        ("os.register_at_fork(after_in_child=_find_main_thread)", "pass", "interrupts::forked_by_a_thread"),
    ],
    "fastxent/_team.h": [
        ("fx_team.tasks = tasks, fx_team.next = 0;", "fx_team.tasks = tasks, fx_team.next = 1;",
         "determinism::any_number_of_threads"),
        ("thread = ++fx_team.joined;", "thread = fx_team.joined++;", "determinism::any_number_of_threads"),
        ("if ((mode & ~FX_FLAGS) != FX_PLAIN) fx_set_mode(FX_PLAIN);", "", "environment::arithmetic"),
        ("if ((mode & ~FX_FLAGS) != FX_PLAIN) fx_set_mode(mode);", "", "environment::arithmetic"),
    ],
    "fastxent/_formulas.py": [
        ("rest = (s.rest + s.lost + 1.0) * exp_negative", "rest = (s.rest + s.lost) * exp_negative",
         "reference::every_block"),
        ("limit = infinite(top) & (rest == rest)", "limit = infinite(top)", "semantics::nan_in_a_row"),
        ("return where(infinite(top), math.nan, rest)", "return rest", "semantics::row_of_only"),
        ("* (rest + (1.0 - e_k))", "* rest", "reference::largest_logit"),
        ("1.04427373,", "1.04427423,", "accuracy::exponentials"),
    ],
    "fastxent/_numba_avx512.py": [
        ("power.code, nothing, bits", "power.code, part.code, bits", "accuracy::smallest_normal"),
    ],
    "fastxent/_numba_gradient.py": [
        ("slope * exp_negative(block_top - top)", "slope", "determinism::large_results"),
        ("block.head, block.last = head, tail - LANES", "block.head, block.last = head, tail",
         "determinism::large_results"),
        ("(place != self.block.apart)", "(place == place)", "determinism::large_results"),
        ("self.stage[label - place] = self.before.patch", "pass", "determinism::large_results"),
        ("self.before.s = s\n", "pass\n", "determinism::large_softmax"),
    ],
    "fastxent/_numba_rows.py": [
        ("where(raised, total - 1.0, total)", "total", "reference::largest_logit"),
        ("LARGE_SUM = 8.0 ", "LARGE_SUM = 1.0 ", "accuracy::tiny_losses_among"),
        ("found.rest = others + (ones - 1.0)", "found.rest = others", "accuracy::equal_largest"),
        ("lambda p, g, total: g - exp_any(p) * total)", "lambda p, g, total: g + exp_any(p) * total)",
         "reference::any_number_of_classes and log_softmax_vjp"),
    ],
    "fastxent/_numba_short_rows.py": [
        ("(found.ties - 1)", "found.ties", "reference::any_number_of_classes"),
        ("row.write(j, left, self.zero.like(patch))", "pass", "reference::any_number_of_classes"),
        ("(self.result.distance == self.classes)", "(self.classes == self.classes)", "determinism::large_results"),
    ],
    "fastxent/_numba_split.py": [
        ("(rest + 1.0) * exp_negative(0.0 - fall)", "rest * exp_negative(0.0 - fall)",
         "reference::few_samples and logsumexp"),
        ("(classes + BLOCK * count - 1) // (BLOCK * count) * BLOCK", "classes // (BLOCK * count) * BLOCK",
         "reference::few_samples and logsumexp"),
        ("(index >= self.start) & (index < self.stop)", "(index > self.start) & (index < self.stop)",
         "reference::few_samples and nll_loss"),
    ],
    "fastxent/_numba_sums.py": [
        ("found.total = chunk_sum(losses, weight,", "found.total = chunk_sum(losses, losses,", "reference::random"),
        ("losses.size.like(0), losses.size)", "losses.size.like(0), losses.size - 1)", "reference::random"),
        ("    return s.first, s.total\n", "    return s.first, s.total * 0.0\n", "semantics::mean_over_class_indices"),
        ("            s.total = settle(s.total, s.lost)\n", "", "semantics::mean_over_class_indices"),
    ],
    "fastxent/_numba_trace.py": [
        ("    own[0] = samples.like(0)\n", "    own[0] = samples.like(1)\n", "reference::random"),
        ("most.tasks = counter.data[1]", "most.tasks = counter.data[1] + (1 << 40)", "interrupts::long_call"),
    ],
    "fastxent/_numba.py": [
        ("plain and probs is None)", "plain)", "reference::random"),
        ("return answer[0] if single else _sum(totals)", "return answer[0] if single else float(totals[0])"),
    ],
    "fastxent/_numba_around.py": [
        ("    builder.call(load, [builder.bitcast(plain, byte)])\n", "", "environment::arithmetic"),
        ("    builder.call(load, [builder.bitcast(before, byte)])\n", "", "environment::arithmetic"),
    ],
    "fastxent/_numba_lanes.py": [
        ("total + where(new.top > s.top, ties - 1.0, ties)", "total + ties", "semantics::probabilities_need"),
        ("s.pack.to(FLOAT64) * self.factor)", "s.pack.to(FLOAT64))", "semantics::sample_weight_multiplies"),
    ],
    "fastxent/_numba_tiles.py": [
        ("self.pointer.store_first(self.offset + i, left, rest)", "pass", "determinism::large_results"),
    ],
    "fastxent/_numba_elementwise.py": [
        ("where(x == 1.0, -100.0, at_least(-100.0, log1p_above(0.0 - x)))", "at_least(-100.0, log1p_above(0.0 - x))",
         "elementwise::stop_at"),
        ("close = (y * 0.5 < x) & (x < y * 1.5)", "close = x < x", "elementwise_accuracy::divergence"),
    ],
    "fastxent/_options.py": [
        (" and value <= sys.float_info.max):", "):"),
        ("    if isinstance(value, (bool, np.bool_)):\n        raise", "    if False:\n        raise"),
        ("if abs(number) > 64:", "if abs(number) > 2**40:"),
        ("if not isinstance(value, (int, np.bool_)):", "if isinstance(value, str):"),
    ],
    "fastxent/_problem.py": [
        ("    if _is_masked(value):", "    if False:"),
        ("-2 if ignore_index == -1 else -1", "-1"),
        ("and not _same_place(array, out):", "and False:"),
        ("if not flags.writeable:", "if False:"),
        ("if stride < extent:", "if stride == 0:"),
        ("if bad >= 0:", "if bad > 0:"),
        ("    if ignore_index >= 0:\n", "    if ignore_index > 0:\n"),
        ("    if array.ndim:\n        raise no_scalar", "    if array.ndim > 1:\n        raise no_scalar"),
        ("if weight.shape != (classes,):", "if weight.size != classes:"),
        ("sample_weights = as_constants(", "_ = as_constants("),
    ],
    "fastxent/_elementwise.py": [
        ("if second.shape != first.shape:", "if second.size != first.size:"),
        ("    strides = () if 0 in shape else strides", "    strides = strides"),
        ("if n == 1 and i != axis]", "if n == 1]"),
        ('divisor = x.size if reduction == "mean" else math.prod(x.shape[:1])', "divisor = x.size"),
    ],
    "fastxent/_reduction.py": [
        ("if not isinstance(reduction, str) or reduction not in allowed:", "if reduction not in allowed:"),
        ("total = total / denominator if denominator else math.nan", "total = total / (denominator or 1)"),
        (", where=losses != 0)", ")"),
        ("and abs(total) > _LARGEST[dtype]:", "and total > _LARGEST[dtype]:"),
    ],
    "fastxent/losses.py": [
        ('"label_smoothing", label_smoothing, 0, 1)', '"label_smoothing", label_smoothing, 0, 2)'),
        ('finite_number("z_loss", z_loss, 0, math.inf)', "float(z_loss)"),
    ],
}  # fmt: skip

# Builds the module named last, and no other.
BUILD = """
import runpy, sys
import Cython.Build
cythonize, module = Cython.Build.cythonize, sys.argv.pop()
def one(extensions, **options):
    chosen = [extension for extension in extensions if extension.name == module]
    for extension in chosen:
        extension.extra_compile_args = ["-O1" if flag == "-O3" else flag for flag in extension.extra_compile_args]
    return cythonize(chosen, **options)
Cython.Build.cythonize = one
runpy.run_path("setup.py", run_name="__main__")
"""


def run(copy, *command):
    """A command in the copy, with a cache of its own for what Numba compiles: how it ended, and its last words."""
    environment = os.environ | {
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_CACHE_DIR": str(copy / "cache"),
    }
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True, timeout=3600
        )
    except subprocess.TimeoutExpired:
        return "hangs", ""
    return done.returncode, (done.stdout + done.stderr)[-2000:]


def copied(place):
    """A copy of the checkout with nothing that is compiled."""
    copy = Path(place) / "fastxent"
    left_out = shutil.ignore_patterns(".*", "build", "*.so", "*.c", "__pycache__", "dist", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=left_out)
    return copy


def build(copy, module):
    """The module alone: tests run on what is there."""
    code, words = run(copy, "-c", BUILD, "build_ext", "--inplace", module)
    if code:
        raise SystemExit(words)


def tests_of(file):
    """Those that run what is in a file."""
    if not file.endswith(".py"):
        return CYTHON
    return NUMBA if Path(file).name.startswith(("_numba", "_formulas")) else PYTHON


def failure(copy, files, selected):
    """The first test of some files that fails, or nothing."""
    paths = [f"tests/test_{name}.py" for name in files.split()]
    code, words = run(copy, "-m", "pytest", "-xq", "--no-header", "-p", "no:cacheprovider", "-k", selected, *paths)
    return code and next((line for line in words.splitlines() if line.startswith("FAILED")), f"pytest: {code}")


def noticed(copy, tests, first=()):
    """What fails, or nothing."""
    selected, *groups = tests
    shutil.rmtree(copy / "cache", ignore_errors=True)
    for name in first:
        file, _, part = name.partition("::")
        found = failure(copy, file, f"{part} and {selected}")
        if found:
            return found
    return next(filter(None, (failure(copy, files, selected) for files in groups)), "")


def test_with(copy, module, file, old, new, *first):
    """Plant a fault, run the tests, and take it out again."""
    path = copy / file
    text = path.read_text()
    path.write_text(text.replace(old, new))
    try:
        if path.suffix != ".py":
            build(copy, module)
        return noticed(copy, tests_of(file), first)
    finally:
        path.write_text(text)


def chosen(pattern, most):
    """Some faults, those of Python first: a build with a fault stays until the next one."""
    faults = [(file, *fault) for file, found in FAULTS.items() for fault in found if re.search(pattern, file)]
    for file, old, *_ in faults:
        assert (ROOT / file).read_text().count(old) == 1, f"{file} has {old!r} not once"
    return sorted(random.sample(faults, min(most, len(faults))), key=lambda fault: not fault[0].endswith(".py"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", default="", help="only faults of files that this regular expression finds")
    parser.add_argument("--sample", type=int, default=sys.maxsize, help="only so many, chosen at random")
    parser.add_argument("--unchecked", action="store_true", help="leave out that the tests pass without a fault")
    options = parser.parse_args()
    faults, survivors = chosen(options.file, options.sample), []
    module = f"fastxent.{list(_backends.available_levels().values())[-1]}"
    with tempfile.TemporaryDirectory() as place:
        copy = copied(place)
        if not options.unchecked or faults[0][0].endswith(".py"):
            build(copy, module)
        for tests in () if options.unchecked else {tests_of(file) for file, *_ in faults}:
            failed = noticed(copy, tests)
            assert not failed, failed
        for fault in faults:
            start, (file, old, new, *_) = time.monotonic(), fault
            how = test_with(copy, module, *fault)
            survivors += [] if how else [fault]
            print(f"{time.monotonic() - start:4.0f} s  {file}: {old!r} -> {new!r}: {how or 'SURVIVES'}", flush=True)
    print(f"{len(faults) - len(survivors)} of {len(faults)} faults are noticed")
    return 1 if 20 * len(survivors) > len(faults) else 0


if __name__ == "__main__":
    sys.exit(main())
