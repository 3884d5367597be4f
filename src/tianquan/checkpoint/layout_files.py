"""The small files of a new checkpoint in the official layout: what the checkpoints this project makes have in common.

The template and the special tokens are this project's own; their names follow the official checkpoint's.
"""

from __future__ import annotations

from typing import Any

SPECIAL_TOKENS = (
    "<|eos|>",
    "<|unk|>",
    "<|pad|>",
    "<|role_start|>",
    "<|role_end|>",
    "<|turn_end|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|image_id_start|>",
    "<|image_id_end|>",
    "<|slice_start|>",
    "<|slice_end|>",
    "<|audio_start|>",
    "<|audio_end|>",
)
END_OF_TURN = "<|turn_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|role_start|>{{ message['role'] }}<|role_end|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for kind in ['image', 'audio'] %}{% if kind in message['content'] %}"
    "{% set media = message['content'][kind] %}"
    "{% for item in ([media] if media is string else media) %}(<{{ kind }}>./</{{ kind }}>){% endfor %}"
    "{% endif %}{% endfor %}{{ message['content'].get('text', '') }}{% endif %}"
    "<|turn_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|role_start|>assistant<|role_end|>{% endif %}"
)


def tokenizer_config() -> dict[str, Any]:
    """Return tokenizer_config.json."""
    return {"eos_token": END_OF_TURN, "chat_template": CHAT_TEMPLATE}


def preprocessor_config(
    *, num_mels: int, num_queries: int, scale_resolution: int, max_slices: int, patch_size: int = 14
) -> dict[str, Any]:
    """Return preprocessor_config.json.

    Args:
        num_mels: mel bands of a recording.
        num_queries: features of a slice.
        scale_resolution: side of a slice, pixels.
        max_slices: of a picture, without the overview.
        patch_size: pixels.
    """
    return {
        "sampling_rate": 16000,
        "feature_size": num_mels,
        "image_feature_size": num_queries,
        "scale_resolution": scale_resolution,
        "max_slice_nums": max_slices,
        "patch_size": patch_size,
        "slice_mode": True,
        "use_image_id": True,
        "im_start": "<|image_start|>",
        "im_end": "<|image_end|>",
        "im_id_start": "<|image_id_start|>",
        "im_id_end": "<|image_id_end|>",
        "slice_start": "<|slice_start|>",
        "slice_end": "<|slice_end|>",
        "unk": "<|unk|>",
    }
