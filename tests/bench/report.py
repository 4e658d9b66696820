"""What the benches print: the machine's facts and an aligned table."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version


def facts(device: str = "cpu") -> dict[str, str | int]:
    """The machine and the libraries, without names of hosts or folders. Loads torch only for a GPU's name."""
    name = device
    if device.startswith("cuda"):
        import torch

        name = torch.cuda.get_device_name(device)
    return {
        "device": name,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "diffusers", "av")},
    }


def show(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]], known: dict[str, str | int]) -> None:
    """Print a title, the facts and a table: the first column to the left, numbers to the right."""
    cells = [[str(head) for head in heads], *([str(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    print(title)
    print(", ".join(f"{key} {value}" for key, value in known.items()))
    print()
    for number, row in enumerate(cells):
        first, *rest = (cell.ljust(width) if index == 0 else cell.rjust(width)
                        for index, (cell, width) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        print("  ".join([first, *rest]).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))
    print()
