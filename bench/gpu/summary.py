"""Lines of check.sh's summary, from CSV files. Needs nothing but Python.

summary.py products BENCH.csv       of bof4-bench-cuda: share of the bandwidth, or microseconds
summary.py llama TYPE LLAMA.csv     of llama-bench: tokens per second
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

Row = dict[str, str]


def read(path: str) -> list[Row]:
    """The rows of a CSV file with a header."""
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def products(rows: list[Row]) -> list[str]:
    """A line for each matrix and number of columns, all types beside each other."""
    lines = ["one column: share of the read bandwidth; more columns: time of a product in us"]
    table: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        table.setdefault((row["model"], row["matrices"], row["columns"]), {})[row["type"]] = row
    for (model, matrices, columns), of_type in table.items():
        one = columns == "1"
        values = (
            f"{name} {100 * float(row['share_of_read_bandwidth']):.0f}%" if one else f"{name} {float(row['us']):.1f}"
            for name, row in of_type.items()
        )
        lines.append(f"{model:4}{matrices:8} x{columns:4} {'  '.join(values)}")
    return lines


def llama(weights: str, rows: list[Row]) -> list[str]:
    """Tokens per second of prompts and of generation.

    Args:
        weights: the type, for the line.
    """
    lines = []
    for row in rows:
        prompt, generated = int(row["n_prompt"]), int(row["n_gen"])
        what = f"pp{prompt}" if prompt else f"tg{generated}"
        speed, deviation = float(row["avg_ts"]), float(row["stddev_ts"])
        size = int(row["model_size"]) / 1e9
        lines.append(f"LLAMA-8B {weights:10} {what:6} {speed:10.1f} +- {deviation:.1f} tokens/s, {size:.2f} GB")
    return lines


def main(arguments: list[str]) -> None:
    """Print what the first argument names."""
    if arguments[0] == "products":
        print("\n".join(products(read(arguments[1]))))
    else:
        print("\n".join(llama(arguments[1], read(arguments[2]))))


if __name__ == "__main__":
    main(sys.argv[1:])
