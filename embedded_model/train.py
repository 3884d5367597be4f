"""Train the embedded model, stage after stage, in as many sittings as it takes.

    python -m embedded_model.train FOLDER --stage towers --seconds 1200
    python -m embedded_model.train FOLDER --stage answers --seconds 3600
    python -m embedded_model.train FOLDER --stage finish
    python -m embedded_model.train FOLDER --stage heads --start src/tianquan/assets/embedded
    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m embedded_model.train FOLDER --stage interviews   # two cores

FOLDER/blueprint is the checkpoint that training starts from, FOLDER/STAGE the run of each stage (states, metrics.csv,
loss.png, TensorBoard events). A stage starts from the weights the stage before ended with and goes on where it was
stopped. A training run is resumed under the options it began with.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState

from embedded_model import scene_plans
from embedded_model.blueprint import MAX_SLICES, write_blueprint
from embedded_model.grounding import GroundedObjective, ground
from embedded_model.samples import WEIGHTS, SampleStream
from embedded_model.towers import DenseHeads, DenseObjective, DenseSteps
from tianquan.backends.torch import TorchOps
from tianquan.checkpoint import Checkpoint, open_checkpoint
from tianquan.models.omni_model import OmniModel
from tianquan.processing.messages import parse_messages
from tianquan.quantization.recipes import find_recipe
from tianquan.request import ImagePolicy, MediaPolicy
from tianquan.training.examples import Example, build_example
from tianquan.training.module_tree import ModuleTree
from tianquan.training.objective import AnswerObjective, Item, Objective
from tianquan.training.plan import TrainingPlan
from tianquan.training.records import Record
from tianquan.training.state import load_state, saved_states
from tianquan.training.trainer import Steps, Trainer

PREFIX = "tree."  # of the model's weights among an objective's parameters
HEADS = "heads."  # of the dense heads' among them


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: what it trains on and how."""

    plan: TrainingPlan
    batch_size: int  # conversations, pictures or sounds of a micro-batch
    after: tuple[str, ...]  # the stages whose weights it starts from, later ones over earlier
    inherits: tuple[str, ...] = ("",)  # which of them: how their names begin
    parts: tuple[str, ...] = ("language_model", "vision", "resampler", "audio")  # what a stage of answers trains
    weights: Mapping[str, float] | None = None  # task shares; None = dense targets of the encoders
    max_side: int = 112  # pixels of the largest picture
    max_slices: int = MAX_SLICES  # of a picture; 1 shows it whole, however large it is
    sound_every: int = 2  # of a dense stage: which steps are sounds
    max_objects: int = scene_plans.MAX_OBJECTS  # of a dense stage's pictures
    large: bool = False  # whether its objects are large
    dense_share: float = 0.0  # of a stage of answers: weight of the dense loss beside that of the answers


# Long answers about a whole picture teach more than one word does; reading and listening take longest to learn.
SEEING = {
    **WEIGHTS,
    "describe": 12,
    "follow_up": 12,
    "count": 14,
    "read_digits": 16,
    "read_text": 8,
    "transcribe": 16,
    "spoken_digits": 8,
    "spoken_question": 12,
    "text": 4,
}

MUON = TrainingPlan(
    num_steps=100_000,
    learning_rate=1e-3,
    optimizer="muon",
    schedule="constant",
    warmup_steps=50,
    weight_decay=0.02,
    precision="bfloat16",
)
# Once colours and transcripts come, the questions of where and how many are asked more often.
COUNTING = {
    **SEEING,
    "colour": 4,
    "shape": 5,
    "colour_shape": 5,
    "describe": 10,
    "count": 18,
    "exists": 8,
    "position": 9,
    "compare": 5,
    "relation": 5,
    "read_digits": 20,
    "read_text": 4,
    "transcribe": 12,
    "spoken_digits": 5,
    "spoken_question": 14,
}
# A picture is looked at once and asked about five times, which costs twice a single question.
INTERVIEWS = {
    "interview": 40,
    "spoken_interview": 11,
    "spoken_question": 3,
    "colour": 1,
    "shape": 1,
    "colour_shape": 3,
    "describe": 2,
    "count": 4,
    "exists": 1,
    "position": 1.5,
    "compare": 3,
    "relation": 1.5,
    "read_digits": 18,
    "read_text": 2,
    "two_images": 5,
    "follow_up": 3,
    "transcribe": 10,
    "spoken_digits": 5,
    "spoken_chat": 2,
    "text": 2,
    "film_direction": 2,
    "film_order": 2,
    "film_colour": 1,
    "film_bounces": 2,
}
WHOLE = Stage(plan=MUON, batch_size=96, after=("answers",), weights=COUNTING, max_side=448, max_slices=1)
STAGES: dict[str, Stage] = {
    "towers": Stage(
        plan=replace(MUON, optimizer="adamw", num_steps=900, warmup_steps=200, seed=1),
        batch_size=64,
        after=(),
    ),
    "shapes": Stage(
        plan=replace(MUON, num_steps=2500, learning_rate=3e-3, warmup_steps=20, seed=6),
        batch_size=64,
        after=("towers",),
        inherits=("audio.",),
        sound_every=8,
        max_objects=2,
        large=True,
    ),
    "answers": Stage(plan=replace(MUON, seed=2), batch_size=96, after=("shapes",), weights=SEEING),
    "grounded": replace(WHOLE, plan=replace(MUON, warmup_steps=30, seed=3), dense_share=0.5),
    # By then the encoders name what is there; what is made of it lags behind.
    "reader": replace(
        WHOLE,
        plan=replace(MUON, warmup_steps=30, seed=5),
        after=("grounded",),
        parts=("language_model", "resampler", "audio.projection", "audio.begin_end"),
        weights={**COUNTING, "read_text": 1},
    ),
    "finish": replace(
        WHOLE,
        plan=replace(MUON, num_steps=400, schedule="linear", warmup_steps=20, seed=4),
        after=("grounded", "reader"),
        dense_share=0.25,
    ),
    # On a machine without the states of before: from the model that is in the package (--start), whose dense heads were
    # thrown away. They are learned again before they may pull at the encoders.
    "heads": replace(
        WHOLE,
        plan=replace(MUON, num_steps=80, learning_rate=3e-3, warmup_steps=10, precision="float32", seed=8),
        after=(),
        parts=(),
        dense_share=1.0,
    ),
    "interviews": replace(
        WHOLE,
        plan=replace(MUON, learning_rate=5e-4, precision="float32", seed=9),
        batch_size=128,
        after=("heads",),
        weights=INTERVIEWS,
        dense_share=0.25,
    ),
    # Asked by colour the model found an object among four, asked by shape it did not: its tokens were to be clearer.
    "cells": replace(
        WHOLE,
        plan=replace(MUON, learning_rate=5e-4, precision="float32", seed=11),
        batch_size=128,
        after=("interviews",),
        weights=INTERVIEWS,
        dense_share=0.5,
    ),
    "finding": replace(
        WHOLE,
        plan=replace(MUON, learning_rate=9e-4, precision="float32", seed=12),
        batch_size=128,
        after=("cells",),
        weights=INTERVIEWS,
        dense_share=0.5,
    ),
    "by_shape": replace(
        WHOLE,
        plan=replace(MUON, learning_rate=1e-3, precision="float32", seed=13),
        batch_size=128,
        after=("finding",),
        parts=("language_model", "resampler"),
        weights={"find_by_shape": 1},
    ),
    "drill": replace(
        WHOLE,
        plan=replace(MUON, learning_rate=1e-3, precision="float32", seed=14),
        batch_size=128,
        after=("finding", "by_shape"),
        parts=("language_model", "resampler"),
        weights={"find_by_shape": 3, "count_each": 6, "relate": 3},
    ),
    "settle": replace(
        WHOLE,
        plan=replace(MUON, num_steps=400, schedule="linear", precision="float32", seed=10),
        batch_size=128,
        after=("finding", "drill"),
        weights={**INTERVIEWS, "interview": 26, "find_by_shape": 8, "relate": 5, "count_each": 14},
        dense_share=0.35,
    ),
}


class SampleSteps:
    """Step s: the samples s * batch_size and on, as examples; of several processes each takes its share."""

    def __init__(self, stream: SampleStream, checkpoint: Checkpoint, stage: Stage) -> None:
        self._stream, self._checkpoint, self._stage = stream, checkpoint, stage
        processes = PartialState()
        self._first, self._every = processes.process_index, processes.num_processes

    def __getitem__(self, step: int) -> list[list[Example]]:
        """Return one micro-batch."""
        size = self._stage.batch_size
        return [[self._example(step * size + n) for n in range(self._first, size, self._every)]]

    def _example(self, index: int) -> Example:
        sample = self._stream.sample(index)
        turns = tuple(parse_messages(sample.conversation))
        record = Record(turns, f"sample {index} ({sample.task})", {"task": sample.task})
        window = self._checkpoint.config.language.max_position_embeddings
        policy = MediaPolicy(image=ImagePolicy(max_slices=self._stage.max_slices))
        example = build_example(self._checkpoint.processor, record, policy, None, window)
        return ground(example, sample, self._stream.bank()) if self._stage.dense_share else example


def load_tree(folder: Path) -> tuple[Checkpoint, OmniModel, ModuleTree]:
    """Return the blueprint with all weights trainable."""
    checkpoint = open_checkpoint(folder)
    ops = TorchOps("cuda" if torch.cuda.is_available() else "cpu")
    tree = ModuleTree(checkpoint.weights(find_recipe("float32"), ops))
    model = OmniModel(checkpoint.config, tree, ops)
    model.load_vision()
    model.load_audio()
    return checkpoint, model, tree


def load_stage_weights(tree: ModuleTree, run: Path, inherits: tuple[str, ...] = ("",)) -> None:
    """Put the weights a stage ended with into the tree; parts it did not train stay."""
    state = load_state(saved_states(run)[-1], None)
    weights = {name.removeprefix(PREFIX): w for name, w in state.weights.items() if name.startswith(PREFIX)}
    weights = {name: w for name, w in weights.items() if name.startswith(inherits)}
    unknown = tree.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown, unknown


def load_stage_heads(heads: DenseHeads, run: Path) -> None:
    """Put the dense heads of a stage in place, if it had any: random ones would pull at encoders that are good."""
    state = load_state(saved_states(run)[-1], None)
    weights = {name.removeprefix(HEADS): w for name, w in state.weights.items() if name.startswith(HEADS)}
    if weights:
        missing = heads.load_state_dict(weights, strict=False).missing_keys
        assert all(name.startswith("cells.") for name in missing), missing  # stages before them have none


def train_stage(
    folder: Path, name: str, *, start: Path | None = None, seconds: float = math.inf, num_workers: int = 1
) -> int:
    """Train a stage for some seconds or to its end; return its finished steps.

    Args:
        folder: of all stages.
        name: the stage's.
        start: a checkpoint whose weights a new folder begins with; None begins with untrained ones.
        seconds: after which the stage is stopped, to be resumed later.
        num_workers: processes that draw and speak.
    """
    stage = STAGES[name]
    PartialState(cpu=not torch.cuda.is_available())  # before anything asks how many processes there are
    if not (folder / "blueprint").is_dir():
        if start is None:
            write_blueprint(folder / "blueprint")
        else:
            shutil.copytree(start, folder / "blueprint")
    checkpoint, model, tree = load_tree(folder / "blueprint")
    for before in stage.after:
        load_stage_weights(tree, folder / before, stage.inherits)
    stream = SampleStream("train", seed=stage.plan.seed, weights=stage.weights, max_side=stage.max_side)
    bank = stream.bank()
    if stage.weights is None:
        tree.set_trainable(["vision", "audio"])
        dense = DenseObjective(model, tree, DenseHeads(model, len(bank.phoneme_class), len(bank.word_class)))
        pictures = DenseSteps(stream, stage.batch_size, stage.sound_every, stage.max_objects, stage.large)
        return _train(folder / name, dense, pictures, stage.plan, seconds, num_workers)
    tree.set_trainable(stage.parts)
    objective = AnswerObjective(model, tree)
    if stage.dense_share:
        heads = DenseHeads(model, len(bank.phoneme_class), len(bank.word_class))
        for before in stage.after:
            load_stage_heads(heads, folder / before)
        objective = GroundedObjective(model, tree, heads, stage.dense_share)
    steps = SampleSteps(stream, checkpoint, stage)
    return _train(folder / name, objective, steps, stage.plan, seconds, num_workers)


def _train(
    run: Path, objective: Objective[Item], steps: Steps[Item], plan: TrainingPlan, seconds: float, num_workers: int
) -> int:
    return Trainer(objective, steps, plan, run, num_workers=num_workers, log_interval=20, stop_after=seconds).train()


def main() -> None:
    """Train a stage."""
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument(
        "--start", type=Path, help="checkpoint that a new FOLDER begins with, instead of an untrained one"
    )
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop and save after this time")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw and speak")
    arguments = parser.parse_args()
    done = train_stage(
        arguments.folder,
        arguments.stage,
        start=arguments.start,
        seconds=arguments.seconds,
        num_workers=arguments.workers,
    )
    print(f"{arguments.stage}: {done} steps done")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
