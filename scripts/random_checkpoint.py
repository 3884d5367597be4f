"""Write a small random checkpoint in the official layout: the mechanics of the model without what it learned.

    python scripts/random_checkpoint.py FOLDER [--seed N] [--format bfloat16]

Sizes, vocabulary and template are its own. It answers nonsense; it is for demonstrations and tests.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tianquan.checkpoint.config_files import JsonFile, parse_config
from tianquan.checkpoint.layout_files import END_OF_TURN, SPECIAL_TOKENS, preprocessor_config, tokenizer_config
from tianquan.checkpoint.safetensors_file import write_safetensors
from tianquan.checkpoint.tensor_list import required_tensors
from tianquan.quantization.dense import DenseFormat, DenseTensor

CORPUS = [
    "the picture shows a red circle, a blue square and two green triangles on a white table",
    "what is in the image? how many are there? please describe what you see and hear",
    "convert speech to text. hello world, this is a small test of a small model",
    "图片里有一个红色的圆形和两个蓝色的方块，请描述你看到和听到的内容。你好，谢谢。",
]


def build_tokenizer(num_merged: int = 600) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_merged, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def build_config(vocab_size: int, eos_token_id: int) -> dict[str, Any]:
    return {
        "architectures": ["MegrezO"],
        "model_type": "megrezo",
        "hidden_act": "silu",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab_size,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e6,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "eos_token_id": eos_token_id,
        "query_num": 16,
        "patch_size": 14,
        "vision_config": {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 980,
            "patch_size": 14,
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu_pytorch_tanh",
        },
        "audio_config": {
            "n_mels": 80,
            "n_ctx": 1500,
            "n_state": 32,
            "n_head": 2,
            "n_layer": 2,
            "output_dim": 128,
            "avg_pool": True,
            "add_audio_bos_eos_token": True,
        },
    }


def write_random_checkpoint(folder: Path, seed: int = 0, format: DenseFormat = "bfloat16") -> None:
    """Write config, tokenizer, processor files and weights; the same seed gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    vocab_size = tokenizer.get_vocab_size()
    config = build_config(vocab_size, tokenizer.token_to_id(END_OF_TURN))
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        "config.json": config,
        "preprocessor_config.json": preprocessor_config(
            num_mels=80, num_queries=16, scale_resolution=224, max_slices=4
        ),
        "tokenizer_config.json": tokenizer_config(),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")

    generator = np.random.default_rng(seed)
    stored = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[format]
    tensors = {}
    for name, shape in sorted(required_tensors(parse_config(JsonFile("config.json", config))).items()):
        is_norm_weight = name.endswith("weight") and len(shape) == 1
        scale = 1.0 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.02
        values = is_norm_weight + generator.normal(0.0, scale, shape).astype(np.float32)
        tensors[name] = (stored, DenseTensor(values.astype(np.float32), "float32").cast(format).data)
    write_safetensors(folder / "model.safetensors", tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=["float32", "float16", "bfloat16"], default="bfloat16")
    arguments = parser.parse_args()
    write_random_checkpoint(arguments.folder, arguments.seed, arguments.format)


if __name__ == "__main__":
    main()
