"""Finding a model folder: a local one, the one in this package, or a snapshot of a hub repository."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from tianquan.checkpoint.plain_file import is_present
from tianquan.errors import CheckpointError

_MAX_NAME_BYTES = 255  # of a file: a longer text is a question
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_FOLDER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_.][A-Za-z0-9]+)+")  # megrez-int4, model_v2
# Data only: never code, never pickle.
_PATTERNS = ["*.json", "*.safetensors", "*.jinja"]

EMBEDDED = "embedded"  # the name of the model in this package
_EMBEDDED_FOLDER = Path(__file__).parents[1] / "assets" / EMBEDDED

logger = logging.getLogger(__name__)


def find_folder(model: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a model, downloading a hub repository if that is what `model` names.

    Args:
        model: a folder, `embedded` for the small model in this package, `owner/name` or `owner/name@revision`.
        revision: a branch, tag or commit of the hub repository; pin a commit to get the same bytes always.

    Raises:
        CheckpointError: no such folder, or the download fails.
    """
    path = Path(model)
    if not str(model):
        raise CheckpointError("the model's name is empty; give a model folder or a hub id (owner/name)")
    present = is_present(path)
    if present and path.is_dir():
        if revision is not None:
            raise CheckpointError(f"{path}: is a local folder; a revision belongs to a hub id (owner/name)")
        return path
    text = str(model)
    if text == EMBEDDED and not present:
        if not _EMBEDDED_FOLDER.is_dir():
            raise CheckpointError(
                "this installation has no embedded model; name a model folder or a hub id (owner/name)"
            )
        return _EMBEDDED_FOLDER
    if present:
        found = "a file" if path.exists() else "a link to what is not there"
        raise CheckpointError(f"{text}: is {found}; expected a model folder")
    if text.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(text):
        raise CheckpointError(f"{text}: no such folder; give a model folder or a hub id (owner/name)")
    return _download(text, revision)


def names_model(text: str) -> bool:
    """Return whether a word of the command line names a model rather than asks something.

    A folder that is there, `embedded`, a hub id, or what looks like a path or a folder's name (`megrez-int4`): a
    mistyped one must not become a question. So must not nothing, as an empty variable of a shell gives it.
    """
    if not text:
        return True
    if any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in text.split("/")):
        return False
    looks_like_path = "/" in text or "\\" in text or text.startswith(("~", "."))
    has_spaces = len(text.split()) > 1
    if _FOLDER_NAME.fullmatch(text):
        return True
    return text == EMBEDDED or is_present(Path(text)) or (looks_like_path and not has_spaces)


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    name, _, pinned = hub_id.partition("@")
    if pinned and revision is not None:
        raise CheckpointError(f"{hub_id}: has a revision already; leave out revision {revision!r}")
    revision = pinned or revision
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_PATTERNS))
    except Exception as error:  # its own, and those of whichever HTTP library it runs on
        raise CheckpointError(
            f"{hub_id}: no such folder here, and no download from the hub under that name ({type(error).__name__}); "
            "if it is a folder, check its path; if it is a hub id (owner/name), check the name and the network"
        ) from error
    if revision is None:
        logger.info("%s: no revision given; this is commit %s", name, folder.name)
    return folder
