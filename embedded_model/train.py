"""Train the embedded model, stage after stage, in as many sittings as it takes.

    python -m embedded_model.train FOLDER                                    # from nothing to what is shipped
    python -m embedded_model.train FOLDER --stage answers --seconds 3600     # one of them, for an hour
    python -m embedded_model.train FOLDER --from src/tianquan/assets/embedded --stage heads
    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m embedded_model.train FOLDER    # two cores

FOLDER/blueprint is the checkpoint that training starts from (and FOLDER/blueprint-6-5-layers, say, the one that stages
with a deeper language model or vision encoder go on from), FOLDER/STAGE the run of each stage (states, metrics.csv,
loss.png, TensorBoard events). A stage starts from the weights the stage before ended with and goes on where it was
stopped; without --seconds Ctrl-C stops it, and the same command goes on. With --from the stages before the first
that is named need not be there: what they gave is in the checkpoint.
"""

from __future__ import annotations

import argparse
import filecmp
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState

from embedded_model.blueprint import MAX_SLICES, write_blueprint
from embedded_model.curriculum import SHIPPED, STAGES, stages_before
from embedded_model.deepen import Depth, deepen, depth
from embedded_model.frame_targets import follow, tell_pictures
from embedded_model.grounding import GroundedObjective, ground
from embedded_model.samples import Sample, SampleStream
from embedded_model.stage import Stage
from embedded_model.tasks import RELATION_TASKS, SHEET_TASKS
from embedded_model.towers import DenseHeads, DenseObjective, DenseSteps
from embedded_model.word_targets import count_heard_names, count_names, place_names, size_names
from tianquan.backends.torch import TorchOps
from tianquan.checkpoint import Checkpoint, open_checkpoint
from tianquan.checkpoint.dense_folder import save_dense
from tianquan.errors import ParameterError
from tianquan.kernels.library import KernelLibrary
from tianquan.models.omni_model import OmniModel
from tianquan.processing.messages import parse_messages
from tianquan.processing.tokenizer import Tokenizer
from tianquan.quantization.recipes import find_recipe
from tianquan.request import ImagePolicy, MediaPolicy
from tianquan.training.examples import Example, build_example
from tianquan.training.module_tree import ModuleTree
from tianquan.training.objective import AnswerObjective, Item, Objective
from tianquan.training.plan import TrainingPlan
from tianquan.training.records import Record
from tianquan.training.rounded_weights import round_weights
from tianquan.training.state import load_state, saved_states
from tianquan.training.trainer import Steps, Trainer, end_processes

PREFIX = "tree."  # of the model's weights among an objective's parameters
HEADS = "heads."  # of the dense heads' among them
WEIGHTS = "model.safetensors"  # of a checkpoint


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
        image = ImagePolicy(max_slices=self._stage.max_slices)
        if sample.task in SHEET_TASKS:
            image = ImagePolicy(max_slices=MAX_SLICES, image_detail=("full", "trim")[index % 2])
        policy = MediaPolicy(image=image)
        example = build_example(self._checkpoint.processor, record, policy, None, window)
        example = with_other_targets(example, sample, self._checkpoint.processor.tokenizer)
        return ground(example, sample, self._stream.bank()) if self._stage.dense_share else example


def with_other_targets(example: Example, sample: Sample, tokenizer: Tokenizer) -> Example:
    """Return the example with what is to be predicted beside the answers: what is known where something was seen."""
    if sample.films:
        return follow(example, sample.films[0], tokenizer)
    scenes = [picture.scene for picture in sample.pictures if picture.scene is not None]
    if sample.task in SHEET_TASKS or not scenes:
        return example
    if len(scenes) > 1:
        return tell_pictures(example, scenes, tokenizer)
    tell = {**dict.fromkeys(RELATION_TASKS, place_names), "compare": size_names}.get(sample.task, count_names)
    example = tell(example, scenes[0], tokenizer)
    return count_heard_names(example, scenes[0], sample.sounds, tokenizer) if sample.sounds else example


def load_tree(folder: Path) -> tuple[Checkpoint, OmniModel, ModuleTree]:
    """Return the blueprint with all weights trainable."""
    checkpoint = open_checkpoint(folder)
    ops = TorchOps("cuda" if torch.cuda.is_available() else "cpu")
    tree = ModuleTree(checkpoint.weights(find_recipe("float32"), ops))
    model = OmniModel(checkpoint.config, tree, ops)
    model.load_vision()
    model.load_audio()
    return checkpoint, model, tree


def trained_stages(folder: Path, names: Sequence[str], has_start: bool) -> list[str]:
    """Return those of successive stages that are in the folder, the first one first.

    Args:
        folder: of all stages.
        names: the stages wanted.
        has_start: whether the folder began with a checkpoint that has what missing ones gave.

    Raises:
        ParameterError: one is missing that the weights need.
    """
    there = [name for name in names if saved_states(folder / name)]
    missing = [] if has_start else [name for name in names if name not in there]
    if missing:
        raise ParameterError(
            f"{folder}: has no stage {', '.join(missing)}, which later ones go on from; train it first"
        )
    return there


def load_start(folder: Path, name: str, has_start: bool) -> tuple[Checkpoint, OmniModel, ModuleTree]:
    """Return what a stage starts from: the blueprint with what the stages before it gave, deeper if the stage is.

    Args:
        folder: of all stages, with a blueprint.
        name: the stage's.
        has_start: whether the blueprint was trained already.

    Raises:
        ParameterError: a stage is missing whose weights are needed.
    """
    stage, base = STAGES[name], folder / "blueprint"
    befores = trained_stages(folder, stages_before(name), has_start)
    if _is_shallower(depth(base), stage.depth):
        base = folder / f"blueprint-{stage.depth.language}-{stage.depth.vision}-layers"
        shallow = [before for before in stages_before(name) if _is_shallower(STAGES[before].depth, stage.depth)]
        if not base.is_dir():
            _deepen_start(folder, shallow[-1], has_start, stage.depth, base)
        befores = [before for before in befores if before not in shallow]
    checkpoint, model, tree = load_tree(base)
    for before in befores:
        load_stage_weights(tree, folder / before, stage.inherits)
    return checkpoint, model, tree


def _begin(blueprint: Path, start: Path | None) -> None:
    """Write what training starts from, if it is not there yet.

    Raises:
        ParameterError: it began with other weights than those of `start`.
    """
    if not blueprint.is_dir():
        if start is None:
            write_blueprint(blueprint)
        else:
            shutil.copytree(start, blueprint)
    elif start is not None and not filecmp.cmp(start / WEIGHTS, blueprint / WEIGHTS, shallow=False):
        raise ParameterError(
            f"{blueprint.parent}: began with other weights than those of {start}; name another folder, or go on "
            f"with --from {blueprint}"
        )


def _is_shallower(this: Depth, that: Depth) -> bool:
    return any(layers < wanted for layers, wanted in zip(this, that, strict=True))


def _deepen_start(folder: Path, last: str, has_start: bool, wanted: Depth, output: Path) -> None:
    """Write the checkpoint of a stage with more layers."""
    checkpoint, _, tree = load_start(folder, last, has_start)
    if saved_states(folder / last):
        load_stage_weights(tree, folder / last)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        save_dense(checkpoint.folder, checkpoint.config, tree, "float32", Path(made) / "shallow")
        deepen(Path(made) / "shallow", Path(made) / "deep", wanted)
        (Path(made) / "deep").rename(output)


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
        assert all(name.startswith(("cells.", "owner.")) for name in missing), missing  # stages before them have none


def train_stage(
    folder: Path, name: str, *, start: Path | None = None, seconds: float = math.inf, num_workers: int = 1
) -> int:
    """Train a stage for some seconds or to its end; return its finished steps.

    Args:
        folder: of all stages.
        name: the stage's.
        start: a checkpoint whose weights a new folder begins with, and which has what the stages gave that are not
            there; None begins with untrained ones.
        seconds: after which the stage is stopped, to be resumed later.
        num_workers: processes that draw and speak.
    """
    stage = STAGES[name]
    PartialState(cpu=not torch.cuda.is_available())  # before anything asks how many processes there are
    with PartialState().main_process_first():
        _begin(folder / "blueprint", start)
        checkpoint, model, tree = load_start(folder, name, has_start=start is not None)
    befores = trained_stages(folder, stages_before(name), start is not None)
    stream = SampleStream(
        "train", seed=stage.plan.seed, weights=stage.weights, chinese=stage.chinese, max_side=stage.max_side
    )
    bank = stream.bank()
    if stage.weights is None:
        tree.set_trainable(stage.parts)
        heads = DenseHeads(model, len(bank.phoneme_class), len(bank.word_class))
        for before in befores if stage.inherits == ("",) else ():
            load_stage_heads(heads, folder / before)
        dense = DenseObjective(model, tree, heads, has_cells=not stage.parts or "resampler" in stage.parts)
        pictures = DenseSteps(stream, stage)
        return _train(folder / name, dense, pictures, stage.plan, seconds, num_workers)
    tree.set_trainable(stage.parts)
    if stage.rounded is not None:
        round_weights(tree, find_recipe(stage.rounded), KernelLibrary(threads=1))
    objective = AnswerObjective(model, tree)
    if stage.dense_share:
        heads = DenseHeads(model, len(bank.phoneme_class), len(bank.word_class))
        for before in befores:
            load_stage_heads(heads, folder / before)
        objective = GroundedObjective(model, tree, heads, stage.dense_share)
    steps = SampleSteps(stream, checkpoint, stage)
    return _train(folder / name, objective, steps, stage.plan, seconds, num_workers)


def _train(
    run: Path, objective: Objective[Item], steps: Steps[Item], plan: TrainingPlan, seconds: float, num_workers: int
) -> int:
    return Trainer(objective, steps, plan, run, num_workers=num_workers, log_interval=20, stop_after=seconds).train()


def main() -> None:
    """Train a stage, or all of them."""
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", choices=STAGES, help="one stage; all in order to the shipped one by default")
    parser.add_argument(
        "--from", dest="start", type=Path, help="checkpoint that a new FOLDER begins with, instead of an untrained one"
    )
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop and save after this time")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw and speak")
    arguments = parser.parse_args()
    to_ship = list(STAGES)[: list(STAGES).index(SHIPPED) + 1]
    for name in to_ship if arguments.stage is None else [arguments.stage]:
        done = train_stage(
            arguments.folder,
            name,
            start=arguments.start,
            seconds=arguments.seconds,
            num_workers=arguments.workers,
        )
        print(f"{name}: {done} steps done")
    end_processes()


if __name__ == "__main__":
    main()
