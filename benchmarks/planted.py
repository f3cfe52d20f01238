"""Do the gates catch what they are for? ``python -m benchmarks.planted`` plants regressions and shows what they say.

Each is a commit on a worktree of its own, which is thrown away: no branch knows of it. The exit status is 0 if all were
caught.
"""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
GATES = {
    "compare": ("benchmarks.compare", "HEAD~1"),
    "instructions": ("benchmarks.instructions",),
}
MARKS = ("WORSE", "DEARER")  # of what a gate refuses, at the ends of its lines


class Plant(NamedTuple):
    """What is replaced in a file, and the gate that has to notice."""

    file: str
    before: str
    after: str
    gate: str


ROWS, ARGUMENTS = "fastxent/_rows.pxi", "fastxent/_problem.py"
SCAN = "        row = scan_blocks(job, s, 0, job.blocks, block, dense, kept, tops, turns)\n"
AGAIN = SCAN.replace("row =", "    row.rest += 0 *").replace("turns)\n", "NULL).rest\n")
LONGER = f"{SCAN}        if s % 20 < 3:\n{AGAIN}"
LOSS = "        put_loss(job, losses.samples[i], <real>values[i], work)\n"
WRONG = LOSS.replace("values[i]", "(values[i] * (1 + 2.0**-21))")
CHECK = "    check_reduction(reduction)\n    x = as_floats(name, logits)\n    if axis is not None:\n"
COPY = CHECK.replace("as_floats(name, logits)", "as_floats(name, logits).copy()")
WAIT = "    sorted(range(31))\n"

PLANTS = {
    "a kernel goes over 15 % of its samples twice": Plant(ROWS, SCAN, LONGER, "compare"),
    "a call takes 10 % more instructions before its kernel": Plant(ARGUMENTS, CHECK, WAIT + CHECK, "instructions"),
    "a temporary array has the logits' size": Plant(ARGUMENTS, CHECK, COPY, "compare"),
    "losses are wrong by 4 ulp": Plant(ROWS, LOSS, WRONG, "compare"),
}


def main():
    results = {name: try_plant(plant) for name, plant in PLANTS.items()}
    width = max(map(len, results))
    for name, refused in results.items():
        said = f"{len(refused)} refused, such as {refused[0]}" if refused else "NOT CAUGHT"
        print(f"{name:{width}} {PLANTS[name].gate:12} {said}")
    return int(not all(results.values()))


def try_plant(plant):
    """The lines of what the gate refused."""
    with worktree() as folder:
        path = folder / plant.file
        text = path.read_text()
        if text.count(plant.before) != 1:
            sys.exit(f"Nothing was planted: {plant.file} has another text than {plant.before!r}")
        path.write_text(text.replace(plant.before, plant.after))
        git("commit", "--all", "--no-verify", "--quiet", f"--message=Plant a regression in {plant.file}", folder=folder)
        if plant.gate == "instructions":  # which counts what lies there
            subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, check=True)
        command = [sys.executable, "-m", *GATES[plant.gate]]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    if done.returncode == 0:
        return []
    last = done.stdout.rpartition("Measuring again")[2]  # what is worse there was so each time
    return [" ".join(line.split()) for line in last.splitlines() if line.endswith(MARKS)]


@contextlib.contextmanager
def worktree():
    """HEAD's files, and the environments of comparisons."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "planted")
        git("worktree", "add", "--detach", "--quiet", folder, "HEAD", folder=ROOT)
        try:
            (ROOT / ".asv").mkdir(exist_ok=True)
            (folder / ".asv").symlink_to(ROOT / ".asv")
            yield folder
        finally:
            git("worktree", "remove", "--force", folder, folder=ROOT)


def git(*arguments, folder):
    identity = ("-c", "user.name=planted", "-c", "user.email=planted@localhost")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)


if __name__ == "__main__":
    sys.exit(main())
