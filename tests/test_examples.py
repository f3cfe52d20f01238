"""The scripts in examples/: each runs, prints what it is about and draws what it offers to draw."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastxent

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXAMPLES = Path(__file__).parents[1] / "examples"
SOURCES = {path.stem: path.read_text() for path in sorted(EXAMPLES.glob("*.py"))}
DRAWING = {name for name, source in SOURCES.items() if '"--plot"' in source}
MISSING = re.compile(r"^ModuleNotFoundError: No module named '(matplotlib|scipy|sklearn)\b", re.MULTILINE)

# What is printed before a number, as a regular expression, and the number.
PRINTED = {
    "coin_tosses": {"most likely bias": 0.6, "95% interval": 0.503, r"\nlikelihood": 7.49},
    "kl_divergence": {r"pairs with D\(p \|\| q\) < 0:": 0, "log 4 =": 1.386294, "fx.kl_div, as in PyTorch": 0.341741},
    "multilabel": {"warm and wet": 0, "warm and wet +0%": 92, "multilabel_soft_margin_loss": 0.09726665},
    "nll_is_cross_entropy": {"no options": 5.1486424, r"no options +\S+": 5.1486424, "summed": 329.51351},
    "perplexity": {r"\n   0": 45, r"\n 500": 7.3376, "frequencies of pairs": 7.1709},
    "segmentation": {r"\n   0": 1.0986, r"\n 150 +\S+": 99.6},
    "softmax_to_cross_entropy": {"mean loss, step by step": 2.0854008, "mean loss, fx.cross_entropy": 2.0854008},
    "torch_criteria": {r"\n +1\.0986": 0.2112, r"\n +0\.6931": 0.1635},
}


def run(name, *arguments):
    """What a script prints when it is run as a user would, but with warnings as errors."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *arguments]
    # The fastxent of these tests, which need not be installed.
    search = os.pathsep.join(filter(None, [str(Path(fastxent.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": search})
    if missing := MISSING.search(done.stderr):
        pytest.skip(f"needs {missing[1]}")
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("name", SOURCES)
def test_example(name, tmp_path):
    printed = run(name)
    assert max(map(len, printed.splitlines())) <= 100
    for label, number in PRINTED.get(name, {}).items():
        found = re.search(rf"{label} +([0-9.]+)", printed)
        assert found, label
        assert float(found[1]) == pytest.approx(number, rel=1e-3), label
    if name in DRAWING:
        plot = tmp_path / "plot.png"
        assert run(name, "--plot", str(plot)) == printed
        assert plot.read_bytes().startswith(PNG_SIGNATURE)


def test_every_example_has_its_numbers():
    assert set(PRINTED) == set(SOURCES)


def test_readme_lists_the_examples():
    listed = re.findall(r"^- \[(.*)\.py\]\((.*)\.py\)(\*?): (.*)$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    summaries = {name: ast.get_docstring(ast.parse(source)).splitlines()[0] for name, source in SOURCES.items()}
    assert sorted(listed) == [(name, name, "*" * (name in DRAWING), summary) for name, summary in summaries.items()]
