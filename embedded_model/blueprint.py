"""The embedded model before training: sizes, tokenizer, template and first weights, in the official layout.

    python -m embedded_model.blueprint FOLDER

The patch projection starts as a whitening of patches: their principal components, each of variance one. In raw pixels
the mean colour of a patch drowns its edges; colours are learned at once and shapes hardly ever.

The resampler starts as a map of the picture: query k looks at the k-th cell of a 4 x 4 grid, because its first value
is the position code of the cell's middle and the projections of queries and keys pick the same position channels.
Started at random, queries that all see the same average leave training on a plateau for hours.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from embedded_model.samples import SampleStream
from embedded_model.vocabulary import characters, corpus
from tianquan.checkpoint.config_files import JsonFile, parse_config
from tianquan.checkpoint.layout_files import END_OF_TURN, SPECIAL_TOKENS, preprocessor_config, tokenizer_config
from tianquan.checkpoint.safetensors_file import write_safetensors
from tianquan.checkpoint.tensor_list import required_tensors
from tianquan.config import ModelConfig
from tianquan.models.positions import grid_positions, sincos_positions
from tianquan.processing.image import patchify

NUM_MERGED = 1600  # vocabulary before special tokens: bytes, all characters, common English pieces
CORPUS_LINES = 60_000
QUERY_GRID = 4  # queries a side
SCALE_RESOLUTION = 112  # pixels: 8 x 8 patches
MAX_SLICES = 9
NUM_MELS = 80
PATCH_SIZE = 14
POSITION_SCALE = 0.5
WHITENING_SEED = 11
WHITENING_PICTURES = 600  # 38,400 patches
NOISE_VARIANCE = 0.05  # of a component, pixels from -1 to 1


def build_tokenizer() -> Tokenizer:
    """Return the tokenizer: byte-level BPE, each digit a token of its own so that numbers are read figure by figure."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_MERGED, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    every_character = characters() * 200  # so that each becomes one token, however rare in sentences
    tokenizer.train_from_iterator([*every_character, *corpus(CORPUS_LINES)], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def build_config(vocab_size: int, eos_token_id: int) -> dict[str, Any]:
    """Return config.json."""
    return {
        "architectures": ["MegrezO"],
        "model_type": "megrezo",
        "torch_dtype": "float16",
        "hidden_act": "silu",
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab_size,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "eos_token_id": eos_token_id,
        "query_num": QUERY_GRID**2,
        "patch_size": PATCH_SIZE,
        "vision_config": {
            "hidden_size": 192,
            "intermediate_size": 576,
            "num_hidden_layers": 5,
            "num_attention_heads": 3,
            "image_size": 16 * PATCH_SIZE,  # a slice has at most 16 patches a side
            "patch_size": PATCH_SIZE,
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu_pytorch_tanh",
        },
        "audio_config": {
            "n_mels": NUM_MELS,
            "n_ctx": 1500,
            "n_state": 192,
            "n_head": 3,
            "n_layer": 4,
            "output_dim": 256,
            "avg_pool": True,
            "add_audio_bos_eos_token": True,
        },
    }


# First weights ----------------------------------------------------------------------------------------------
def first_weights(config: ModelConfig, rng: np.random.Generator) -> dict[str, npt.NDArray[np.float32]]:
    """Return the tensors under their official names, float32."""
    num_layers = {"llm.": config.language.num_layers, "vision.": config.vision.num_layers, "audio.": 0}
    num_layers["audio."] = config.audio.num_layers
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in sorted(required_tensors(config).items()):
        if len(shape) == 1:
            values = np.full(shape, 1.0 if name.endswith("weight") else 0.0)
        else:
            values = rng.normal(0.0, _scale(name, shape, num_layers), shape)
        tensors[name] = values.astype(np.float32)
    size = config.audio.hidden_size
    tensors["audio.audio.positional_embedding"] = 0.3 * sincos_positions(config.audio.max_frames, size)
    # Positions as loud as contents: with a table near zero, patches cannot tell who their neighbours are.
    side = config.vision.num_positions_per_side
    tensors["vision.vpm.embeddings.position_embedding.weight"] = POSITION_SCALE * grid_positions(
        side, side, config.vision.hidden_size
    )
    tensors.update(_spatial_resampler(tensors, config))
    weight, bias = whitening(config.vision.hidden_size)
    tensors["vision.vpm.embeddings.patch_embedding.weight"] = weight.reshape(-1, 3, PATCH_SIZE, PATCH_SIZE)
    tensors["vision.vpm.embeddings.patch_embedding.bias"] = bias
    return tensors


def whitening(num_components: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return weight (components, 588) and bias with which patches of drawn pictures are uncorrelated, variance one."""
    stream = SampleStream("train", seed=WHITENING_SEED, max_side=SCALE_RESOLUTION)
    size = (SCALE_RESOLUTION, SCALE_RESOLUTION)
    pictures = [np.asarray(stream.picture(n, size=size).image.convert("RGB")) for n in range(WHITENING_PICTURES)]
    patches = np.concatenate([patchify(picture, PATCH_SIZE) for picture in pictures])
    pixels = (patches.astype(np.float64) - 127.5) / 127.5  # as the model scales them
    mean = pixels.mean(axis=0)
    variances, components = np.linalg.eigh(np.cov(pixels - mean, rowvar=False))
    order = np.argsort(variances)[::-1][:num_components]
    # What is weaker than the noise of the pictures stays weak.
    weight = (components[:, order] / np.sqrt(variances[order] + NOISE_VARIANCE)).T
    return weight.astype(np.float32), (-weight @ mean).astype(np.float32)


def _scale(name: str, shape: tuple[int, ...], num_layers: dict[str, int]) -> float:
    """Return the standard deviation of a matrix: 1 / sqrt(inputs), less where it writes into a residual stream."""
    if name == "llm.lm_head.weight" or "embed" in name:
        return 0.02 if "patch_embedding" not in name else float(np.prod(shape[1:])) ** -0.5
    scale = float(np.prod(shape[1:])) ** -0.5
    if name.endswith(
        ("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight", "attn.out.weight", "mlp.2.weight")
    ):
        layers = next((count for prefix, count in num_layers.items() if name.startswith(prefix)), 1)
        scale /= (2 * layers) ** 0.5
    return scale


def _spatial_resampler(
    tensors: dict[str, npt.NDArray[np.float32]], config: ModelConfig
) -> dict[str, npt.NDArray[np.float32]]:
    """Return queries and projections with which query k attends around the middle of cell k."""
    size, head_dim = config.resampler.hidden_size, config.resampler.head_dim
    side = SCALE_RESOLUTION // PATCH_SIZE
    cell = side // QUERY_GRID
    fine = grid_positions(2 * side, 2 * side, size).reshape(2 * side, 2 * side, size)
    # Position codes are made for whole numbers: the middle between patches 2k and 2k + 1 is their mean.
    whole = fine[:side, :side].reshape(QUERY_GRID, cell, QUERY_GRID, cell, size).mean(axis=(1, 3))
    in_proj = tensors["vision.resampler.attn.in_proj_weight"].copy()
    in_proj[: 2 * size] *= 0.1
    quarter = size // 4  # channels: column sines, column cosines, row sines, row cosines
    fast = quarter // 4  # the frequencies that tell neighbours apart
    picked = np.concatenate([start + np.arange(fast) for start in range(0, size, quarter)])
    for head in range(config.resampler.num_heads):
        rows = head * head_dim + np.arange(len(picked))
        in_proj[rows, picked] += 1.6
        in_proj[size + rows, picked] += 1.6
    return {
        "vision.resampler.query": whole.reshape(-1, size).astype(np.float32),
        "vision.resampler.attn.in_proj_weight": in_proj,
    }


def write_blueprint(folder: Path, seed: int = 0) -> None:
    """Write the untrained checkpoint in float32; the same seed gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    end_of_turn = tokenizer.token_to_id(END_OF_TURN)
    assert end_of_turn is not None
    config = build_config(tokenizer.get_vocab_size(), end_of_turn)
    files = {
        "config.json": config,
        "preprocessor_config.json": preprocessor_config(
            num_mels=NUM_MELS,
            num_queries=QUERY_GRID**2,
            scale_resolution=SCALE_RESOLUTION,
            max_slices=MAX_SLICES,
            patch_size=PATCH_SIZE,
        ),
        "tokenizer_config.json": tokenizer_config(),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    weights = first_weights(parse_config(JsonFile("config.json", config)), np.random.default_rng(seed))
    write_safetensors(folder / "model.safetensors", {name: ("F32", values) for name, values in weights.items()})


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description="Write the embedded model before training.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_blueprint(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
