"""The gates of `benchmarks/`: each says no to what is dearer, and to having measured nothing."""

import json

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


def test_other_versions_are_not_compared_but_can_be_stored(stored, monkeypatch):
    monkeypatch.setattr(instructions, "environment", lambda: "elsewhere")
    with pytest.raises(SystemExit, match=r"Nothing was compared: there are counts for here, but here is elsewhere"):
        instructions.main([])
    assert instructions.main(["--update"]) == 0
    assert json.loads(stored.read_text()) == {"here": STORED, "elsewhere": STORED}
    assert instructions.main([]) == 0


def test_valgrind_is_missed(stored, monkeypatch):
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="Nothing was measured: valgrind is not installed"):
        instructions.main([])


def test_the_fixed_paths_are_the_stored_ones(configuration):
    for counts in json.loads(instructions.STORED.read_text()).values():
        assert sorted(counts) == sorted(instructions.make_calls())


@pytest.fixture
def revisions(monkeypatch):
    """Revisions that are named by their first letters, and what asv measures of each."""
    numbers = {"base": {"a", "b"}, "head": {"a", "b", "new"}}
    continuous = pytest.importorskip("asv.commands.continuous")
    monkeypatch.setattr(compare, "revision", lambda name: {"HEAD": "head"}.get(name, name))
    monkeypatch.setattr(compare, "measured", numbers.__getitem__)
    monkeypatch.setattr(compare.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(continuous.Continuous, "run", lambda *_, **__: numbers.get("status", 0))
    return numbers


def test_comparison_says_what_asv_says(revisions):
    assert compare.main(["base"]) == 0
    revisions["status"] = True
    assert compare.main(["base"]) == 1


def test_a_comparison_of_nothing_fails(revisions):
    with pytest.raises(SystemExit, match="Nothing was measured: HEAD is HEAD"):
        compare.main(["HEAD"])
    revisions["head"] = {"a"}
    with pytest.raises(SystemExit, match="No longer measured: b"):
        compare.main(["base"])
    revisions["head"] = set()
    with pytest.raises(SystemExit, match="Nothing was compared"):
        compare.main(["base"])


def test_rows_of_what_was_not_chosen_are_left_out(capsys):
    compare.WithoutGaps().write(
        "| | 1.0s | 1.1s | 1.10 | a |\n|   | n/a  | n/a  | n/a  | b |\n| ! | 1.0s | n/a | n/a | c |\n"
    )
    assert capsys.readouterr().out == "| | 1.0s | 1.1s | 1.10 | a |\n| ! | 1.0s | n/a | n/a | c |\n"


def test_unknown_revisions_are_named():
    with pytest.raises(SystemExit, match="Nothing was measured: no-such-revision is no revision"):
        compare.revision("no-such-revision")
