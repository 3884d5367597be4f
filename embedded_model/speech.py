"""The clip bank: spoken phrases on disk, one shard per voice, and what is said at each moment.

    FOLDER/index.json            version of the synthesiser, phoneme classes, shards
    FOLDER/SPLIT/VOICE.npy       all clips of a voice end to end, int16, 16 kHz, memory-mapped
    FOLDER/SPLIT/VOICE.json      per clip: first sample, phrase, words and phonemes with their times

A shard depends on its voice, its number of clips and the seed only; it is synthesised in a process of its own,
because the synthesiser's noise depends on what it said before.

    python -m embedded_model.speech FOLDER [--clips-per-voice 80]
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from embedded_model import acoustics, asks, espeak, phrases
from embedded_model.asks import Language
from embedded_model.fonts import Split
from embedded_model.phrases import Phrase
from embedded_model.voices import Voice, voices

DEFAULT_FOLDER = Path(__file__).resolve().parent / "cache" / "speech"
CLIPS_PER_VOICE: dict[Split, int] = {"train": 80, "heldout": 40}
QUIET = 60  # of 32768: what lies below at both ends is cut off
FRAME_SAMPLES = 320  # 20 ms: one frame after the audio encoder's second convolution
DEFAULT_RATE, DEFAULT_PITCH, DEFAULT_RANGE = 175, 50, 50  # what `espeak-ng` speaks with


class Span(NamedTuple):
    """A word or phoneme and where it starts and ends, in samples."""

    token: str
    start: int
    end: int


class Clip(NamedTuple):
    """One synthesised phrase."""

    samples: npt.NDArray[np.int16]  # (N,) 16 kHz
    phrase: Phrase
    voice: str
    words: tuple[Span, ...]
    phonemes: tuple[Span, ...]


class BankMissingError(RuntimeError):
    """There is no clip bank in the folder, or it was made for other phrases."""


# Making -----------------------------------------------------------------------------------------------------
def synthesise(phrase: Phrase, voice: Voice, rng: random.Random) -> Clip:
    """Say a phrase with a voice at a random rate and pitch; a plain voice often speaks at its defaults."""
    rate, pitch, pitch_range = rng.randint(115, 230), rng.randint(20, 80), rng.randint(30, 75)
    if voice.is_plain and rng.random() < 0.5:
        rate, pitch, pitch_range = DEFAULT_RATE, DEFAULT_PITCH, DEFAULT_RANGE
    said = espeak.synthesiser().say(phrase.say, voice.name, rate=rate, pitch=pitch, pitch_range=pitch_range)
    samples = acoustics.resample(said.samples, said.sample_rate)
    loud = np.flatnonzero(np.abs(samples) > QUIET)
    first, last = (int(loud[0]), int(loud[-1]) + 1) if loud.size else (0, samples.size)
    first, last = max(0, first - FRAME_SAMPLES), min(samples.size, last + FRAME_SAMPLES)
    scale = acoustics.SAMPLE_RATE / said.sample_rate

    def moment(sample: int) -> int:
        return min(max(round(sample * scale) - first, 0), last - first)

    phonemes = _spans([(name, moment(at)) for name, at in said.phonemes], last - first)
    starts = [(position, moment(at)) for position, at in said.words if position >= 0]  # -1 comes after the last word
    words = _word_spans(phrase, starts, phonemes[-1].end if phonemes else last - first)
    return Clip(samples[first:last], phrase, voice.name, words, tuple(s for s in phonemes if _is_sound(s.token)))


def _is_sound(name: str) -> bool:
    """Tell phonemes from pauses and from the marks of a change of language, "(en)"."""
    return bool(name) and not name.startswith("(")


def _spans(starts: list[tuple[str, int]], end: int) -> list[Span]:
    """Turn starts into spans; each lasts until the next starts, trailing pauses are dropped."""
    ends = [at for _, at in starts[1:]] + [end]
    spans = [Span(name, at, until) for (name, at), until in zip(starts, ends, strict=True)]
    while spans and not _is_sound(spans[-1].token):
        spans.pop()
    return spans


def _word_spans(phrase: Phrase, starts: list[tuple[int, int]], end: int) -> tuple[Span, ...]:
    """Give every word of the transcript a span.

    The synthesiser joins small words ("on the") into one event: the words of an event share its time by their
    number of letters.
    """
    tokens = phrases.tokens(phrase.text)
    positions = _positions(phrase, tokens)
    spans: list[Span] = []
    bounds = [*starts, (len(phrase.say) + 1, end)]
    for (place, start), (next_place, next_start) in itertools.pairwise(bounds):
        group = [token for token, position in zip(tokens, positions, strict=True) if place <= position < next_place]
        letters = sum(map(len, group)) or 1
        at = float(start)
        for token in group:
            until = at + (next_start - start) * len(token) / letters
            spans.append(Span(token, round(at), round(until)))
            at = until
    return tuple(spans)


def _positions(phrase: Phrase, tokens: list[str]) -> list[int]:
    """Return where each word of the transcript starts in what the synthesiser was given."""
    if phrase.say[:1].isdigit():
        return [2 * n for n in range(len(tokens))]  # "3 5 7"
    positions, at = [], 0
    lowered = phrase.say.lower()
    for token in tokens:
        at = lowered.index(token, at)
        positions.append(at)
        at += len(token)
    return positions


def build_shard(voice: Voice, *, folder: Path, clips_per_voice: dict[Split, int], seed: int) -> str:
    """Synthesise the clips of one voice and write its shard; return the shard's path inside `folder`."""
    rng = random.Random(f"{seed}/{voice.split}/{voice.name}")
    num_clips = clips_per_voice[voice.split] * voice.weight
    clips = [synthesise(phrases.sample_phrase(voice.language, rng), voice, rng) for _ in range(num_clips)]
    name = f"{voice.split}/{voice.name}"
    (folder / voice.split).mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", np.concatenate([clip.samples for clip in clips]))
    starts = np.cumsum([0] + [clip.samples.size for clip in clips]).tolist()
    rows = [_as_row(clip, start) for clip, start in zip(clips, starts, strict=False)]
    text = json.dumps({"voice": voice.name, "language": voice.language, "clips": rows}, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return name


def _as_row(clip: Clip, start: int) -> dict[str, Any]:
    phrase = clip.phrase
    row: dict[str, Any] = {
        "start": start,
        "size": int(clip.samples.size),
        "kind": phrase.kind,
        "text": phrase.text,
        "say": phrase.say,
        "words": clip.words,
        "phonemes": clip.phonemes,
    }
    if phrase.ask is not None:
        row["ask"] = asks.as_record(phrase.ask)
    if phrase.reply is not None:
        row["reply"] = phrase.reply
    return row


def build_bank(
    folder: Path, *, clips_per_voice: dict[Split, int] | None = None, seed: int = 0, num_workers: int = 2,
    num_voices: int | None = None,
) -> None:  # fmt: skip
    """Write the clip bank, a process per shard; `num_voices` keeps the first voices of each split and language.

    Raises:
        espeak.EspeakError: eSpeak NG or one of its voices is missing.
    """
    chosen = [voice for split in get_args(Split) for voice in _some(voices(split), num_voices)]
    work = partial(build_shard, folder=folder, clips_per_voice=clips_per_voice or CLIPS_PER_VOICE, seed=seed)
    with multiprocessing.get_context("spawn").Pool(num_workers, maxtasksperchild=1) as pool:
        shards = list(pool.imap(work, chosen))
    names: set[str] = set()
    for shard in shards:
        rows = json.loads((folder / f"{shard}.json").read_text(encoding="utf-8"))["clips"]
        names.update(span[0] for row in rows for span in row["phonemes"])
    index = {"espeak": espeak.synthesiser().version, "seed": seed, "phonemes": sorted(names), "shards": shards}
    (folder / "index.json").write_text(json.dumps(index, ensure_ascii=False) + "\n", encoding="utf-8")


def _some(candidates: tuple[Voice, ...], count: int | None) -> list[Voice]:
    chosen = []
    for language in asks.LANGUAGES:
        chosen += [voice for voice in candidates if voice.language == language][:count]
    return chosen


# Using ------------------------------------------------------------------------------------------------------
class ClipBank:
    """The clips of a split, found by language and kind."""

    def __init__(self, split: Split, folder: Path = DEFAULT_FOLDER) -> None:
        """Read the index and the shards' tables; samples are mapped when a clip is first taken.

        Raises:
            BankMissingError: there is no bank.
        """
        if not (folder / "index.json").is_file():
            raise BankMissingError(f"no clip bank in {folder}; make one: python -m embedded_model.speech {folder}")
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self._folder = folder
        self.phoneme_class = {name: n + 1 for n, name in enumerate(index["phonemes"])}  # 0 is silence
        self.word_class = {name: n + 1 for n, name in enumerate(phrases.spoken_words())}  # 0 is silence
        self._samples: dict[str, npt.NDArray[np.int16]] = {}
        self._rows: list[tuple[str, Language, dict[str, Any]]] = []
        self._found: dict[tuple[Language, str], list[int]] = {}
        for shard in index["shards"]:
            if shard.startswith(f"{split}/"):
                self._read_shard(shard)

    def _read_shard(self, shard: str) -> None:
        table = json.loads((self._folder / f"{shard}.json").read_text(encoding="utf-8"))
        for row in table["clips"]:
            self._found.setdefault((table["language"], row["kind"]), []).append(len(self._rows))
            self._rows.append((shard, table["language"], row))

    def __len__(self) -> int:
        return len(self._rows)

    def clip(self, number: int) -> Clip:
        """Return a clip by its number, 0 <= number < len(bank)."""
        shard, language, row = self._rows[number]
        if shard not in self._samples:
            self._samples[shard] = np.load(self._folder / f"{shard}.npy", mmap_mode="r")
        phrase = Phrase(
            kind=row["kind"],
            language=language,
            text=row["text"],
            say=row["say"],
            ask=asks.from_record(row["ask"]) if "ask" in row else None,
            reply=row.get("reply"),
        )
        samples = self._samples[shard][row["start"] : row["start"] + row["size"]]
        words, phonemes = (tuple(Span(*span) for span in row[key]) for key in ("words", "phonemes"))
        return Clip(samples, phrase, shard.partition("/")[2], words, phonemes)

    def sample_clip(self, language: Language, kinds: tuple[str, ...], rng: random.Random) -> Clip:
        """Return a random clip of a language and of one of the kinds.

        Raises:
            BankMissingError: the bank has none.
        """
        kind = rng.choices(kinds, [len(self._found.get((language, kind), ())) for kind in kinds])[0]
        return self.clip(rng.choice(self._found[language, kind]))


def main() -> None:
    """Build the bank and say what came out."""
    parser = argparse.ArgumentParser(description="Synthesise the clip bank with eSpeak NG.")
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER)
    parser.add_argument("--clips-per-voice", type=int, default=CLIPS_PER_VOICE["train"])
    parser.add_argument("--heldout-clips-per-voice", type=int, default=CLIPS_PER_VOICE["heldout"])
    parser.add_argument("--num-voices", type=int, help="per split and language; all by default")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.perf_counter()
    build_bank(
        arguments.folder,
        clips_per_voice={"train": arguments.clips_per_voice, "heldout": arguments.heldout_clips_per_voice},
        seed=arguments.seed,
        num_workers=arguments.workers,
        num_voices=arguments.num_voices,
    )
    seconds = time.perf_counter() - started
    for split in get_args(Split):
        bank = ClipBank(split, arguments.folder)
        print(f"{split}: {len(bank)} clips, {len(bank.phoneme_class)} phonemes")
    size = sum(path.stat().st_size for path in arguments.folder.rglob("*") if path.is_file())
    print(f"{size / 1e6:.0f} MB in {seconds:.0f} s")


if __name__ == "__main__":
    main()
