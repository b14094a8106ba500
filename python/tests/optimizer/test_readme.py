"""The examples in the READMEs and in the book run, and those that train lower the loss.

Each block runs by itself, in the root of the repository. A block that is marked `python,ignore`
does not run.
"""

import re
from typing import Any

import pytest
from samples import ROOT, blocks, documents

# The loop of an example that leaves its last loss behind.
TRAINING = re.compile(r"^for step in range\(steps\):", re.MULTILINE)


def examples() -> list[Any]:
    return [
        pytest.param(code, id=f"{path.relative_to(ROOT)}:{line}")
        for path in documents()
        for line, code in blocks(path)
    ]


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
