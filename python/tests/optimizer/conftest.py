"""Fixtures."""

from collections.abc import Callable

import pytest
import torch
from dualadam.torch import DualAdam
from helpers import assert_same, everything


@pytest.fixture
def unchanged() -> Callable[[DualAdam, Callable[[], object], type[BaseException], str], None]:
    """Checks that a call raises, that the text matches, and that the optimizer is unchanged."""

    def check(
        optimizer: DualAdam, call: Callable[[], object], kind: type[BaseException], text: str
    ) -> None:
        before = everything(optimizer)
        with pytest.raises(kind, match=text):
            call()
        assert_same(before, everything(optimizer))

    return check


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
