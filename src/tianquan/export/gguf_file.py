"""The language model as a GGUF file for llama.cpp: weights, tokenizer, chat template.

What it does not hold: the two encoders and the resampler. llama.cpp's multimodal library has no graph for this model's
(docs/export.md tells what differs), and a file it cannot run with our outputs would be worse than none.

llama.cpp calls this architecture `llama`. Its rotary embedding turns neighbouring channels (2i, 2i + 1) of a head where
the checkpoint turns channels (i, i + D/2), so the rows of the query and key matrices are brought into that order.

Legend: H heads, D head dim, I in channels.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt

from tianquan.backends import make_ops
from tianquan.checkpoint.dense_folder import ReadWeights
from tianquan.checkpoint.loader import Checkpoint, TensorFiles
from tianquan.checkpoint.new_folder import format_bytes
from tianquan.checkpoint.partial_output import partial_output, remove_stale
from tianquan.checkpoint.tensor_list import NeededWeight, needed_weights
from tianquan.config import LanguageConfig
from tianquan.errors import CheckpointError
from tianquan.export.gguf_vocabulary import GgufVocabulary, read_vocabulary
from tianquan.quantization.recipes import find_recipe

GgufType = Literal["f16", "q8_0", "q4_0"]
OnProgress = Callable[[int, int], None]  # (weights written, weights there are)

_Types = gguf.GGMLQuantizationType
_MATRIX_TYPES = {"f16": _Types.F16, "q8_0": _Types.Q8_0, "q4_0": _Types.Q4_0}
_HEAD_TYPES = {**_MATRIX_TYPES, "q4_0": _Types.Q8_0}  # the output's matrix decides between tokens: it keeps 8 bits
_FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
_NAMES = {
    "embedding": "token_embd",
    "final_norm": "output_norm",
    "head": "output",
    "attention_norm": "blk.{n}.attn_norm",
    "attention.query": "blk.{n}.attn_q",
    "attention.key": "blk.{n}.attn_k",
    "attention.value": "blk.{n}.attn_v",
    "attention.output": "blk.{n}.attn_output",
    "mlp_norm": "blk.{n}.ffn_norm",
    "mlp.gate": "blk.{n}.ffn_gate",
    "mlp.up": "blk.{n}.ffn_up",
    "mlp.down": "blk.{n}.ffn_down",
}
_SMALL = 0.01  # largest value of a matrix below which a scale in half precision may lose bits
_MOST_LOST = 0.3  # of a matrix's size; four bits lose a tenth of any
_LAYERS = "layers."
_PREFIX = "language_model."

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Tensor:
    """A weight on its way: ours, its name in the file, and how it is kept there."""

    weight: NeededWeight
    name: str
    type: Any  # gguf.GGMLQuantizationType

    @property
    def nbytes(self) -> int:
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.weight.shape) // block_size * block_bytes


def save_gguf(checkpoint: Checkpoint, type: GgufType, output: Path, on_progress: OnProgress = lambda *_: None) -> None:
    """Write the language model. The file appears whole or not at all.

    Args:
        checkpoint: of the official layout; a low-bit folder's weights would lose bits twice.
        type: of the matrices; norms stay float32, and beside q4_0 the output's matrix is q8_0.
        output: a file that is not there yet.
        on_progress: told after each weight.

    Raises:
        CheckpointError: a low-bit folder, sizes or a tokenizer that llama.cpp cannot hold, or no room.
    """
    if not isinstance(checkpoint.files, TensorFiles):
        raise CheckpointError(
            f"{checkpoint.folder}: is a low-bit folder; export the original checkpoint, whose bits are then lost once"
        )
    config = checkpoint.config.language
    tensors = _plan(checkpoint, type)
    vocabulary = read_vocabulary(checkpoint)
    reader = ReadWeights(checkpoint.weights(find_recipe("float32"), make_ops("reference")))
    logging.getLogger("gguf").setLevel(logging.WARNING)
    with _new_file(output, sum(tensor.nbytes for tensor in tensors)) as path:
        writer = gguf.GGUFWriter(path, "llama")
        with contextlib.closing(writer):
            _add_config(writer, config, type, _model_name(checkpoint.folder.resolve()))
            _add_vocabulary(writer, vocabulary)
            for tensor in tensors:
                writer.add_tensor_info(
                    tensor.name, tensor.weight.shape, np.dtype(np.float32), tensor.nbytes, tensor.type
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for done, tensor in enumerate(tensors, 1):
                values = _values(reader, tensor.weight, config)
                if tensor.type != gguf.GGMLQuantizationType.F32 and not np.abs(values).max() <= _LARGEST_HALF:
                    raise CheckpointError(
                        f"{tensor.weight.name}: has values beyond {_LARGEST_HALF:g}, which no half precision holds"
                    )
                writer.write_tensor_data(_quantized(tensor, values))
                on_progress(done, len(tensors))


def _quantized(tensor: _Tensor, values: Float32) -> npt.NDArray[Any]:
    """Return a tensor's bytes.

    Raises:
        CheckpointError: its values are so small that a scale in half precision loses them.
    """
    quantized: npt.NDArray[Any] = gguf.quants.quantize(values, tensor.type)
    if tensor.type != _Types.F32 and np.abs(values).max() < _SMALL:
        exact = values.astype(np.float64)
        difference = np.linalg.norm(gguf.quants.dequantize(quantized, tensor.type) - exact)
        if difference > _MOST_LOST * np.linalg.norm(exact):
            raise CheckpointError(
                f"{tensor.weight.name}: values of at most {np.abs(values).max():.1e} are lost in {tensor.type.name}, "
                "whose scales are in half precision; is the checkpoint damaged?"
            )
    return quantized


def _plan(checkpoint: Checkpoint, type: GgufType) -> list[_Tensor]:
    tensors = []
    for weight in needed_weights(checkpoint.config):
        if weight.name.startswith(_PREFIX):
            kind = _type_of(weight, type)
            block_size = gguf.GGML_QUANT_SIZES[kind][0]
            if weight.shape[-1] % block_size:
                raise CheckpointError(
                    f"{weight.name} has rows of {weight.shape[-1]} values, {type} needs a multiple of {block_size}; "
                    "export f16"
                )
            tensors.append(_Tensor(weight, _foreign_name(weight.name), kind))
    return tensors


def _type_of(weight: NeededWeight, type: GgufType) -> Any:
    if len(weight.shape) == 1:
        return _Types.F32
    return (_HEAD_TYPES if weight.name == f"{_PREFIX}head" else _MATRIX_TYPES)[type]


def _foreign_name(name: str) -> str:
    rest = name.removeprefix(_PREFIX)
    if rest.startswith(_LAYERS):
        number, _, rest = rest.removeprefix(_LAYERS).partition(".")
        return f"{_NAMES[rest].format(n=number)}.weight"
    return f"{_NAMES[rest]}.weight"


def _values(reader: ReadWeights, weight: NeededWeight, config: LanguageConfig) -> Float32:
    """Return a weight as llama.cpp takes it."""
    if not weight.is_matrix:
        return reader.vector(weight.name)
    matrix = reader.matrix(weight.name, weight.shape[1], weight.shape[0])
    if weight.name.endswith("attention.query"):
        return interleaved(matrix, config.num_heads)
    if weight.name.endswith("attention.key"):
        return interleaved(matrix, config.num_kv_heads)
    return matrix


def interleaved(matrix: Float32, num_heads: int) -> Float32:
    """Return a matrix (H * D, I) whose rows i and i + D/2 of each head, which rotate together, are neighbours."""
    halves = matrix.reshape(num_heads, 2, -1, matrix.shape[1])  # (H, 2, D/2, I)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(matrix.shape)


def _model_name(folder: Path) -> str:
    """Return what to call a model: its folder's name, or the hub's where it lies in the hub's cache."""
    repository = folder.parents[1].name if len(folder.parents) > 1 and folder.parent.name == "snapshots" else ""
    name = repository.removeprefix("models--").replace("--", "/") if repository else folder.name
    return os.fsencode(name).decode("utf-8", errors="replace")


def _add_config(writer: Any, config: LanguageConfig, type: GgufType, name: str) -> None:
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_vocabulary(writer: Any, vocabulary: GgufVocabulary) -> None:
    writer.add_tokenizer_model("gpt2")  # llama.cpp's word for byte-level BPE
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_eos_token_id(vocabulary.end_of_turn)
    writer.add_eot_token_id(vocabulary.end_of_turn)
    if vocabulary.end_of_text is not None:
        writer.add_eom_token_id(vocabulary.end_of_text)  # ends an answer too
    writer.add_chat_template(vocabulary.chat_template)


_LARGEST_HALF = 65504.0  # also of the scales of low-bit blocks


@contextmanager
def _new_file(output: Path, size: int) -> Iterator[Path]:
    """Give a path to write to, and rename it to `output` at the end; after an error nothing is left."""
    if os.path.lexists(output):
        raise CheckpointError(f"{output}: exists already; name a new file")
    try:
        remove_stale(output)
        free = shutil.disk_usage(output.parent).free
        if free < size:
            raise CheckpointError(f"{output.parent}: {format_bytes(free)} free, {format_bytes(size)} needed")
        with partial_output(output, is_folder=False) as temporary:
            yield temporary
            _name(temporary, output)
    except FileExistsError as error:
        raise CheckpointError(f"{output}: was made by another process meanwhile; name a new file") from error
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be written ({error.strerror or error}); name another file") from error


def _name(temporary: Path, output: Path) -> None:
    """Give a file its name, which nobody else has.

    Raises:
        FileExistsError: somebody has.
    """
    try:
        output.hardlink_to(temporary)  # fails where renaming would replace
    except FileExistsError:
        raise
    except OSError:  # a disk without links
        if os.path.lexists(output):
            raise FileExistsError from None
        temporary.rename(output)
