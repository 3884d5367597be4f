"""Turn the last state of a stage into the checkpoint that is shipped, float16 in the official layout.

python -m embedded_model.release FOLDER OUTPUT --stage assure
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from embedded_model.curriculum import STAGES
from embedded_model.train import load_stage_weights, load_start
from tianquan.checkpoint.dense_folder import save_dense
from tianquan.errors import ParameterError
from tianquan.quantization.recipes import find_recipe
from tianquan.training.rounded_weights import settle_weights
from tianquan.training.state import saved_states

CARD = Path(__file__).parent / "card.md"


def release(folder: Path, stage: str, output: Path) -> int:
    """Write the checkpoint of a stage to `output`, in place of what is there; return its size in bytes."""
    if not saved_states(folder / stage):
        raise ParameterError(f"{folder}: has no stage {stage}; train it first")
    checkpoint, _, tree = load_start(folder, stage, has_start=True)
    load_stage_weights(tree, folder / stage)
    rounded = STAGES[stage].rounded
    if rounded is not None:  # what the stage was trained to be right with
        settle_weights(tree, find_recipe(rounded))
    made = output.with_name(f"{output.name}.new")
    if made.exists():
        shutil.rmtree(made)
    save_dense(checkpoint.folder, checkpoint.config, tree, "float16", made)
    processor = json.loads((made / "preprocessor_config.json").read_text(encoding="utf-8"))
    processor["slice_mode"] = STAGES[stage].max_slices > 1
    (made / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n", encoding="utf-8")
    (made / "generation_config.json").write_text(json.dumps({"do_sample": False}) + "\n", encoding="utf-8")
    shutil.copyfile(CARD, made / "README.md")
    if output.exists():
        shutil.rmtree(output)
    made.rename(output)
    return sum(path.stat().st_size for path in output.iterdir())


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description="Write the embedded model as it is shipped.")
    parser.add_argument("folder", type=Path, help="what embedded_model.train wrote")
    parser.add_argument("output", type=Path)
    parser.add_argument("--stage", choices=STAGES, required=True)
    arguments = parser.parse_args()
    size = release(arguments.folder, arguments.stage, arguments.output)
    print(f"{arguments.output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
