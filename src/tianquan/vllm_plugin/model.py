"""The model vLLM runs: its own Llama, sharded as it does that, and this package's encoders on every rank."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from tianquan.checkpoint.names import COMPONENT_PREFIXES, is_ignored
from tianquan.errors import CheckpointError
from tianquan.processing.processor import AUDIO_MARK, IMAGE_MARK
from tianquan.vllm_plugin.media_processor import MegrezoDummyInputs, MegrezoMediaProcessor, MegrezoProcessingInfo
from tianquan.vllm_plugin.model_folder import open_model_folder
from tianquan.vllm_plugin.towers import AudioTower, Tower, VisionTower

_MARKS = {"image": IMAGE_MARK, "audio": AUDIO_MARK}


@MULTIMODAL_REGISTRY.register_processor(
    MegrezoMediaProcessor, info=MegrezoProcessingInfo, dummy_inputs=MegrezoDummyInputs
)
class MegrezO(nn.Module, SupportsMultiModal, SupportsLoRA):
    """Megrez-3B-Omni. Without `SupportsPP` vLLM refuses pipeline stages: two of them ended in an engine error."""

    # The language model sits under the checkpoint's own name, so its tensors and its adapters need no mapping.
    packed_modules_mapping = {  # noqa: RUF012  # an interface of vLLM
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    supports_encoder_tp_data = True  # see `_encode`
    # vLLM would leave out, without a word, the parts of an adapter that belong to an encoder, since `q_proj` is a
    # module it knows. Under a name it does not know, it refuses the adapter and shows the name.
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_regex={
            re.compile(r"^((?:vision|audio)\..*?)(\.lora_[AB]\.weight)$"): r"\1_of_an_encoder_merge_it\2"
        }
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Return the mark of a medium in a text prompt."""
        return _MARKS[modality]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        model_config = vllm_config.model_config
        self.config = model_config.hf_config  # vLLM's adapters look at it
        config, dtype = open_model_folder(model_config).config, model_config.dtype
        with self._mark_language_model(vllm_config):
            self.llm = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=self.config,
                prefix=maybe_prefix(prefix, "llm"),
                architectures=["LlamaForCausalLM"],
            )
        with self._mark_tower_model(vllm_config, "image"):
            self.vision_tower = VisionTower(config, dtype)
        with self._mark_tower_model(vllm_config, "audio"):
            self.audio_tower = AudioTower(config, dtype)
        self._hidden_size = config.language.hidden_size
        self._share_media = (
            model_config.get_multimodal_config().mm_encoder_tp_mode == "data"
            and get_tensor_model_parallel_world_size() > 1
        )

    def embed_multimodal(
        self,
        *,
        image_patches: Sequence[Tensor] = (),
        image_grids: Sequence[Tensor] = (),
        audio_mels: Sequence[Tensor] = (),
        audio_sizes: Sequence[Tensor] = (),
        **other: object,
    ) -> list[Tensor]:
        """Return the features (rows, C) of each item of a batch; see `media_processor.py` for the fields."""
        if len(image_patches):
            slices = self.vision_tower.unpack(image_patches, image_grids)
            features = self._encode(self.vision_tower, slices, [self.vision_tower.num_queries] * len(slices))
            counts = [len(grids) for grids in image_grids]
        else:
            clips = self.audio_tower.unpack(audio_mels, audio_sizes)
            features = self._encode(self.audio_tower, clips, [clip.span for clip in clips])
            counts = [len(sizes) for sizes in audio_sizes]
        parts = iter(features)
        return [torch.cat(list(islice(parts, count))) for count in counts]

    def _encode(self, tower: Tower, parts: Sequence[Any], num_rows: Sequence[int]) -> list[Tensor]:
        """Return the features (num_rows, C) of each slice or clip.

        With `mm_encoder_tp_mode="data"` each rank of the tensor-parallel group encodes a share of them, and all get
        all; else every rank encodes all.
        """
        if not self._share_media:
            return tower(parts)
        share = -(-len(parts) // get_tensor_model_parallel_world_size())
        start = share * get_tensor_model_parallel_rank()
        own = parts[start : start + share]
        shape = (share, max(num_rows), self._hidden_size)
        padded = torch.zeros(shape, dtype=tower.dtype, device=tower.device)
        for n, features in enumerate(tower(own) if own else []):
            padded[n, : len(features)] = features
        gathered = tensor_model_parallel_all_gather(padded, dim=0)
        return [features[:rows] for features, rows in zip(gathered, num_rows, strict=False)]

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **other: object,
    ) -> Any:
        """Return the language model's last hidden states."""
        assert intermediate_tensors is None, "there is one pipeline stage"
        return self.llm.model(input_ids, positions, None, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return logits (T, vocabulary), on the last stage."""
        logits: Tensor | None = self.llm.compute_logits(hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Read the checkpoint's tensors.

        Returns:
            The names of the parameters that were filled.

        Raises:
            CheckpointError: a tensor of an encoder is missing, unexpected or of another shape.
        """
        loaded: set[str] = set()

        def of_the_language_model() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                if name.startswith(COMPONENT_PREFIXES["language_model"]):
                    yield name, tensor
                elif not is_ignored(name):
                    loaded.update(self._load_tower(name, tensor))

        loaded |= AutoWeightsLoader(self).load_weights(of_the_language_model())
        for name, _ in self.named_parameters():
            if name.partition(".")[0] in ("vision_tower", "audio_tower") and name not in loaded:
                raise CheckpointError(f"nothing in the checkpoint fills {name!r}; it is incomplete")
        return loaded

    def _load_tower(self, name: str, tensor: Tensor) -> set[str]:
        attribute = "audio_tower" if name.startswith(COMPONENT_PREFIXES["audio"]) else "vision_tower"
        tower = getattr(self, attribute)
        if not isinstance(tower, Tower):  # left out: no media of its kind are allowed
            return set()
        return {f"{attribute}.{path}" for path in tower.load(name, tensor)}

    def get_mm_mapping(self) -> MultiModelKeys:
        """Return which module is what, for LoRA."""
        return MultiModelKeys.from_string_field(language_model="llm", tower_model=["vision_tower", "audio_tower"])
