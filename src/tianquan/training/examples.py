"""From a record to what a training step takes: a prompt with its media, and which tokens the loss counts.

The loss counts the assistant's turns, the token that ends them included. Where a turn lies in the token ids is
found by assembling the beginnings of the conversation: up to the point where the assistant is about to speak, and up
to where it has spoken. That works for any chat template whose beginnings do not depend on what follows; one that does
not is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tianquan.errors import TianquanError
from tianquan.processing.processor import LoadedMedia, Processor
from tianquan.request import MediaPolicy, Prompt
from tianquan.training.records import Record, RecordError


@dataclass(frozen=True)
class Example:
    """One training example. `loss_mask[t]` says whether token t is to be predicted."""

    prompt: Prompt
    loss_mask: npt.NDArray[np.bool_]  # (T,)
    source: str
    group: str = ""  # a name to report accuracy by: the record's task
    other_targets: npt.NDArray[np.int32] | None = None  # (T,), to be predicted instead of the tokens themselves

    @property
    def targets(self) -> npt.NDArray[np.int32]:
        """What is to be predicted where the mask says so, (T,)."""
        return self.prompt.token_ids if self.other_targets is None else self.other_targets


def build_example(
    processor: Processor, record: Record, policy: MediaPolicy, media_root: Path | None, max_tokens: int
) -> Example:
    """Return the example of a record.

    Args:
        processor: the checkpoint's.
        record: the conversation.
        policy: how media are looked at.
        media_root: folder that relative media paths start from.
        max_tokens: the context window.

    Raises:
        RecordError: media that cannot be used, a conversation over the window, or a template that cannot be masked.
    """
    try:
        media = processor.load_media(record.turns, policy, media_root)
        prompt = processor.assemble(record.turns, media, add_generation_prompt=False)
        if len(prompt.token_ids) > max_tokens:
            raise RecordError(f"{len(prompt.token_ids)} tokens, more than the window of {max_tokens}")
        return Example(prompt, _loss_mask(processor, record, media, prompt), record.source, _group(record))
    except TianquanError as error:
        raise RecordError(f"{record.source}: {error}") from error


def _loss_mask(processor: Processor, record: Record, media: LoadedMedia, prompt: Prompt) -> npt.NDArray[np.bool_]:
    mask = np.zeros(len(prompt.token_ids), bool)
    for n, turn in enumerate(record.turns):
        if turn.role != "assistant":
            continue
        before = processor.assemble(record.turns[:n], media).token_ids
        spoken = processor.assemble(record.turns[: n + 1], media, add_generation_prompt=False).token_ids
        for beginning in (before, spoken):
            if not np.array_equal(prompt.token_ids[: len(beginning)], beginning):
                raise RecordError("the chat template changes earlier turns when later ones follow; it cannot be masked")
        mask[len(before) : len(spoken)] = True
    return mask


def _group(record: Record) -> str:
    task = record.extra.get("task", "")
    return task if isinstance(task, str) else ""
