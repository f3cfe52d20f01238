"""Is the last commit slower, hungrier or less accurate than another one? ``python -m benchmarks.compare BASE``.

Asv builds both, each into an environment of its own, and runs their benchmarks in turns, on one thread. A time is what
the processor took for the least of all samples: what the machine did beside them is in the others. What looks worse is
measured anew, and is a regression if it looks so every time. The exit status is 0 if there is none.
"""

import argparse
import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ".asv/compare"  # one for each side: kept, and built again if the side is another revision than before
CHOSEN = (r"Shapes.*\('cross_entropy', ", r"(Accuracy|Memory).*\('cross_entropy', ")
CONFIRMATIONS = 2
MARGINS = {"bytes": 8 << 20, "ulp": 1.0}  # of numbers that do not vary; a quarter of the logits of a memory benchmark


class Number(NamedTuple):
    """What a benchmark gave."""

    value: float
    unit: str


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
    return compare(Pair(base, head), options)


def revision(name):
    command = ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or sys.exit(f"Nothing was measured: {name} is no revision")


def compare(pair, options):
    """The exit status, or a message that says why there is none to be trusted."""
    before, after = pair.measure(options.bench or CHOSEN, options.rounds)
    if not before.keys() & after.keys():
        sys.exit("Nothing was compared: no benchmark gave a number for both revisions")
    if before.keys() - after.keys():
        sys.exit("No longer measured: " + ", ".join(sorted(before.keys() - after.keys())))
    suspects = worse(before, after, options.factor)
    report(before, after, suspects)
    for _ in range(CONFIRMATIONS):
        if suspects:
            print(f"Measuring again what looks worse: {len(suspects)} of {len(after)}")
            again = pair.measure([f"^{re.escape(name)}$" for name in suspects], options.rounds)
            suspects = worse(*again, options.factor)
            report(*again, suspects)
    print(f"{len(suspects)} of {len(after)} are worse than before, and were so each time")
    return int(bool(suspects))


def worse(before, after, factor):
    """The names of numbers that have grown beyond what their unit allows."""

    def limit(number):
        margin = MARGINS.get(number.unit)
        return number.value * factor if margin is None else number.value + margin

    return [name for name, number in after.items() if name in before and number.value > limit(before[name])]


def report(before, after, suspects):
    from asv.util import human_value

    def text(number):
        known = number.unit in ("seconds", "bytes")
        return human_value(*number) if known else f"{number.value:.3g} {number.unit}"

    for name in sorted(before.keys() & after.keys()):
        old, new = before[name], after[name]
        ratio, mark = new.value / old.value if old.value else math.nan, "WORSE" if name in suspects else ""
        print(f"{text(old):>10} {text(new):>10} {ratio:6.3f} {name} {mark}".rstrip())


class Pair:
    """Two revisions, installed side by side."""

    # Asv is imported here, as it imports this file too, in environments that lack it.

    def __init__(self, *commits):
        from asv.config import Config
        from asv.console import log
        from asv.environment import get_environments
        from asv.repo import get_repo

        os.environ["FASTXENT_NUM_THREADS"] = "1"  # makes times those of the processor
        os.chdir(ROOT)  # what the configuration's paths start from
        log.enable()
        self.config, self.commits, self.environments = Config.load("asv.conf.json"), commits, []
        self.repo = get_repo(self.config)
        for side, commit in zip(("base", "head"), commits, strict=True):
            self.config.env_dir = str(Path(ENVIRONMENTS, side).resolve())
            (environment,) = get_environments(self.config, None)
            environment.create()
            environment.install_project(self.config, self.repo, commit)
            self.environments.append(environment)

    def measure(self, bench, rounds):
        """Numbers of both revisions, by the benchmark's name with its parameters."""
        from asv.benchmarks import Benchmarks
        from asv.console import log
        from asv.results import Results
        from asv.runner import run_benchmarks

        found = Benchmarks.discover(self.config, self.repo, self.environments[:1], self.commits[:1], regex=bench)
        steady = {name for name, benchmark in found.items() if benchmark["unit"] in MARGINS}
        results = [Results.unnamed() for _ in self.environments]
        sides = list(zip(self.environments, results, strict=True))
        log.flush()
        for turn in range(rounds):
            print(f"Round {turn + 1} of {rounds}", flush=True)
            for environment, result in sides if turn % 2 == 0 else sides[::-1]:
                with log.set_level(logging.WARNING):  # else it prints a table of each round
                    run_benchmarks(
                        found.filter_out(steady if turn else ()), environment, results=result,
                        extra_params={"rounds": 1}, record_samples=True, append_samples=turn > 0,
                        launch_method="forkserver",
                    )  # fmt: skip
        return [dict(numbers(found, result)) for result in results]


def numbers(benchmarks, result):
    """What the chosen benchmarks gave, those left out that do not exist in this version or for these parameters."""
    from asv.commands.compare import unroll_result

    for key, benchmark in benchmarks.items():
        params, chosen = benchmark["params"], benchmarks.benchmark_selection[key]
        values, samples = result.get_result_value(key, params), result.get_result_samples(key, params)
        for index, (name, value, taken) in enumerate(unroll_result(key, params, values, samples)):
            if chosen is not None and index not in chosen:
                continue
            if value is None:
                sys.exit(f"Nothing was compared: {name} failed\n{result.stderr[key]}")
            if not math.isnan(value):
                yield name, Number(min(taken) if taken else value, benchmark["unit"])


if __name__ == "__main__":
    sys.exit(main())
