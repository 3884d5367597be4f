"""How far a model moves from its reference: the same true answers, token by token, under both.

Legend: T tokens of the assistant in one record, V vocabulary; p the reference's distribution, q the other's.

    KL          mean over tokens of sum_v p(v) (log p(v) - log q(v))
    top-1       share of tokens where both find the same token likeliest
    perplexity  exp of the mean of -log of the true token's probability; the ratio is q's over p's

Prompts are teacher forced: every token is predicted from the true ones before it, keys and values in the cache and
format of the recipe, as when answering. The reference's logits wait in a temporary file, so that two models need not
be in memory together: 4 V bytes a token, 0.5 MB at the official size.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from tianquan.backends.kv_cache import SequenceBatch
from tianquan.errors import ModelError, ParameterError, TianquanError
from tianquan.models.omni_model import OmniModel
from tianquan.request import Prompt
from tianquan.training.examples import Example

_ROWS_AT_ONCE = 16  # of V float64 values, twice: 30 MB at the official size

Float32 = npt.NDArray[np.float32]
MODALITIES = ("text", "image", "audio", "image+audio")


def modality(prompt: Prompt) -> str:
    """Return which media a prompt has: one of MODALITIES."""
    kinds = [kind for kind, media in (("image", prompt.images), ("audio", prompt.audios)) if media]
    return "+".join(kinds) or "text"


def answer_logits(model: OmniModel, example: Example) -> Float32:
    """Return the logits (T, V) that predict each token the loss mask counts.

    Raises:
        ModelError: they are not finite.
    """
    prompt = example.prompt
    images = model.encode_images(prompt.images) if prompt.images else None
    audios = model.encode_audios(prompt.audios) if prompt.audios else []
    hidden = model.embed(prompt, images, audios)
    cache = model.language_model.make_kv_cache(len(hidden))
    first = int(example.loss_mask.argmax())  # the first token the assistant says
    assert example.loss_mask[first], "an example has tokens to predict"
    assert first > 0, "something comes before the first answer"
    rows = [model.forward(hidden[:first], cache, SequenceBatch.alone(first, 0, cache))]
    num_left = len(hidden) - 1 - first  # the last token predicts nothing
    if num_left > 0:
        batch = SequenceBatch.alone(num_left, first, cache)
        rows.append(model.forward(hidden[first:-1], cache, batch, all_rows=True))
    logits = np.concatenate([model.ops.to_numpy(part) for part in rows])[example.loss_mask[first:]]
    if not np.isfinite(logits).all():
        raise ModelError(f"{example.source}: the model's output is not finite; its weights are damaged, verify them")
    return logits


@dataclass(frozen=True)
class Divergence:
    """Sums over tokens of a number of records; they add up."""

    num_tokens: int = 0
    kl: float = 0.0
    num_agreed: int = 0
    loss: float = 0.0  # -log q of the true tokens
    reference_loss: float = 0.0  # -log p

    def __add__(self, other: Divergence) -> Divergence:
        return Divergence(*(mine + theirs for mine, theirs in zip(self._sums(), other._sums(), strict=True)))

    def _sums(self) -> tuple[Any, ...]:
        return (self.num_tokens, self.kl, self.num_agreed, self.loss, self.reference_loss)

    def to_dict(self) -> dict[str, Any]:
        """Return the means, as documented."""
        assert self.num_tokens > 0, "means need tokens"
        return {
            "tokens": self.num_tokens,
            "kl": self.kl / self.num_tokens,
            "top1_agreement": self.num_agreed / self.num_tokens,
            "perplexity": _exp(self.loss / self.num_tokens),
            "reference_perplexity": _exp(self.reference_loss / self.num_tokens),
            "perplexity_ratio": _exp((self.loss - self.reference_loss) / self.num_tokens),
        }


def _exp(nats: float) -> float | None:
    """Return e to the power of `nats`; None where no float is that large: such a model has diverged."""
    try:
        return math.exp(nats)
    except OverflowError:
        return None


def compare_logits(reference: Float32, other: Float32, targets: npt.NDArray[np.int32]) -> Divergence:
    """Return the divergence of logits (T, V) from the reference's, for true tokens (T,)."""
    assert reference.shape == other.shape == (len(targets), reference.shape[1])
    total = Divergence()
    for start in range(0, len(targets), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        p, q = _log_softmax(reference[rows]), _log_softmax(other[rows])
        at = np.arange(len(p)), targets[rows]
        total += Divergence(
            num_tokens=len(p),
            kl=float((np.exp(p) * (p - q)).sum()),
            num_agreed=int((p.argmax(1) == q.argmax(1)).sum()),
            loss=-float(q[at].sum()),
            reference_loss=-float(p[at].sum()),
        )
    return total


def _log_softmax(logits: Float32) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class RecordDivergence:
    """The divergence of one record."""

    modality: str
    divergence: Divergence


class ReferenceLogits:
    """The reference's logits of a list of examples, in a temporary file that goes with the object."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="tianquan-logits-")  # noqa: SIM115  closed by __exit__
        self._records: list[tuple[npt.NDArray[np.int32], tuple[int, int], int]] = []  # token ids, shape, offset

    def __enter__(self) -> ReferenceLogits:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._records)

    def record(self, model: OmniModel, examples: Iterable[Example]) -> Iterator[None]:
        """Run the reference on examples, one at each step of the iterator.

        Raises:
            TianquanError: the disk is full.
        """
        for example in examples:
            logits = np.ascontiguousarray(answer_logits(model, example), np.float32)
            try:
                offset = self._file.seek(0, 2)
                self._file.write(logits.data)
                self._file.flush()
            except OSError as error:
                raise TianquanError(
                    f"the reference's logits cannot be kept in {tempfile.gettempdir()} ({error.strerror}); "
                    "set TMPDIR to a larger disk, or --limit the records"
                ) from error
            self._records.append((example.prompt.token_ids, (len(logits), logits.shape[1]), offset))
            yield

    def compare(self, model: OmniModel, examples: Iterable[Example]) -> Iterator[RecordDivergence]:
        """Run another model on the same examples and compare.

        Raises:
            ParameterError: it has another vocabulary, tokenizer or template.
        """
        for example, (token_ids, shape, offset) in zip(examples, self._records, strict=False):
            if not np.array_equal(example.prompt.token_ids, token_ids):
                raise ParameterError(
                    f"{example.source}: the reference makes other token ids of it; "
                    "expected a reference with the same tokenizer, template and processor"
                )
            logits = answer_logits(model, example)
            if logits.shape != shape:
                raise ParameterError(
                    f"the model has {logits.shape[1]} token ids, the reference {shape[1]}; expected the same vocabulary"
                )
            self._file.seek(offset)
            reference = np.frombuffer(self._file.read(4 * shape[0] * shape[1]), np.float32).reshape(shape)
            targets = example.prompt.token_ids[example.loss_mask]
            yield RecordDivergence(modality(example.prompt), compare_logits(reference, logits, targets))


def by_modality(records: Sequence[RecordDivergence]) -> dict[str, Divergence]:
    """Return the divergence over all records, and over those of each modality that occurs."""
    groups = {"all": sum((record.divergence for record in records), Divergence())}
    for name in MODALITIES:
        members = [record.divergence for record in records if record.modality == name]
        if members:
            groups[name] = sum(members, Divergence())
    return {name: total for name, total in groups.items() if total.num_tokens}
