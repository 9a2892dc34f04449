"""Names of models in the cache of the Hugging Face hub, whose folders are called after commits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_REPOSITORY = re.compile(r"models--(?:(?P<organization>.+?)--)?(?P<name>.+)")


def repository_of(folder: Path) -> tuple[str | None, str] | None:
    """Organization and name of the repository that a folder is a snapshot of; None for any other folder.

    Args:
        folder: such as .../models--org--name/snapshots/<commit>.
    """
    if folder.parent.name != "snapshots" or (match := _REPOSITORY.fullmatch(folder.parent.parent.name)) is None:
        return None
    return match["organization"], match["name"]


def use_repository_names(metadata: Any) -> None:
    """Let upstream take the name of the repository where it takes that of the folder: it would be the commit's hash.

    Args:
        metadata: the class gguf.Metadata of the pinned tree, which is changed.
    """
    upstream: Callable[..., Any] = metadata.apply_metadata_heuristic

    def apply(found: Any, card: Any = None, config: Any = None, folder: Path | None = None, n_weights: int = 0) -> Any:
        repository = None if folder is None else repository_of(folder)
        if repository is None:
            return upstream(found, card, config, folder, n_weights)
        organization, name = repository
        found = upstream(found, card, config, Path(name), n_weights)
        if found.organization is None and organization is not None:
            found.organization = metadata.id_to_title(organization)
        return found

    metadata.apply_metadata_heuristic = staticmethod(apply)
