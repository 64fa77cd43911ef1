"""What the tutorial shows is what the example does."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0][:30])
def test_each_block_of_the_tutorial_is_in_the_example(block: str) -> None:
    example = (ROOT / "examples" / "orders" / "orders.py").read_text()
    squeezed = re.sub(r"\s+|,(?=\s*\))|# fmt: skip", "", example)
    assert re.sub(r"\s+|,(?=\s*\))", "", block) in squeezed


def test_there_are_blocks_to_look_at() -> None:
    assert len(BLOCKS) == 4
