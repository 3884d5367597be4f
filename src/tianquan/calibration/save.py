"""A low-bit folder whose weights were fitted to records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tianquan.backends.native import NativeOps
from tianquan.calibration.calibrated_weights import CalibratedWeights
from tianquan.checkpoint import Checkpoint
from tianquan.checkpoint.loader import TensorFiles
from tianquan.checkpoint.low_bit import save_low_bit
from tianquan.errors import CheckpointError, ParameterError
from tianquan.evaluation.divergence import answer_logits
from tianquan.evaluation.run import RecordSet
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.format import QuantFormat
from tianquan.quantization.recipes import Recipe
from tianquan.request import MediaPolicy
from tianquan.training.examples import build_example

OnStage = Callable[[str, int], None]  # (what begins, how much it is)
OnDone = Callable[[int], None]  # how much of it is done

DEFAULT_MEMORY = 2 << 30  # bytes


def save_calibrated(
    checkpoint: Checkpoint,
    recipe: Recipe,
    output: Path,
    record_sets: Sequence[RecordSet],
    *,
    policy: MediaPolicy | None = None,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    on_stage: OnStage = lambda what, total: None,
    on_done: OnDone = lambda done: None,
) -> list[str]:
    """Write a low-bit folder as `Checkpoint.save_low_bit` does, its weights rounded for these records.

    Args:
        checkpoint: dense.
        recipe: the formats; some are low-bit.
        output: a folder that does not exist yet, or is empty.
        record_sets: conversations with answers, of the kind the model is to be used for; some hundred are enough.
        policy: how their media are prepared.
        threads: of the native backend.
        memory: bytes for tables of activations; with less the records run more often.
        on_stage: called when records or weights begin.
        on_done: called with how many of them are done.

    Returns:
        Names of low-bit weights that no record used, such as those of a tower whose medium does not occur. They are
        rounded to nearest.

    Raises:
        CheckpointError: the checkpoint is a low-bit folder, or the output cannot be written.
        ParameterError: the recipe has no low-bit weight, or there is no record.
        RecordError: a record cannot be used.
    """
    _check(checkpoint, recipe, record_sets)
    num_records = sum(len(one.records) for one in record_sets)
    window = checkpoint.config.language.max_position_embeddings
    done = 0

    def run(model: OmniModel) -> None:
        pairs = ((one, record) for one in record_sets for record in one.records)
        for n, (one, record) in enumerate(pairs, 1):
            example = build_example(checkpoint.processor, record, policy or MediaPolicy(), one.media_root, window)
            answer_logits(model, example)
            on_done(n)
        on_stage("weights", num_weights)
        on_done(done)

    def on_weight(number: int, total: int) -> None:
        nonlocal done
        done = number
        on_done(number)

    weights = CalibratedWeights(
        checkpoint,
        recipe,
        NativeOps(threads),
        run,
        memory,
        lambda n, total: on_stage(f"records, pass {n} of {total}", num_records),
        on_weight,
    )
    num_weights = weights.num_weights
    save_low_bit(checkpoint.folder, checkpoint.config, weights, recipe, output)
    return weights.unseen


def _check(checkpoint: Checkpoint, recipe: Recipe, record_sets: Sequence[RecordSet]) -> None:
    if not isinstance(checkpoint.files, TensorFiles):
        raise CheckpointError(f"{checkpoint.folder}: is a low-bit folder already; calibration starts from the original")
    if not any(isinstance(format, QuantFormat) for _, format in recipe.rules):
        raise ParameterError(
            f"recipe {recipe.name} rounds nothing that records could be of use for; expected int4, int8"
        )
    if not any(one.records for one in record_sets):
        raise ParameterError("calibration needs records, the files given have none")
