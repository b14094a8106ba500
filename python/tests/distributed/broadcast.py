"""Broadcasts a parameter with a master between two steps, on the ranks that torchrun starts.

`test_distributed.py` starts it.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist

from dualadam.torch import DualAdam


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sync", action="store_true")
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()

    dist.init_process_group("gloo")
    p = torch.nn.Parameter(torch.full((4,), 1.0 + dist.get_rank(), dtype=torch.bfloat16))
    p.grad = torch.zeros_like(p)
    optimizer = DualAdam([p], weight_decay=0, switching_rate=1, master_weights=True)
    optimizer.step()
    with torch.no_grad():
        dist.broadcast(p, 0)
    if arguments.sync:
        optimizer.sync_masters()
    optimizer.step()
    torch.save(p.detach(), f"{arguments.result}.{dist.get_rank()}")
    dist.destroy_process_group()
    # As in worker.py.
    os._exit(0)


if __name__ == "__main__":
    main()
