"""The precision policy: which format each weight of the model is stored in, and what it is computed in.

A recipe is data: an ordered list of (pattern of weight names, format); the first match decides. It is the
only place that decides. Around it everything is fixed, for every recipe and backend:

    activations        float32 at every border (embedding, resampler output, audio projection, hidden states)
    low-bit products   activations rounded to 8 bits (7 beside int8 weights) per row and group, exact integer sums,
                       float32 scaling
    dense products     float32 sums, whatever the storage format
    keys and values    float16 (rounding 2^-11, far below that of the weights); float32 under `float32`
    norms, softmax, rope, logits, sampling    float32
    vectors (norm weights, biases, position tables, learned queries)    float32

`bfloat16` and `float16` are storage formats: CPUs of the kind this is made for have no such arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from tianquan.backends.kv_cache import KVFormat
from tianquan.errors import CheckpointError, ParameterError
from tianquan.quantization.dense import DENSE_FORMATS, DenseFormat
from tianquan.quantization.format import INT4_G32, INT4_G32_ASYM, INT4_G64, INT8_G64, QuantFormat

Precision = Literal["float32", "bfloat16", "float16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Format = QuantFormat | DenseFormat


_MAX_NAME = 64  # characters of a recipe's name


@dataclass(frozen=True)
class Recipe:
    """A named precision policy. The last rule matches every name."""

    name: str
    rules: tuple[tuple[str, Format], ...]
    kv_format: KVFormat = "float16"

    def __post_init__(self) -> None:
        assert self.rules, "a recipe has at least one rule"
        assert self.rules[-1][0] == "*", "the last rule must match everything"

    def format_of(self, weight_name: str) -> Format:
        """Return the format a weight is stored in."""
        return next(format for pattern, format in self.rules if fnmatchcase(weight_name, pattern))

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form for a JSON config."""
        rules = [[p, f.to_dict() if isinstance(f, QuantFormat) else f] for p, f in self.rules]
        return {"name": self.name, "rules": rules, "kv_format": self.kv_format}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Return the recipe that `to_dict` described.

        Raises:
            CheckpointError: it is damaged, or names a format this version does not know.
        """
        try:
            name, rules, kv_format = data["name"], data["rules"], data["kv_format"]
            parsed = tuple((str(pattern), _parse_format(format)) for pattern, format in rules)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError("the quantization recipe of the folder is damaged; save the folder again") from error
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not name.isprintable():
            raise CheckpointError("the name of the folder's quantization recipe is none; save the folder again")
        if not parsed or parsed[-1][0] != "*":
            raise CheckpointError("the quantization recipe of the folder does not cover every weight; save it again")
        if kv_format not in get_args(KVFormat):
            raise CheckpointError(
                f"unknown kv_format {kv_format!r}; the folder may come from a newer version of tianquan"
            )
        return cls(name, parsed, kv_format)


def _parse_format(value: Any) -> Format:
    if isinstance(value, Mapping):
        return QuantFormat.from_dict(value)
    if value in DENSE_FORMATS:
        return value
    raise CheckpointError(f"unknown weight format {value!r}; the folder may come from a newer version of tianquan")


def _uniform(name: str, format: Format, kv_format: KVFormat = "float16") -> Recipe:
    return Recipe(name, (("*", format),), kv_format)


RECIPES: dict[str, Recipe] = {
    "float32": _uniform("float32", "float32", kv_format="float32"),
    "bfloat16": _uniform("bfloat16", "bfloat16"),
    "float16": _uniform("float16", "float16"),
    "int8": _uniform("int8", INT8_G64),
    # The towers run over hundreds of rows, where int8 is as fast and four times as exact; the language model
    # is read once per token, where bytes are time.
    "int4": Recipe("int4", (("language_model.*", INT4_G32), ("*", INT8_G64))),
    "int4-asym": Recipe("int4-asym", (("language_model.*", INT4_G32_ASYM), ("*", INT8_G64))),
    # Everything in 4.25 bits but the layers pictures and sound enter and leave by.
    "int4-small": Recipe(
        "int4-small",
        (
            ("vision.patch_projection", INT8_G64),
            ("resampler.*", INT8_G64),
            ("audio.conv?", INT8_G64),
            ("audio.projection", INT8_G64),
            ("*", INT4_G64),
        ),
    ),
}

_BIGDL_ALIASES = {
    "sym_int4": "int4",
    "asym_int4": "int4-asym",
    "sym_int8": "int8",
    "fp16": "float16",
    "bf16": "bfloat16",
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name or of BigDL's name for it.

    Raises:
        ParameterError: there is none.
    """
    recipe = RECIPES.get(_BIGDL_ALIASES.get(name, name))
    if recipe is None:
        raise ParameterError(f"unknown precision or recipe {name!r}; expected one of {', '.join(RECIPES)}")
    return recipe
