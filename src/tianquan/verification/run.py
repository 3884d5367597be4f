"""The checks in order, each isolated: one that fails says so and the others go on, as far as they can."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tianquan.backends import make_ops
from tianquan.backends.ops import Ops
from tianquan.checkpoint import Checkpoint, open_checkpoint
from tianquan.checkpoint.loader import TensorFiles
from tianquan.checkpoint.tensor_list import needed_weights
from tianquan.errors import TianquanError
from tianquan.llm import LLM
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.recipes import Recipe, find_recipe
from tianquan.verification import short_answers, structure, towers
from tianquan.verification.built_in_media import conversations
from tianquan.verification.outcome import Outcome, judge
from tianquan.verification.trace_comparison import TraceFile, compare_trace, stored_recipe

OnStage = Callable[[str, int], None]  # (what begins, how many steps it takes)
OnDone = Callable[[int], None]  # how many of them are done


@dataclass(frozen=True, kw_only=True)
class TraceRequest:
    """A trace of another implementation, and the conversation it was made of."""

    file: TraceFile
    messages: Any
    media_root: Path | None = None
    tolerance: float | None = None


@dataclass(frozen=True, kw_only=True)
class VerificationPlan:
    """What to check.

    folder: the model.
    precision: the recipe to judge; None is the model's own, int4 for a dense checkpoint.
    num_layers: of each tower, where two backends are compared; more take more memory and time.
    whole_model: also load all of it and let it answer.
    """

    folder: Path
    precision: str | None = None
    num_layers: int = 2
    whole_model: bool = True
    threads: int | None = None
    trace: TraceRequest | None = None


class Verification:
    """One run. `outcomes` yields a line for each check as it is done."""

    def __init__(self, plan: VerificationPlan, on_stage: OnStage, on_done: OnDone) -> None:
        self._plan = plan
        self._on_stage = on_stage
        self._on_done = on_done

    def outcomes(self) -> Iterator[Outcome]:
        """Carry out the checks.

        Raises:
            ParameterError: the precision is unknown.
        """
        plan = self._plan
        if plan.precision is not None:
            find_recipe(plan.precision)
        yield from _isolated("tensors", lambda: [structure.check_tensors(plan.folder)])
        try:
            checkpoint = open_checkpoint(plan.folder)
            recipe = checkpoint.recipe(plan.precision)
        except TianquanError as error:
            yield Outcome("FAILED", "checkpoint", str(error))
            yield Outcome("skipped", "everything else", "the checkpoint cannot be opened")
            return
        yield from _isolated("tokens", lambda: structure.check_tokens(checkpoint))
        yield from _isolated("template", lambda: structure.check_template(checkpoint))
        yield from _isolated("first layers", lambda: self._check_layers(checkpoint, recipe))
        yield from _isolated("short answers", lambda: self._check_answers(checkpoint))
        yield from _isolated("weights", lambda: self._check_weights(checkpoint, recipe))
        if plan.whole_model:
            self._on_stage("the whole model", 1)
            yield from _isolated("whole model", lambda: self._check_whole_model(checkpoint, recipe))
        if (trace := plan.trace) is not None:
            self._on_stage("the trace", 1)
            yield from _isolated("trace", lambda: self._check_trace(checkpoint, trace))

    def _native(self, recipe: Recipe) -> Ops:
        return make_ops("native", threads=self._plan.threads, kv_format=recipe.kv_format)

    def _check_layers(self, checkpoint: Checkpoint, recipe: Recipe) -> Iterator[Outcome]:
        """Compare native with reference on the same weights, then the recipe with the original weights."""
        plan = self._plan
        is_dense = isinstance(checkpoint.files, TensorFiles)
        same = find_recipe("float32") if is_dense else recipe
        config = towers.first_layers(checkpoint.config, plan.num_layers)
        weights = needed_weights(config)
        prompt = checkpoint.processor(conversations()["everything"])
        runs = 3 if is_dense else 2
        self._on_stage(f"first {plan.num_layers} layers", runs)
        reference_ops = make_ops("reference", kv_format=same.kv_format)
        reference = towers.run_towers(checkpoint, config, same, reference_ops, prompt, None)
        unknown = checkpoint.processor.tokenizer.special_token_id(checkpoint.processor.settings.tokens.unknown)
        assert unknown is not None, "the processor looked it up"
        yield towers.check_counts(prompt, unknown, reference)
        self._on_done(1)
        native = towers.run_towers(checkpoint, config, same, self._native(same), prompt, reference)
        for tower, error in native.errors(reference).items():
            limit = towers.output_limit(weights, tower, same)
            detail = f"{same.name}, relative error {error:.2e}, at most {limit:.0e}"
            yield judge(f"{tower.replace('_', ' ')}, native and reference", error <= limit, detail)
        self._on_done(2)
        if not is_dense:
            yield Outcome("skipped", f"output in {recipe.name}", "a low-bit folder has no original to compare with")
            return
        rounded = towers.run_towers(checkpoint, config, recipe, self._native(recipe), prompt, reference)
        for tower, error in rounded.errors(reference).items():
            limit = towers.output_limit(weights, tower, recipe)
            detail = f"relative error {error:.2e}, at most {limit:.0e}"
            yield judge(f"{tower.replace('_', ' ')} output in {recipe.name}", error <= limit, detail)

    def _check_whole_model(self, checkpoint: Checkpoint, recipe: Recipe) -> Iterator[Outcome]:
        yield from short_answers.check_whole_model(checkpoint, recipe, self._native(recipe))

    def _check_answers(self, checkpoint: Checkpoint) -> Iterator[Outcome]:
        if not isinstance(checkpoint.files, TensorFiles):
            yield Outcome("skipped", "short answers", "low-bit weights: the native backend also rounds activations")
            return
        plan, recipe = self._plan, find_recipe("float32")
        config = towers.first_layers(checkpoint.config, plan.num_layers)
        self._on_stage("short answers", 2)
        reference_ops = make_ops("reference", kv_format=recipe.kv_format)
        reference = short_answers.answer(checkpoint, config, recipe, reference_ops)
        self._on_done(1)
        native = short_answers.answer(checkpoint, config, recipe, self._native(recipe))
        self._on_done(2)
        yield from short_answers.compare_answers(native, reference)

    def _check_weights(self, checkpoint: Checkpoint, recipe: Recipe) -> Iterator[Outcome]:
        if not isinstance(checkpoint.files, TensorFiles):
            yield Outcome("skipped", f"weights in {recipe.name}", "a low-bit folder has no original to compare with")
            return
        self._on_stage("every weight", len(needed_weights(checkpoint.config)))
        yield from towers.check_weights(checkpoint, recipe, self._native(recipe), lambda done, _: self._on_done(done))

    def _check_trace(self, checkpoint: Checkpoint, request: TraceRequest) -> Iterator[Outcome]:
        recipe = stored_recipe(checkpoint)
        ops = self._native(recipe)
        llm = LLM(checkpoint, OmniModel(checkpoint.config, checkpoint.weights(recipe, ops), ops), recipe)
        trace = llm.trace(request.messages, media_root=request.media_root)
        is_dense = isinstance(checkpoint.files, TensorFiles)
        yield from compare_trace(trace, request.file, is_dense, request.tolerance)


def _isolated(name: str, check: Callable[[], Iterable[Outcome]]) -> Iterator[Outcome]:
    """Yield what a check finds; an error of it is an outcome, not the end."""
    try:
        yield from check()
    except TianquanError as error:
        yield Outcome("FAILED", name, str(error))
    except MemoryError:
        yield Outcome("FAILED", name, "not enough memory; ask for fewer layers, or leave the whole model out")
