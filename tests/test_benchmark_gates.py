"""The gates of `benchmarks/`: each says no to what is dearer, and to having measured nothing."""

import importlib
import json
import math
from types import SimpleNamespace
from typing import ClassVar

import pytest

import fastxent as fx
from benchmarks import compare, instructions

STORED = {"a": 1000, "b": 1000}


@pytest.mark.parametrize(
    ("counts", "dearer"),
    [
        ({"a": 1029, "b": 1000}, []),
        ({"a": 1031, "b": 1000}, ["a"]),
        ({"a": 500, "b": 1000}, []),
        ({"a": 1000, "new": 1}, ["new"]),
    ],
)
def test_counts_within_the_tolerance(counts, dearer, capsys):
    assert instructions.compare(counts, STORED) == dearer
    assert ("cheaper: --update" in capsys.readouterr().out) == (counts["a"] == 500)


@pytest.fixture
def configuration():
    """As it was, afterwards."""
    before = fx.get_config()
    yield
    fx.set_config(**before)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Counts of versions that are called here; what is measured are the same."""
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"here": STORED}))
    monkeypatch.setattr(instructions, "STORED", path)
    monkeypatch.setattr(instructions, "environment", lambda: "here")
    monkeypatch.setattr(instructions, "measure", lambda: dict(STORED))
    monkeypatch.setattr(instructions.shutil, "which", lambda name: name)
    return path


def test_the_status_is_that_of_the_comparison(stored, monkeypatch):
    assert instructions.main([]) == 0
    monkeypatch.setattr(instructions, "measure", lambda: STORED | {"b": 1100})
    assert instructions.main([]) == 1


def test_other_versions_are_not_compared_but_can_be_stored(stored, monkeypatch, capsys):
    monkeypatch.setattr(instructions, "environment", lambda: "elsewhere")
    for arguments, status in (([], 1), (["--lenient"], 0)):
        assert instructions.main(arguments) == status
        assert "Nothing was compared: there are counts for here, but here is elsewhere" in capsys.readouterr().err
    assert instructions.main(["--update"]) == 0
    assert json.loads(stored.read_text()) == {"here": STORED, "elsewhere": STORED}
    assert instructions.main([]) == 0


@pytest.mark.parametrize(("arguments", "status"), [([], 1), (["--update"], 1), (["--lenient"], 0)])
def test_valgrind_is_missed(stored, monkeypatch, capsys, arguments, status):
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    assert instructions.main(arguments) == status
    assert capsys.readouterr().err == "Nothing was measured: valgrind is not installed\n"


def test_leniency_is_not_for_what_is_dearer(stored, monkeypatch):
    monkeypatch.setattr(instructions, "measure", lambda: STORED | {"b": 1100})
    assert instructions.main(["--lenient"]) == 1


def test_the_fixed_paths_are_the_stored_ones(configuration):
    for counts in json.loads(instructions.STORED.read_text()).values():
        assert sorted(counts) == sorted(instructions.make_calls())


def measured(**values):
    return {name: compare.Number(value, "seconds") for name, value in values.items()}


@pytest.fixture
def pair(monkeypatch):
    """Two revisions, of which `turns` has what each measurement gives; `asked` what was asked for."""

    class Pair:
        turns: ClassVar = [(measured(a=1, b=1), measured(a=1, b=1, new=1))]
        asked: ClassVar = []

        def __init__(self, base, head):
            assert (base, head) == ("base", "head")

        def measure(self, bench, rounds):
            self.asked.append(bench)
            return self.turns[len(self.asked) - 1]

    monkeypatch.setattr(compare, "revision", lambda name: {"HEAD": "head"}.get(name, name))
    monkeypatch.setattr(compare, "Pair", Pair)
    monkeypatch.setattr(compare, "report", lambda *_: None)
    return Pair


def test_what_looks_worse_each_time_is_a_regression(pair):
    assert compare.main(["base"]) == 0
    pair.asked.clear()
    slow = measured(a=1, b=1), measured(a=1.2, b=1.05)
    pair.turns = [slow] * 3
    assert compare.main(["base"]) == 1
    assert pair.asked == [compare.CHOSEN, ["^a$"], ["^a$"]]


def test_what_looks_worse_once_is_none(pair):
    slow, equal = (measured(a=1), measured(a=1.2)), (measured(a=1), measured(a=1))
    pair.turns = [slow, slow, equal]
    assert compare.main(["base"]) == 0
    assert len(pair.asked) == 3


@pytest.mark.parametrize(
    ("unit", "most", "too_much"),
    [("seconds", 1.1, 1.11), ("times the limit", 1.1, 1.11), ("ulp", 2, 2.01), ("bytes", 1 + 2**23, 2 + 2**23)],
)
def test_margins_of_units(unit, most, too_much):
    before, same, worse = ({"a": compare.Number(value, unit)} for value in (1, most, too_much))
    assert compare.worse(before, same, 1.1) == []
    assert compare.worse(before, worse, 1.1) == ["a"]


def test_the_report_marks_what_is_worse(capsys):
    pytest.importorskip("asv")
    before = {"a": compare.Number(0.001, "seconds"), "b": compare.Number(0, "ulp"), "old": compare.Number(1, "ulp")}
    after = {"a": compare.Number(0.0012, "seconds"), "b": compare.Number(0.51234, "ulp")}
    compare.report(before, after, ["a"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["1.00ms", "1.20ms", "1.200", "a", "WORSE"], ["0", "ulp", "0.512", "ulp", "nan", "b"]]


def test_a_comparison_of_nothing_fails(pair):
    with pytest.raises(SystemExit, match="Nothing was measured: HEAD is HEAD"):
        compare.main(["HEAD"])
    pair.turns = [(measured(a=1, b=1), measured(a=1)), (measured(a=1), measured(b=1))]
    with pytest.raises(SystemExit, match="No longer measured: b"):
        compare.main(["base"])
    with pytest.raises(SystemExit, match="Nothing was compared"):
        compare.main(["base"])


def test_numbers_are_the_least_samples_of_what_was_chosen():
    results = pytest.importorskip("asv.results").Results.unnamed()
    runner = pytest.importorskip("asv.runner")
    made = {
        "name": "time_it", "params": [["1", "2", "3"]], "version": "1", "unit": "seconds", "type": "time",
    }  # fmt: skip
    chosen = importlib.import_module("asv.benchmarks").Benchmarks(SimpleNamespace(benchmark_dir=""), [made], ["1", "2"])

    def add(first, samples):
        values, taken = [first, math.nan, math.nan], [samples, None, None]
        result = runner.BenchmarkResult(values, taken, [samples and 1, None, None], 0, "why", None)
        results.add_result(made, result, record_samples=True, append_samples=True)
        return dict(compare.numbers(chosen, results))

    assert add(5.0, [5.0, 4.0]) == {"time_it(1)": (4.0, "seconds")}
    assert add(3.0, [3.0, 6.0]) == {"time_it(1)": (3.0, "seconds")}
    with pytest.raises(SystemExit, match=r"time_it\(1\) failed\nwhy"):
        add(None, None)


def test_unknown_revisions_are_named():
    with pytest.raises(SystemExit, match="Nothing was measured: no-such-revision is no revision"):
        compare.revision("no-such-revision")
