"""Is the last commit slower than another one? ``python -m benchmarks.compare BASE``; the exit status says it.

Asv builds both, measures them in turns and compares; here is chosen what it measures, and seen to that it did: asv
itself is content when no benchmark gave a number for one of the two.
"""

import argparse
import contextlib
import io
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ".asv/compare"  # apart from those that are kept: numbers of an earlier comparison must not count in this one
CHOSEN = (r"Shapes.*\('cross_entropy', ", r"Overhead", r"(Accuracy|Memory).*\('cross_entropy', ")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("base", help="the revision to compare HEAD with")
    parser.add_argument("--bench", action="append", help="regular expression of benchmarks, as for asv; repeatable")
    parser.add_argument("--factor", type=float, default=1.1, help="what counts as slower")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each revision")
    options = parser.parse_args(arguments)
    base, head = revision(options.base), revision("HEAD")
    if base == head:
        sys.exit(f"Nothing was measured: {options.base} is HEAD")
    return compare(base, head, options)


def revision(name):
    command = ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or sys.exit(f"Nothing was measured: {name} is no revision")


def compare(base, head, options):
    """0 if HEAD is no slower, 1 if it is, another number or a message if that is not known."""
    # Imported here, as asv imports this file too, in environments that lack it.
    from asv.commands.continuous import Continuous
    from asv.config import Config

    config = Config.load(ROOT / "asv.conf.json")
    config.results_dir = RESULTS
    shutil.rmtree(ROOT / RESULTS, ignore_errors=True)
    with contextlib.redirect_stdout(WithoutGaps()):
        status = Continuous.run(
            config, branch=head, base=base, factor=options.factor, only_changed=False, bench=options.bench or CHOSEN,
            attribute={"rounds": options.rounds}, record_samples=True, interleave_rounds=True,
        )  # fmt: skip
    before, after = measured(base), measured(head)
    print(f"Measured: {len(before)} numbers of {base[:8]}, {len(after)} of {head[:8]}")
    if not before & after:
        sys.exit("Nothing was compared: no benchmark gave a number for both revisions")
    if before - after:
        sys.exit("No longer measured: " + ", ".join(sorted(before - after)))
    return int(status)


class WithoutGaps(io.TextIOBase):
    """Standard output, but for the rows of parameters that were not chosen, which are in asv's table as well."""

    def __init__(self):
        self.stream = sys.stdout

    def write(self, text):
        kept = [line for line in text.splitlines(keepends=True) if not re.search(r"\| n/a +\| n/a +\| n/a +\|", line)]
        self.stream.write("".join(kept))
        return len(text)

    def flush(self):
        self.stream.flush()


def measured(commit):
    """The benchmarks, with their parameters, that gave a number for a commit."""
    from asv.commands.compare import unroll_result
    from asv.results import iter_results

    return {
        name
        for result in iter_results(str(ROOT / RESULTS))
        if result.commit_hash == commit
        for key in result.get_all_result_keys()
        for params in [result.get_result_params(key)]
        for name, value in unroll_result(key, params, result.get_result_value(key, params))
        if value is not None and not math.isnan(value)
    }


if __name__ == "__main__":
    sys.exit(main())
