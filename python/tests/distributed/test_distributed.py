"""DDP and FSDP2 under torchrun, on CPU processes that talk through gloo.

They have the bits of one process, and checkpoints load across world sizes.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent
STEPS = 12
HALF = STEPS // 2


def outcomes(program: str, ranks: int, result: Path, *arguments: object) -> list[Any]:
    """What each rank of a program saves."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
    ]
    command = [*launcher, FOLDER / program, "--result", result, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(f"{result}.{rank}") for rank in range(ranks)]


def run(
    ranks: int, kind: str, result: Path, *arguments: object
) -> list[dict[str, dict[str, torch.Tensor]]]:
    """The training's results of all ranks."""
    return outcomes("worker.py", ranks, result, "--kind", kind, *arguments)


def assert_same(
    actual: dict[str, dict[str, torch.Tensor]], expected: dict[str, dict[str, torch.Tensor]]
) -> None:
    assert actual.keys() == expected.keys()
    for name, entries in expected.items():
        assert actual[name].keys() == entries.keys() == {"param", "step", "exp_avg", "exp_avg_sq"}
        for key, value in entries.items():
            assert torch.equal(actual[name][key], value), f"{name}: {key}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    return run(1, "alone", tmp_path_factory.mktemp("alone") / "result")[0]


@pytest.fixture(scope="module")
def alone_assigned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    return run(1, "alone", tmp_path_factory.mktemp("alone") / "result", "--gradients", "assigned")[
        0
    ]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_ranks_have_the_bits_of_one(kind: str, alone: dict, tmp_path: Path) -> None:
    for rank in run(2, kind, tmp_path / "result"):
        assert_same(rank, alone)


def test_three_ranks_have_the_bits_of_one(alone_assigned: dict, tmp_path: Path) -> None:
    # The mean of the same gradient over three ranks does not have its bits, so the test assigns
    # gradients.
    for rank in run(3, "fsdp2", tmp_path / "result", "--gradients", "assigned"):
        assert_same(rank, alone_assigned)


def test_gradients_that_are_still_to_be_added_up(alone_assigned: dict, tmp_path: Path) -> None:
    for rank in run(2, "replicated", tmp_path / "result", "--gradients", "assigned"):
        assert_same(rank, alone_assigned)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    run(
        2,
        "fsdp2",
        folder / "result",
        "--gradients",
        "assigned",
        "--last",
        HALF,
        "--save",
        folder / "saved",
    )
    return folder / "saved"


@pytest.mark.parametrize(
    ("ranks", "kind"), [(1, "alone"), (1, "fsdp2"), (2, "fsdp2"), (3, "fsdp2")]
)
def test_a_checkpoint_of_two_ranks_resumes(
    ranks: int, kind: str, checkpoint: Path, alone_assigned: dict, tmp_path: Path
) -> None:
    arguments = ["--gradients", "assigned", "--first", HALF, "--load", checkpoint]
    for rank in run(ranks, kind, tmp_path / "result", *arguments):
        assert_same(rank, alone_assigned)


@pytest.mark.parametrize("is_synced", [False, True])
def test_masters_need_a_call_after_a_broadcast(is_synced: bool, tmp_path: Path) -> None:
    # torch does not count collective operations as changes in place.
    arguments = ["--sync"] if is_synced else []
    found = outcomes("broadcast.py", 2, tmp_path / "result", *arguments)
    values = [1.0, 1.0] if is_synced else [1.0, 2.0]
    assert all(bool((p == value).all()) for p, value in zip(found, values))
