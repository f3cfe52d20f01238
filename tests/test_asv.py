"""What `fastxent bench --asv` puts among a project's results of airspeed velocity."""

import math
import subprocess
from types import SimpleNamespace

import pytest

pytest.importorskip("rich")
pytest.importorskip("asv")
from asv import results
from asv.benchmarks import Benchmarks

from fastxent import _asv, _bench
from fastxent.__main__ import main
from fastxent._peers import Mode


def report(shape, **seconds):
    """As far as times are concerned."""
    made = [SimpleNamespace(contender=name, mode=Mode.LOSS, seconds=value) for name, value in seconds.items()]
    return SimpleNamespace(shape=shape, dtype="float32", threads=1, results=made)


def commit(folder):
    identity = ("-c", "user.name=a", "-c", "user.email=a@localhost")
    subprocess.run(["git", *identity, "commit", "--quiet", "--allow-empty", "--message=a"], cwd=folder, check=True)
    return _asv.head_of(folder)[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of results in a repository; nothing is known about the machine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    path = tmp_path / "results"
    path.mkdir()
    return path


def published(folder):
    """By commit and case, the times that asv would draw."""
    benchmarks = Benchmarks.load(SimpleNamespace(results_dir=str(folder), benchmark_dir=""))
    benchmark = benchmarks[_asv.NAME]
    loaded = list(results.iter_results(str(folder)))
    assert all(result.get_result_keys(benchmarks) == {_asv.NAME} for result in loaded)
    return {result.commit_hash: result.get_result_value(_asv.NAME, benchmark["params"]) for result in loaded}


def test_times_of_each_commit_are_kept(folder):
    first = commit(folder)
    _asv.save(folder, [report((5, 3), fastxent=9.0)])
    _asv.save(folder, [report((5, 3), fastxent=1.0, NumPy=2.0)])  # in place of the one before
    assert published(folder) == {first: [1.0, 2.0]}
    second = commit(folder)
    _asv.save(folder, [report((5, 3), fastxent=3.0), report((2, 4, 3), fastxent=4.0)])
    drawn = published(folder)
    assert [value for value in drawn[first] if value is not None] == [1.0, 2.0]
    assert sorted(value for value in drawn[second] if value is not None and not math.isnan(value)) == [3.0, 4.0]


def test_benchmarks_of_the_project_stay(folder):
    commit(folder)
    own = {"name": "own", "params": [], "version": "1"}
    _asv.util.write_json(folder / "benchmarks.json", {"own": own}, Benchmarks.api_version)
    _asv.save(folder, [report((5, 3), fastxent=1.0)])
    assert set(_asv.util.load_json(folder / "benchmarks.json", Benchmarks.api_version)) == {"own", _asv.NAME}


def test_the_command_saves(folder, monkeypatch):
    commit(folder)
    monkeypatch.setattr(_bench, "measure_shape", lambda shape, *_: report(shape, fastxent=1.0))
    monkeypatch.setattr(_bench, "print_report", lambda *_: None)
    assert main(["bench", "--quick", "--shapes", "5x3", "--asv", str(folder)]) == 0
    assert list(published(folder).values()) == [[1.0]]


@pytest.mark.parametrize("name", ["results", "missing"])
def test_folders_without_a_commit_are_refused(folder, capsys, name):
    with pytest.raises(SystemExit):
        main(["bench", "--quick", "--shapes", "5x3", "--asv", str(folder.parent / name)])
    assert "argument --asv: no commit is found in " in capsys.readouterr().err
