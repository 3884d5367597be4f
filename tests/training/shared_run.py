"""A training run for `test_processes.py`: torchrun shared_run.py FOLDER. Process N leaves weights-N.npy there."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import PartialState
from test_trainer import PLAN, Regression, weights

from tianquan.training.trainer import Trainer, end_processes


class Share:
    """Seven items a step, in two micro-batches, of which this process has every second one."""

    def __getitem__(self, step: int) -> list[list[int]]:
        processes = PartialState(cpu=True)
        items = [step * 10 + n for n in range(7)]
        first, every = processes.process_index, processes.num_processes
        return [items[:4][first::every], items[4:][first::every]]


def main() -> None:
    folder = Path(sys.argv[1])
    objective = Regression()
    objective.dropout.p = 0.0
    Trainer(objective, Share(), replace(PLAN, num_steps=5), folder, log_interval=1).train()
    np.save(folder / f"weights-{PartialState().process_index}.npy", weights(objective))
    end_processes()


if __name__ == "__main__":
    main()
