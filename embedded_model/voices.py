"""The voices of eSpeak NG that speak, and which of them are kept for evaluation.

A voice is an accent and a variant ("en-us+f3"). Variants are held out, in every accent and language: a held-out
variant of a known accent is a person never heard.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedded_model.asks import Language
from embedded_model.fonts import Split

MAIN_ACCENTS: dict[Language, tuple[str, ...]] = {"en": ("en", "en-us"), "zh": ("cmn", "cmn-latn-pinyin")}
MORE_ACCENTS = ("en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc")
VARIANTS: dict[Split, tuple[str, ...]] = {
    "train": (
        *("m1", "m2", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f5", "Andy", "Annie", "Alex", "Alicia"),
        *("Gene", "Hugo", "Jacky", "Michael", "adam", "anika", "belinda", "david", "edward", "john", "linda"),
        *("paul", "steph", "klatt", "klatt3", "grandma", "marcelo"),
        *("AnxiousAndy", "Diogo", "Gene2", "Henrique", "Marco"),
        *("Mario", "Mike", "Nguyen", "Storm", "Tweaky", "announcer", "antonio", "boris", "ed", "edward2", "grandpa"),
        *("gustave", "iven", "iven4", "kaukovalta", "klatt2", "klatt4", "klatt6", "max", "michel", "norbert", "pablo"),
        *("pedro", "quincy", "robert", "sandro", "steph2", "steph3", "travis"),
    ),
    "heldout": ("m3", "f4", "Lee", "Denis", "benjamin", "shelby", "rob", "Andrea", "victor", "zac"),
}
PLAIN_WEIGHT = 6  # a voice without variant, what `espeak-ng -v NAME` speaks with, has this many times the clips
CHINESE_WEIGHT = 2  # Mandarin has half as many voices


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One voice."""

    name: str  # as espeak_SetVoiceByName takes it
    language: Language
    split: Split

    @property
    def is_plain(self) -> bool:
        """Whether this is an accent without a variant."""
        return "+" not in self.name

    @property
    def weight(self) -> int:
        """How many times the usual number of clips this voice has."""
        return (PLAIN_WEIGHT if self.is_plain else 1) * (CHINESE_WEIGHT if self.language == "zh" else 1)


def voices(split: Split) -> tuple[Voice, ...]:
    """Return the voices of a split; the plain accents are for training."""
    names: list[tuple[Language, str]] = []
    if split == "train":
        names += [("en", accent) for accent in (*MAIN_ACCENTS["en"], *MORE_ACCENTS)]
        names += [("zh", accent) for accent in MAIN_ACCENTS["zh"]]
    for n, variant in enumerate(VARIANTS[split]):
        names += [("en", f"{accent}+{variant}") for accent in (*MAIN_ACCENTS["en"], MORE_ACCENTS[n % 6])]
        names += [("zh", f"{accent}+{variant}") for accent in MAIN_ACCENTS["zh"]]
    return tuple(Voice(name=name, language=language, split=split) for language, name in names)
