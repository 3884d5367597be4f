"""The encoders for pictures and sound as vLLM modules: this package's model definition on its torch backend.

Their weights are made empty, as vLLM wants it, under the checkpoint's names; `load` fills them from stored tensors by
the same table of names that the rest of the package reads checkpoints with.

Matrices have the model's dtype, and the residual stream, norms and tables are float32: autocast brings both together
at each product, and the features are cast once, where they leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tianquan.backends.torch import ModuleHandle, TorchOps
from tianquan.checkpoint.loader import as_matrix, third_of
from tianquan.checkpoint.names import module_path, stored_name
from tianquan.checkpoint.tensor_list import NeededWeight, needed_weights
from tianquan.config import ModelConfig
from tianquan.errors import CheckpointError
from tianquan.models.audio_encoder import AudioEncoder
from tianquan.models.resampler import Resampler
from tianquan.models.vision_encoder import PatchGrid, VisionEncoder
from tianquan.quantization.dense import DenseFormat, DenseTensor
from tianquan.request import AudioInput
from tianquan.training.module_tree import ModuleTree

_DENSE_FORMATS: dict[torch.dtype, DenseFormat] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


class EmptyWeights:
    """A weight source that hands out memory on torch's current device, to be filled later."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def parameter(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """See `WeightSource.parameter`."""
        return torch.empty(shape, dtype=torch.float32)

    def norm(self, name: str, size: int) -> tuple[Tensor, Tensor]:
        """See `WeightSource.norm`."""
        return self.parameter(name, (size,)), self.parameter(name, (size,))

    def linear(self, name: str, in_features: int, out_features: int, bias: bool = False) -> ModuleHandle:
        """See `WeightSource.linear`."""
        module = nn.Linear(in_features, out_features, bias=bias, device="meta", dtype=self._dtype)
        return ModuleHandle(module.to_empty(device=torch.get_default_device()).requires_grad_(False))

    def linear_group(
        self, names: Sequence[str], in_features: int, out_features: Sequence[int], bias: Sequence[bool]
    ) -> tuple[ModuleHandle, ...]:
        """See `WeightSource.linear_group`."""
        return tuple(
            self.linear(name, in_features, size, has_bias)
            for name, size, has_bias in zip(names, out_features, bias, strict=True)
        )

    def embedding(self, name: str, num_rows: int, size: int) -> ModuleHandle:
        """See `WeightSource.embedding`; nothing in an encoder asks for one."""
        raise AssertionError(f"{name}: an encoder has no embedding table")


class Tower(ModuleTree):
    """What both encoders share: empty weights, and filling them.

    Args:
        config: of the whole model.
        components: which of its components are in this tower.
        dtype: of the matrices and of the features.
    """

    def __init__(self, config: ModelConfig, components: Sequence[str], dtype: torch.dtype) -> None:
        super().__init__(EmptyWeights(dtype))
        self.dtype = dtype
        self._ops = TorchOps(str(torch.get_default_device()))
        self._weights: dict[str, list[NeededWeight]] = {}  # by the stored tensor they are read from
        for weight in needed_weights(config):
            if weight.component in components:
                for stored in weight.stored_shapes():
                    self._weights.setdefault(stored, []).append(weight)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._ops.device

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._ops.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def load(self, stored: str, tensor: Tensor) -> set[str]:
        """Fill the parameters that are read from one tensor of the checkpoint.

        Returns:
            Their names in this module.

        Raises:
            CheckpointError: no parameter is, or the tensor has another shape or type.
        """
        if stored not in self._weights:
            raise CheckpointError(f"tensor {stored!r} unexpected; the config.json is another model's")
        if tensor.dtype not in _DENSE_FORMATS:
            raise CheckpointError(f"tensor {stored!r} is {tensor.dtype}; expected float32, float16 or bfloat16")
        bits = tensor.cpu().view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor.cpu()
        dense = DenseTensor(bits.numpy(), _DENSE_FORMATS[tensor.dtype])
        return {self._fill(weight, stored, dense) for weight in self._weights[stored]}

    def _fill(self, weight: NeededWeight, stored: str, dense: DenseTensor) -> str:
        expected = weight.stored_shapes()[stored]
        if dense.shape != expected:
            raise CheckpointError(
                f"tensor {stored!r} has shape {list(dense.shape)}, config.json asks for {list(expected)}"
            )
        names = stored_name(weight.name)
        path = stored
        if weight.is_matrix and stored == names.weight:
            path = f"{module_path(weight.name)}.weight"
            dense = as_matrix(dense, names, weight.shape[1], weight.shape[0])
        elif weight.is_matrix:
            path = f"{module_path(weight.name)}.bias"
            if names.layout.startswith("third_"):
                dense = DenseTensor(third_of(dense.data, names), dense.format)
        self.get_parameter(path).data.copy_(torch.from_numpy(dense.to_float32()))
        return path


@dataclass(frozen=True)
class Slice:
    """One slice of a picture: (patches, 3 * patch^2) bytes, and its rows and columns of patches."""

    patches: npt.NDArray[np.uint8]
    grid: PatchGrid


class VisionTower(Tower):
    """Slices of pictures to rows of the language model: vision encoder and resampler."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__(config, ("vision", "resampler"), dtype)
        self.num_queries = config.resampler.num_queries
        self._encoder = VisionEncoder(config.vision, self, self._ops)
        self._resampler = Resampler(config.resampler, self, self._ops)

    @staticmethod
    def unpack(patches: Sequence[Tensor], grids: Sequence[Tensor]) -> list[Slice]:
        """Return the slices of all pictures, from the fields of `media_processor.py` of each picture."""
        return [
            Slice(part.numpy(), (rows, cols))
            for picture, each in zip(patches, grids, strict=True)
            for part, (rows, cols) in zip(picture.split(each.prod(dim=1).tolist()), each.tolist(), strict=True)
        ]

    def forward(self, slices: Sequence[Slice]) -> list[Tensor]:
        """Return the features (Q, C) of each slice."""
        grids = [part.grid for part in slices]
        with self._autocast():
            features = self._resampler(self._encoder([part.patches for part in slices], grids), grids)  # (S, Q, C)
        return list(features.to(self.dtype))


class AudioTower(Tower):
    """Log-mel frames of clips to rows of the language model."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__(config, ("audio",), dtype)
        self._encoder = AudioEncoder(config.audio, self, self._ops)

    @staticmethod
    def unpack(mels: Sequence[Tensor], sizes: Sequence[Tensor]) -> list[AudioInput]:
        """Return the clips of all recordings, from the fields of `media_processor.py` of each recording."""
        return [
            # The samples are gone and the cache is vLLM's: neither their number nor the digest is asked for.
            AudioInput(mel.float().numpy(), num_frames, num_tokens, num_samples=0, digest=b"")
            for recording, each in zip(mels, sizes, strict=True)
            for mel, (_, num_frames, num_tokens) in zip(
                recording.split(each[:, 0].tolist()), each.tolist(), strict=True
            )
        ]

    def forward(self, clips: Sequence[AudioInput]) -> list[Tensor]:
        """Return the features (span, C) of each clip."""
        with self._autocast():
            features = self._encoder.encode(clips)
        return list(features.to(self.dtype).split([clip.span for clip in clips]))
