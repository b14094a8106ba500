"""The examples in the documentation run, and train."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def examples() -> list[Any]:
    found = []
    for path in (ROOT / "README.md", ROOT / "python" / "README.md"):
        for match in re.finditer(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
            line = path.read_text()[: match.start()].count("\n") + 1
            found.append(pytest.param(match[1], id=f"{path.relative_to(ROOT)}:{line}"))
    return found


@pytest.mark.parametrize("code", examples())
def test_it_runs(code: str) -> None:
    names: dict[str, Any] = {}
    exec(code, names)
    if "loss" in names:
        loss = names["loss"].item()
        first: dict[str, Any] = {}
        # The same after one step: training lowers the loss.
        exec(re.sub(r"for step in range\(steps\)", "for step in range(1)", code), first)
        assert loss < 0.5 * first["loss"].item()


def test_the_main_readme_shows_pytorch() -> None:
    assert any("DualAdam(model.parameters()" in example.values[0] for example in examples()[:1])
