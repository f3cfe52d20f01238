"""`docs/guarantees.md`: what holds a promise up exists."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NAMED = re.findall(r"`(\w+\.py)::(\w+)`", (TESTS.parent / "docs" / "guarantees.md").read_text())


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_what_is_named_is_a_test(file, name):
    assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE)


def test_every_promise_of_a_table_names_one():
    rows = [line for line in (TESTS.parent / "docs" / "guarantees.md").read_text().splitlines() if line[:2] == "| "]
    assert len(rows) > 10
    assert [row for row in rows[1:] if "::" not in row] == []
