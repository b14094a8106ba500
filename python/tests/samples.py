"""The blocks of Python code in the documents.

The pages of `docs/src/guide/recipes` are programs of other packages. Each has one block, which
`tests/recipes` runs. `tests/optimizer/test_readme.py` runs the blocks of all other documents.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "src" / "guide" / "recipes"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def documents() -> list[Path]:
    """The READMEs and the pages of the book, without the recipes."""
    pages = sorted((ROOT / "docs" / "src").glob("**/*.md"))
    others = [page for page in pages if page.parent != RECIPES]
    return [ROOT / "README.md", ROOT / "python" / "README.md", *others]


def blocks(path: Path) -> list[tuple[int, str]]:
    """The line before each block that runs, and its code."""
    text = path.read_text(encoding="utf-8")
    return [(text[: found.start()].count("\n") + 1, found[1]) for found in _BLOCK.finditer(text)]
