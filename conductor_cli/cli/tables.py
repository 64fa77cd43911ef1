"""Tables for people: nothing is cut, whatever the width of the terminal.

Columns keep their texts whole in one line, but for those that may fold. What does not fit beside
each other is shown one below the other, a block for each row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

RULE: Final = "─"
GAP: Final = 2  # cells between columns
NARROWEST: Final = 16  # cells that a column which folds needs at least


def lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, folds: Collection[str]
) -> list[str]:
    """The lines of a table, none of them wider than ``width`` cells. The first one is its head."""
    widths = _widths(columns, rows, width, folds)
    if widths is None:
        return list(_blocks(columns, rows, width))
    shown = [_joined(columns, widths), RULE * (sum(widths) + GAP * (len(widths) - 1))]
    for row in rows:
        shown += _row(row, widths)
    return shown


def fold(text: str, width: int) -> list[str]:
    """The text in lines of at most ``width`` cells, broken at spaces where there are some."""
    from rich.cells import cell_len, chop_cells

    folded, line = [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if cell_len(longer) <= width:
            line = longer
            continue
        if line:
            folded.append(line)
        *full, line = chop_cells(word, width) or [""]
        folded += full
    return [*folded, line]


def _widths(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, folds: Collection[str]
) -> list[int] | None:
    """How wide each column is; None when they do not fit."""
    from rich.cells import cell_len

    whole = [
        max(map(cell_len, (name, *texts))) for name, *texts in zip(columns, *rows, strict=True)
    ]
    left = width - GAP * (len(whole) - 1)
    left -= sum(each for each, name in zip(whole, columns, strict=True) if name not in folds)
    needed = {n: whole[n] for n, name in enumerate(columns) if name in folds}
    if left < sum(min(each, NARROWEST) for each in needed.values()):
        return None
    narrow_first = sorted(needed.items(), key=lambda item: item[1])
    for place, (n, each) in enumerate(narrow_first):  # what a narrow one leaves, the others get
        whole[n] = min(each, left // (len(needed) - place))
        left -= whole[n]
    return whole


def _row(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    from itertools import zip_longest

    cells = [fold(text, width) for text, width in zip(row, widths, strict=True)]
    for line in zip_longest(*cells, fillvalue=""):
        yield _joined(line, widths)


def _joined(texts: Sequence[str], widths: Sequence[int]) -> str:
    from rich.cells import cell_len

    padded = [
        text + " " * (width - cell_len(text)) for text, width in zip(texts, widths, strict=True)
    ]
    return (" " * GAP).join(padded).rstrip()


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """A line for each column, a block for each row; what is empty is left out."""
    indent = max(map(len, columns)) + GAP
    for number, row in enumerate(rows):
        if number:
            yield ""
        for name, text in zip(columns, row, strict=True):
            for place, line in enumerate(fold(text, max(width - indent, 1)) if text else ()):
                yield f"{'' if place else name:<{indent}}{line}"
