"""Regressions that `benchmarks/planted.py` plants: they fit into the code, are caught, and leave nothing behind."""

import subprocess

import pytest

from benchmarks import planted


@pytest.mark.parametrize("plant", planted.PLANTS.values(), ids=planted.PLANTS)
def test_plants_fit_into_the_code(plant):
    assert (planted.ROOT / plant.file).read_text().count(plant.before) == 1
    assert plant.after != plant.before
    assert plant.gate in planted.GATES


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """With one file, in which every plant is to be planted; its gate refuses what has been."""
    monkeypatch.setattr(planted, "ROOT", tmp_path)
    monkeypatch.setattr(planted, "PLANTS", {"a plant": planted.Plant("file", "good", "bad", "compare")})
    (tmp_path / "gate.py").write_text(
        "bad = open('file').read() == 'bad'; print('it WORSE' * bad); raise SystemExit(bad)"
    )
    monkeypatch.setattr(planted, "GATES", {"compare": ("gate",)})
    (tmp_path / "file").write_text("good")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=good"]):
        planted.git(*command, folder=tmp_path)
    return tmp_path


def state_of(repository):
    commands = (["status", "--porcelain"], ["for-each-ref"], ["rev-parse", "HEAD"], ["worktree", "list"])
    return [subprocess.check_output(["git", *command], cwd=repository) for command in commands]


def test_what_is_planted_is_caught_and_thrown_away(repository, capsys):
    before = state_of(repository)
    assert planted.main() == 0
    assert "1 refused, such as it WORSE" in capsys.readouterr().out
    assert state_of(repository) == before


def test_what_is_not_caught_is_said(repository, monkeypatch, capsys):
    monkeypatch.setattr(planted, "PLANTS", {"a plant": planted.Plant("file", "good", "fair", "compare")})
    assert planted.main() == 1
    assert "NOT CAUGHT" in capsys.readouterr().out


def test_plants_without_ground_are_named(repository, monkeypatch):
    monkeypatch.setattr(planted, "PLANTS", {"a plant": planted.Plant("file", "soil", "bad", "compare")})
    with pytest.raises(SystemExit, match="Nothing was planted: file has another text than 'soil'"):
        planted.main()
