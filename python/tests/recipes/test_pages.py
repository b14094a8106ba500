"""Each page of the recipes has its tests."""

from pathlib import Path

from samples import RECIPES


def test_each_recipe_is_tested() -> None:
    pages = {page.stem for page in RECIPES.glob("*.md")}
    tests = {test.stem.removeprefix("test_") for test in Path(__file__).parent.glob("test_*.py")}
    assert pages and pages == tests - {"pages"}
