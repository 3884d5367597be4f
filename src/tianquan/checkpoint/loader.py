"""Opening a checkpoint of the official layout: everything is checked before the first weight is used.

Weights are read from mapped files one at a time, cast or quantized as the recipe says, and handed to the
backend, so the peak of memory is the result plus one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tianquan.backends.ops import Ops, StoredWeight
from tianquan.checkpoint.config_files import (
    JsonFile,
    parse_config,
    parse_eos_token_ids,
    parse_processor_settings,
    read_chat_template,
    read_sampling,
    read_special_token_strings,
)
from tianquan.checkpoint.low_bit import MANIFEST, LowBitFolder, LowBitWeights, save_low_bit
from tianquan.checkpoint.names import COMPONENT_PREFIXES, StoredName, is_ignored, stored_name
from tianquan.checkpoint.plain_file import is_present, read_text
from tianquan.checkpoint.safetensors_file import SafetensorsFile
from tianquan.checkpoint.tensor_list import check_tensors, required_tensors
from tianquan.checkpoint.weight_reader import OnProgress, StoredWeights
from tianquan.config import ModelConfig
from tianquan.errors import CheckpointError
from tianquan.processing.processor import Processor
from tianquan.processing.tokenizer import Tokenizer
from tianquan.quantization.dense import DenseFormat, DenseTensor
from tianquan.quantization.format import QuantFormat
from tianquan.quantization.recipes import Recipe, find_recipe
from tianquan.request import SamplingParams

_DENSE_FORMATS: dict[str, DenseFormat] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
DEFAULT_RECIPE = "int4"
_FINITE_PIECE = 1 << 18  # values looked at together: they stay in the cache
_MAGNITUDE = np.uint16(0x7FFF)  # of a 16-bit float: all bits but the sign
_INFINITY = {"float16": np.uint16(0x7C00), "bfloat16": np.uint16(0x7F80)}  # larger bits are NaN
END_TOKENS = ("<|turn_end|>", "<|eos|>")

Data = npt.NDArray[Any]


class TensorFiles:
    """The safetensors files of one folder as one table of tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index_path = folder / "model.safetensors.index.json"
        if is_present(index_path):
            self._files = self._open_shards(index_path)
        elif is_present(folder / "model.safetensors"):
            file = SafetensorsFile(folder / "model.safetensors")
            self._files = dict.fromkeys(file.tensors, file)
        else:
            raise CheckpointError(
                f"{folder}: has neither model.safetensors nor model.safetensors.index.json; "
                "only safetensors checkpoints are read"
            )
        self.tensors = {name: file.tensors[name] for name, file in self._files.items()}

    def _open_shards(self, index_path: Path) -> dict[str, SafetensorsFile]:
        weight_map = JsonFile.read(index_path).optional("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise CheckpointError(f"{index_path}: weight_map must map tensor names to file names")
        shards = {}
        for name in sorted(set(weight_map.values())):
            # A name is a name: no folder parts, so that an index cannot point outside its folder.
            is_plain = name.isprintable() and Path(name).name == name and "\\" not in name
            if not is_plain or not name.endswith(".safetensors"):
                raise CheckpointError(
                    f"{index_path}: names the file {name!r}; expected a .safetensors file of the folder"
                )
            if not is_present(self.folder / name):
                raise CheckpointError(
                    f"{self.folder / name}: not found; the index names it, the checkpoint is incomplete"
                )
            shards[name] = SafetensorsFile(self.folder / name)
        files = {tensor: shards[shard] for tensor, shard in weight_map.items()}
        held = {(tensor, name) for name, shard in shards.items() for tensor in shard.tensors}
        different = sorted(held ^ set(weight_map.items()))
        if different:
            tensor, shard = different[0]
            where = "not in the index for" if (tensor, shard) in held else "listed by the index but not in"
            raise CheckpointError(f"{index_path}: tensor {tensor!r} is {where} {shard}; download or copy it again")
        return files

    def dense(self, name: str) -> DenseTensor:
        """Return a dense tensor on the mapped bytes."""
        return DenseTensor(self._files[name].read(name), _DENSE_FORMATS[self.tensors[name].dtype])

    def component_bytes(self) -> dict[str, int]:
        """Return the bytes of each component's tensors."""
        sizes = dict.fromkeys(COMPONENT_PREFIXES, 0)
        for name, tensor in self.tensors.items():
            component = next((c for c, prefix in COMPONENT_PREFIXES.items() if name.startswith(prefix)), None)
            if component is not None and not is_ignored(name):
                sizes[component] += tensor.nbytes
        return sizes


@dataclass(frozen=True)
class Checkpoint:
    """An opened and checked model folder."""

    folder: Path
    config: ModelConfig
    files: TensorFiles | LowBitFolder
    processor: Processor
    stop_token_ids: frozenset[int]
    sampling: SamplingParams  # how it wants to be sampled

    def recipe(self, precision: str | None) -> Recipe:
        """Return the recipe a precision names; by default the stored one, or int4 for a dense checkpoint.

        Raises:
            ParameterError: no such recipe.
            CheckpointError: a low-bit folder holds another one.
        """
        if isinstance(self.files, TensorFiles):
            return find_recipe(precision or DEFAULT_RECIPE)
        stored = self.files.recipe
        if precision is not None and find_recipe(precision).name != stored.name:
            raise CheckpointError(
                f"{self.folder}: holds weights in {stored.name}; to run in {precision}, load the original checkpoint"
            )
        return stored

    def weights(self, recipe: Recipe, ops: Ops, on_progress: OnProgress | None = None) -> StoredWeights:
        """Return the source of the model's weights."""
        if isinstance(self.files, LowBitFolder):
            return LowBitWeights(self.files, ops, on_progress)
        return CheckpointWeights(self.files, recipe, ops, on_progress)

    def save_low_bit(self, recipe: Recipe, output: Path, ops: Ops, on_progress: OnProgress | None = None) -> None:
        """Write the checkpoint as a low-bit folder; see `low_bit.save_low_bit`."""
        if isinstance(self.files, LowBitFolder):
            raise CheckpointError(f"{self.folder}: is a low-bit folder already; copy it, or start from the original")
        weights = CheckpointWeights(self.files, recipe, ops, on_progress)
        save_low_bit(self.folder, self.config, weights, recipe, output)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a model folder, official or low-bit: parse its configs, map its tensors, check that they fit together.

    Raises:
        CheckpointError: anything is missing, damaged, unsupported or does not fit.
    """
    config_file = JsonFile.read(folder / "config.json")
    config = parse_config(config_file)
    processor = open_processor(folder, config)
    stop_token_ids = _stop_token_ids(folder, config_file, processor.tokenizer)
    return Checkpoint(folder, config, _open_files(folder, config), processor, stop_token_ids, read_sampling(folder))


def open_processor(folder: Path, config: ModelConfig) -> Processor:
    """Open what turns conversations into prompts; the weights need not be there.

    Raises:
        CheckpointError: a file is missing, damaged, unsupported or does not fit the model.
    """
    preprocessor = parse_processor_settings(JsonFile.read(folder / "preprocessor_config.json"), config)
    tokenizer_config = JsonFile.read(folder / "tokenizer_config.json")
    tokenizer = _read_tokenizer(folder, structure=(*preprocessor.tokens.all(), *END_TOKENS))
    if tokenizer.max_token_id >= config.language.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has token id {tokenizer.max_token_id}, the model {config.language.vocab_size} "
            "embeddings; tokenizer.json is another model's"
        )
    return Processor(
        tokenizer,
        read_chat_template(folder, tokenizer_config),
        read_special_token_strings(tokenizer_config),
        preprocessor,
    )


def _open_files(folder: Path, config: ModelConfig) -> TensorFiles | LowBitFolder:
    if is_present(folder / MANIFEST):
        return LowBitFolder.open(folder, config)
    files = TensorFiles(folder)
    check_tensors(str(folder), files.tensors, required_tensors(config))
    return files


def _read_tokenizer(folder: Path, structure: Sequence[str]) -> Tokenizer:
    return Tokenizer(read_text(folder / "tokenizer.json"), structure)


def _stop_token_ids(folder: Path, config_file: JsonFile, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids that end an answer: those the configs name, and the two the vendor ends turns with.

    The eos_token string of tokenizer_config.json is not used: the official file misspells it.
    """
    ids = set(parse_eos_token_ids(config_file))
    if is_present(folder / "generation_config.json"):
        ids.update(parse_eos_token_ids(JsonFile.read(folder / "generation_config.json")))
    ids.update(id for token in END_TOKENS if (id := tokenizer.special_token_id(token)) is not None)
    if not ids:
        raise CheckpointError(f"{config_file.label}: no eos_token_id, and the tokenizer has no {END_TOKENS[0]}")
    return frozenset(ids)


class CheckpointWeights(StoredWeights):
    """The weights of the official layout, cast or quantized as a recipe says."""

    def __init__(
        self,
        files: TensorFiles,
        recipe: Recipe,
        ops: Ops,
        on_progress: OnProgress | None = None,
    ) -> None:
        super().__init__(ops)
        self._files = files
        self._recipe = recipe
        self._on_progress = on_progress
        self._read: set[str] = set()

    def vector(self, name: str) -> DenseTensor:
        """See `WeightReader.vector`."""
        stored = stored_name(name)
        self._report(name, stored)
        return self._dense(stored.weight)

    def bias(self, name: str) -> DenseTensor:
        """See `WeightReader.bias`.

        Raises:
            CheckpointError: NaN or infinity, as for all weights: a damaged file must not become a silent answer.
        """
        stored = stored_name(name)
        assert stored.bias is not None, name
        bias = self._dense(stored.bias)
        if stored.layout.startswith("third_"):
            return DenseTensor(third_of(bias.data, stored), bias.format)
        return bias

    def weight(self, name: str, in_features: int, out_features: int) -> StoredWeight:
        """See `WeightReader.weight`.

        Raises:
            CheckpointError: NaN, infinity or values that the recipe's format cannot hold.
        """
        stored = stored_name(name)
        dense = as_matrix(self._dense(stored.weight), stored, in_features, out_features)
        format = self._recipe.format_of(name)
        try:
            if isinstance(format, QuantFormat):
                return self._ops.quantize(dense.to_float32(), format)
            cast = dense.cast(format)
            if cast is not dense and not is_finite(cast):
                raise CheckpointError(f"tensor {stored.weight!r}: a value is beyond {format}; use --precision float32")
            return cast
        except (OverflowError, ValueError) as error:
            raise CheckpointError(f"tensor {stored.weight!r}: {error}; use --precision bfloat16 or float32") from error
        finally:
            self._report(name, stored)

    def _dense(self, stored: str) -> DenseTensor:
        dense = self._files.dense(stored)
        if not is_finite(dense):
            raise CheckpointError(f"tensor {stored!r} holds NaN or infinity; download or copy the checkpoint again")
        return dense

    def _report(self, name: str, stored: StoredName) -> None:
        if self._on_progress is None:
            return
        self._read.update(n for n in (stored.weight, stored.bias) if n in self._files.tensors)
        component = name.partition(".")[0]
        prefix = COMPONENT_PREFIXES[component]
        done = sum(self._files.tensors[n].nbytes for n in self._read if n.startswith(prefix))
        self._on_progress(component, done, self._files.component_bytes()[component])


def is_finite(tensor: DenseTensor) -> bool:
    """Return whether a tensor has neither infinities nor NaN."""
    flat = tensor.data.reshape(-1)
    for start in range(0, flat.size, _FINITE_PIECE):
        piece = flat[start : start + _FINITE_PIECE]
        if tensor.format != "float32":  # on the bits: numpy has no bfloat16, and is 10 times slower on float16
            if (piece.view(np.uint16) & _MAGNITUDE).max() >= _INFINITY[tensor.format]:
                return False
        elif not np.isfinite(piece).all():
            return False
    return True


def third_of(data: Data, stored: StoredName) -> Data:
    """Return the rows of a packed query, key and value tensor that `stored` names."""
    size = len(data) // 3
    start = int(stored.layout[-1]) * size
    return data[start : start + size]


def as_matrix(tensor: DenseTensor, stored: StoredName, in_features: int, out_features: int) -> DenseTensor:
    """Return a stored matrix as (out, in); see `names.Layout`."""
    data = tensor.data
    if stored.layout == "transposed":
        data = np.ascontiguousarray(data.T)
    elif stored.layout == "windows":
        data = np.ascontiguousarray(data.transpose(0, 2, 1))
    elif stored.layout.startswith("third_"):
        data = third_of(data, stored)
    return DenseTensor(data.reshape(out_features, in_features), tensor.format)
