"""What can be checked of a checkpoint without computing: its tensors, its tokens, its template."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tianquan.checkpoint import Checkpoint
from tianquan.checkpoint.config_files import JsonFile, parse_config
from tianquan.checkpoint.loader import TensorFiles
from tianquan.checkpoint.low_bit import MANIFEST, LowBitFolder
from tianquan.checkpoint.names import is_ignored
from tianquan.checkpoint.plain_file import is_present
from tianquan.checkpoint.tensor_list import required_tensors
from tianquan.errors import PromptError
from tianquan.processing.messages import parse_messages
from tianquan.processing.processor import Processor
from tianquan.request import MediaPolicy
from tianquan.training.examples import build_example
from tianquan.training.records import Record
from tianquan.verification.built_in_media import Messages, conversations, picture
from tianquan.verification.outcome import Outcome, judge

_NAMES_SHOWN = 3
_ROUND_TRIP = "Two red circles, 三个圆形。 naïve 🙂 <|turn_end|>\n\tx = 3.5"  # special strings in text are text


def check_tensors(folder: Path) -> Outcome:
    """Compare the tensors of the files with those the model needs: each there, each used, each in its shape.

    Raises:
        CheckpointError: the config or the files cannot be read.
    """
    config = parse_config(JsonFile.read(folder / "config.json"))
    if is_present(folder / MANIFEST):
        return _check_low_bit(LowBitFolder.open(folder, config))
    files = TensorFiles(folder)
    required = required_tensors(config)
    stored = {name for name in files.tensors if not is_ignored(name)}
    used = {name for name in stored & set(required) if files.tensors[name].shape == required[name]}
    mistakes = [
        f"{words}: {_names(sorted(names))}"
        for words, names in (
            ("missing", set(required) - stored),
            ("not known, not used", stored - set(required)),
            ("of another shape", (stored & set(required)) - used),
        )
        if names
    ]
    num_ignored = len(files.tensors) - len(stored)
    ignored = f", {num_ignored} recomputed tables ignored" if num_ignored else ""
    parameters = sum(math.prod(required[name]) for name in used)
    counts = f"{len(used)} of {len(stored)} tensors used, {len(used)} of {len(required)} needed ones filled{ignored}"
    return judge("tensors", not mistakes, "; ".join([counts, f"{parameters:,} parameters", *mistakes]))


def _check_low_bit(folder: LowBitFolder) -> Outcome:
    num_tensors = sum(len(folder.map_component(component).tensors) for component in folder.entries)
    sizes = sum(folder.component_bytes().values())
    return judge("tensors", True, f"{num_tensors} tensors in {folder.recipe.name}, {sizes:,} bytes, checksums equal")


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def check_tokens(checkpoint: Checkpoint) -> Iterator[Outcome]:
    """Look for the tokens that hold media and end answers, and take text to tokens and back."""
    processor, tokenizer = checkpoint.processor, checkpoint.processor.tokenizer
    found = {token: tokenizer.special_token_id(token) for token in processor.settings.tokens.all()}
    ids = ", ".join(f"{token} {token_id}" for token, token_id in found.items())
    yield judge("media tokens", None not in found.values(), ids)
    ends = ", ".join(map(str, sorted(checkpoint.stop_token_ids)))
    vocab_size = checkpoint.config.language.vocab_size
    yield judge(
        "end tokens",
        all(0 <= token_id < vocab_size for token_id in checkpoint.stop_token_ids),
        f"ids {ends}; the model has {vocab_size:,}",
    )
    token_ids = tokenizer.encode_text(_ROUND_TRIP)
    again = tokenizer.decode(token_ids)
    specials = set(found.values()) | checkpoint.stop_token_ids
    yield judge(
        "text to tokens and back",
        again == _ROUND_TRIP and not specials & set(token_ids),
        f"{len(token_ids)} tokens of {len(_ROUND_TRIP)} characters"
        + ("" if again == _ROUND_TRIP else f"; came back as {again!r}"),
    )


def check_template(checkpoint: Checkpoint) -> Iterator[Outcome]:
    """Run the template on conversations of every kind.

    Raises:
        PromptError: it fails or does not place a medium.
    """
    processor = checkpoint.processor
    lengths = {kind: len(processor(messages).token_ids) for kind, messages in conversations().items()}
    yield judge("template", True, ", ".join(f"{kind} {length} tokens" for kind, length in lengths.items()))
    yield _check_two_pictures(processor)
    answered: Messages = [*conversations()["image"], {"role": "assistant", "content": "red"}]
    window = checkpoint.config.language.max_position_embeddings
    example = build_example(processor, _record(answered), MediaPolicy(), None, window)
    spoken = example.prompt.token_ids[example.loss_mask].tolist()
    yield judge(
        "template ends an answer",
        bool(set(spoken) & checkpoint.stop_token_ids),
        f"an answer is followed by {spoken[len(processor.tokenizer.encode_text('red')) :]}, "
        f"generation stops at {sorted(checkpoint.stop_token_ids)}",
    )


def _check_two_pictures(processor: Processor) -> Outcome:
    """Say whether a turn may have several pictures. A template need not allow it; then each takes a turn of its own."""
    name, content = "two pictures in one turn", {"text": "Which?", "image": [picture(112, 112), picture(84, 112)]}
    try:
        prompt = processor([{"role": "user", "content": content}])
    except PromptError as error:
        return Outcome("skipped", name, str(error))
    return judge(name, len(prompt.images) == 2, f"{len(prompt.token_ids)} tokens")


def _record(messages: Any) -> Record:
    return Record(tuple(parse_messages(messages)), "the built-in conversation")
