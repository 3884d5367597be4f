"""A checkpoint's tokenizer.json in GGUF's terms.

llama.cpp splits text by rules it knows by name, so a checkpoint with another rule cannot be exported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gguf

from tianquan.checkpoint.config_files import JsonFile, read_chat_template
from tianquan.checkpoint.loader import Checkpoint
from tianquan.checkpoint.plain_file import read_text
from tianquan.errors import CheckpointError
from tianquan.processing.labels import printable

# llama.cpp's names of the regular expressions that text is split by before merging; they differ in how many digits
# stay together.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    _SPLIT.replace("DIGITS", r"\p{N}"): "megrez",
    _SPLIT.replace("DIGITS", r"\p{N}{1,3}"): "llama-bpe",
}
_BYTE_LEVEL_ALONE = "gpt-2"
_IGNORES_MERGES = frozenset({"llama-bpe"})  # a word of the vocabulary is one token there, whatever the merges say
# What changes tokens and has no place in the file: of the model, and of an added token.
_OTHER_SPLITS = ("continuing_subword_prefix", "end_of_word_suffix", "unk_token", "fuse_unk")
_OTHER_MATCHES = ("single_word", "lstrip", "rstrip")
_TURN_END, _TEXT_END = "<|turn_end|>", "<|eos|>"


@dataclass(frozen=True, kw_only=True)
class GgufVocabulary:
    """What a GGUF file says of a tokenizer.

    pre: llama.cpp's name of the rule that splits text.
    tokens, types: of every id the model has an embedding for; ids without a token are marked unused.
    merges: "left right", the first merged first.
    end_of_turn: id that ends an answer; end_of_text: another that does, if there is one.
    chat_template: the checkpoint's own.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    end_of_turn: int
    end_of_text: int | None
    chat_template: str


def read_vocabulary(checkpoint: Checkpoint) -> GgufVocabulary:
    """Return the vocabulary of a checkpoint.

    Raises:
        CheckpointError: a tokenizer that llama.cpp would run differently.
    """
    label = str(checkpoint.folder / "tokenizer.json")
    definition = json.loads(read_text(checkpoint.folder / "tokenizer.json"))
    model = definition["model"]
    if definition.get("normalizer") is not None:
        raise CheckpointError(f"{label}: has a normalizer, which llama.cpp does not run; expected none")
    if model.get("type") != "BPE" or model.get("byte_fallback") or model.get("dropout"):
        raise CheckpointError(f"{label}: is no plain byte-level BPE; llama.cpp needs one")
    other = [key for key in _OTHER_SPLITS if model.get(key)]
    if other:
        raise CheckpointError(f"{label}: has {', '.join(other)}, which llama.cpp does not know; expected none")
    pre = _pre_name(definition.get("pre_tokenizer"), label)
    ignores = bool(model.get("ignore_merges"))
    if ignores != (pre in _IGNORES_MERGES):
        raise CheckpointError(
            f"{label}: has ignore_merges {str(ignores).lower()}; llama.cpp's {pre} means "
            f"{str(not ignores).lower()}, and would make other tokens"
        )
    size = checkpoint.config.language.vocab_size
    tokens = [f"[UNUSED{id}]" for id in range(size)]
    types = [int(gguf.TokenType.UNUSED)] * size
    for token, id in model["vocab"].items():
        tokens[id], types[id] = token, int(gguf.TokenType.NORMAL)
    structure = checkpoint.processor.tokenizer.special_token_ids
    for added in definition["added_tokens"]:
        if any(added.get(key) for key in _OTHER_MATCHES):
            raise CheckpointError(
                f"{label}: token {printable(added['content'])!r} is found by {' or '.join(_OTHER_MATCHES)}, which "
                "llama.cpp does not know"
            )
        id = added["id"]
        kind = gguf.TokenType.CONTROL if id in structure else gguf.TokenType.USER_DEFINED
        tokens[id], types[id] = added["content"], int(kind)
    tokenizer = checkpoint.processor.tokenizer
    end = tokenizer.special_token_id(_TURN_END)
    return GgufVocabulary(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        end_of_turn=min(checkpoint.stop_token_ids) if end is None else end,
        end_of_text=tokenizer.special_token_id(_TEXT_END),
        chat_template=read_chat_template(checkpoint.folder, JsonFile.read(checkpoint.folder / "tokenizer_config.json")),
    )


def _pre_name(pre: Any, label: str) -> str:
    parts = pre.get("pretokenizers", [pre]) if isinstance(pre, dict) else []
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True) and not parts[0].get("add_prefix_space"):
        return _BYTE_LEVEL_ALONE
    if kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True) and not parts[1].get("add_prefix_space"):
        pattern = parts[0].get("pattern", {}).get("Regex", "")
        if pattern in _SPLITS and parts[0].get("behavior") == "Isolated" and not parts[0].get("invert"):
            return _SPLITS[pattern]
    found = printable(json.dumps(pre), 160)
    raise CheckpointError(f"{label}: splits text by a rule that llama.cpp has no name for: {found}")
