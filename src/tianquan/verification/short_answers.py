"""The same short answers from two backends, and a few from the whole model for a person to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tianquan.answer import last
from tianquan.backends.ops import Ops
from tianquan.checkpoint import Checkpoint
from tianquan.config import ModelConfig
from tianquan.llm import GREEDY, LLM
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.recipes import Recipe
from tianquan.request import Completion
from tianquan.verification.built_in_media import conversations
from tianquan.verification.outcome import Outcome, judge

_COMPARED_TOKENS = 8
_SHOWN_TOKENS = 32
# In float32 two backends differ in the order of sums: by 1e-5 in a logit. Where the two likeliest tokens are closer
# than this, either is right.
_MARGIN = 1e-3  # natural log


@dataclass(frozen=True)
class ShortAnswer:
    """Tokens of one answer, and at each how much likelier the first token was than the second."""

    token_ids: tuple[int, ...]
    margins: tuple[float, ...]


def answer(checkpoint: Checkpoint, config: ModelConfig, recipe: Recipe, ops: Ops) -> dict[str, ShortAnswer]:
    """Return the answers to the built-in conversations, of a model with the layers of `config`."""
    llm = LLM(checkpoint, OmniModel(config, checkpoint.weights(recipe, ops), ops), recipe)
    sampling = replace(GREEDY, max_tokens=_COMPARED_TOKENS, ignore_eos=True, logprobs=2)
    return {
        kind: _short(last(llm.stream_chat(messages, sampling=sampling))) for kind, messages in conversations().items()
    }


def _short(completion: Completion) -> ShortAnswer:
    margins = tuple(place.top[0][1] - place.top[1][1] for place in completion.logprobs)
    return ShortAnswer(tuple(completion.token_ids), margins)


def compare_answers(got: dict[str, ShortAnswer], reference: dict[str, ShortAnswer]) -> Iterator[Outcome]:
    """Compare the tokens of answers; a difference between two equally likely tokens is none."""
    for kind, expected in reference.items():
        found = got[kind].token_ids
        pairs = zip(found, expected.token_ids, strict=True)
        first = next((n for n, (mine, theirs) in enumerate(pairs) if mine != theirs), None)
        if first is None:
            detail, holds = f"{len(found)} greedy tokens equal", True
        else:
            margin = expected.margins[first]
            holds = margin < _MARGIN
            detail = (
                f"token {first + 1} of {len(found)} is {found[first]}, the reference's {expected.token_ids[first]}, "
                f"which it finds likelier by {margin:.1e}; counted from {_MARGIN:.0e}"
            )
        yield judge(f"answer, {kind}", holds, detail)


def check_whole_model(checkpoint: Checkpoint, recipe: Recipe, ops: Ops) -> Iterator[Outcome]:
    """Let the whole model answer in the chosen recipe. A person judges the text; the check is that there is one.

    Raises:
        ModelError: the output is not finite.
    """
    llm = LLM(checkpoint, OmniModel(checkpoint.config, checkpoint.weights(recipe, ops), ops), recipe)
    for kind, messages in conversations().items():
        completion = llm.chat(messages, sampling=replace(GREEDY, max_tokens=_SHOWN_TOKENS))
        question = messages[-1]["content"]["text"]
        yield judge(
            f"whole model, {kind}",
            bool(completion.token_ids),
            f"{completion.usage.prompt_tokens} + {completion.usage.completion_tokens} tokens, "
            f"{question!r} -> {completion.text!r}",
        )
