"""The examples in the READMEs and in the book run, and those that train lower the loss.

Each block runs by itself, in the root of the repository. A block that is marked `python,ignore`
does not run.
"""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
# The loop of an example that leaves its last loss behind.
TRAINING = re.compile(r"^for step in range\(steps\):", re.MULTILINE)


def examples() -> list[Any]:
    found = []
    pages = sorted((ROOT / "docs" / "src").glob("**/*.md"))
    for path in (ROOT / "README.md", ROOT / "python" / "README.md", *pages):
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text[: match.start()].count("\n") + 1
            found.append(pytest.param(match[1], id=f"{path.relative_to(ROOT)}:{line}"))
    return found


@pytest.mark.parametrize("code", examples())
def test_it_runs(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {"__name__": "example"}
    exec(code, names)
    if "loss" in names and TRAINING.search(code):
        loss = names["loss"].item()
        first: dict[str, Any] = {"__name__": "example"}
        # The same after one step: training lowers the loss.
        exec(TRAINING.sub("for step in range(1):", code), first)
        assert loss < 0.5 * first["loss"].item()


def test_the_main_readme_shows_pytorch() -> None:
    first = examples()[0]
    assert first.id.startswith("README.md:") and "DualAdam(model.parameters()" in first.values[0]
    assert TRAINING.search(first.values[0])
