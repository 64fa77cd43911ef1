"""Tables on terminals of every width: nothing is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from conductor_cli.cli import tables

COLUMNS = ("task", "expression", "error")
WIDTHS = (20, 60, 80, 120, 200)
words = st.text("abc żä日本🎉", max_size=60).map(str.strip)
rows = st.lists(st.tuples(words, words, words), max_size=4)


def test_what_fits_is_shown_side_by_side() -> None:
    shown = tables.lines(COLUMNS, [("greet", "*/30 * * * * *", "no")], 80, ())
    assert shown == [
        "task   expression      error",
        "────────────────────────────",
        "greet  */30 * * * * *  no",
    ]


def test_only_what_may_fold_is_folded() -> None:
    row = ("greet", "*/30 * * * * *", "ValueError: much too long a text for that")
    _, _, *shown = tables.lines(COLUMNS, [row], 46, ("error",))
    assert shown == [
        "greet  */30 * * * * *  ValueError: much too",
        "                       long a text for that",
    ]


def test_what_does_not_fit_side_by_side_is_shown_in_blocks() -> None:
    row = ("a" * 30, "*/30 * * * * *", "")
    assert tables.lines(COLUMNS, [row, row], 40, ()) == [
        f"task        {'a' * 28}",
        "            aa",
        "expression  */30 * * * * *",
        "",
        f"task        {'a' * 28}",
        "            aa",
        "expression  */30 * * * * *",
    ]


def test_wide_characters_are_measured_in_cells() -> None:
    _, _, one, other = tables.lines(COLUMNS, [("日本", "x", ""), ("abcd", "x", "")], 80, ())
    assert (one, other) == ("日本  x", "abcd  x")


@pytest.mark.parametrize("width", WIDTHS)
@given(rows=rows, folds=st.sets(st.sampled_from(COLUMNS)))
def test_no_line_is_too_wide_and_nothing_is_lost(
    width: int, rows: list[tuple[str, str, str]], folds: set[str]
) -> None:
    shown = tables.lines(COLUMNS, rows, width, folds)
    assert max(map(cell_len, shown), default=0) <= width
    everything = "".join(shown)
    for row in rows:
        for character in set("".join(row)) - {" "}:
            wanted = sum(text.count(character) for each in rows for text in each)
            assert everything.count(character) >= wanted


@pytest.mark.parametrize("width", WIDTHS[1:])
@given(rows=rows)
def test_what_may_not_fold_is_whole_on_one_line_where_the_terminal_has_room_for_it(
    width: int, rows: list[tuple[str, str, str]]
) -> None:
    shown = tables.lines(COLUMNS, rows, width, ("error",))
    room = width - len("expression") - tables.GAP
    for task, expression, _ in rows:
        for text in (task, expression):
            assert cell_len(text) > room or any(text in line for line in shown)


@given(text=words, width=st.integers(2, 40))
def test_a_folded_text_has_all_its_words(text: str, width: int) -> None:
    folded = tables.fold(text, width)
    assert max(map(cell_len, folded)) <= width
    assert "".join(folded).replace(" ", "") == text.replace(" ", "")
