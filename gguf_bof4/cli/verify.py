"""bof4 verify: checks the tensors of a file."""

from __future__ import annotations

from typing import Annotated

import typer

from gguf_bof4.cli.model_file import HELP, local_path
from gguf_bof4.errors import UserError
from gguf_bof4.progress import progress_bar


def verify(
    file: Annotated[str, typer.Argument(metavar="FILE", help=HELP)],
) -> None:
    """Decode every BOF4 tensor in Python and in C, compare the bits, and check products against float64.

    Outlier lists are checked, too, and are part of the products.
    """
    from gguf_bof4 import verify as checking
    from gguf_bof4.gguf_files.model import open_model

    model = open_model(local_path(file))
    tensors = checking.bof4_tensors(model)
    if not tensors:
        raise UserError(f"{file} holds no BOF4 tensors: there is nothing to verify")
    checks = []
    with progress_bar("verifying") as progress:
        for check in checking.verify(model):
            checks.append(check)
            progress("verifying", len(checks), len(tensors))
    weights = sum(c.tensor.n_weights for c in checks)
    worst = max(checks, key=lambda c: c.product_error)
    outliers = sum(c.n_outliers for c in checks)
    listed = f", {outliers:,} outliers" if outliers else ""
    print(
        f"{file}: {len(checks)} tensors, {weights:,} weights{listed}: Python and C decode the same bits; "
        f"products are within {worst.product_error:.1e} of float64 (largest at {worst.tensor.name})"
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(verify)
