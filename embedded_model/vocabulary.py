"""Everything the generator can say, as text to train a tokenizer on.

    python -m embedded_model.vocabulary corpus.txt --lines 50000

The corpus starts with every fixed wording, answer, word and character, so that none is missed, and goes on with
random sentences in about the proportions of training. Nothing is drawn or spoken.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from embedded_model import asks, phrases, prompts, small_talk, wordings, words
from embedded_model.asks import LANGUAGES, Ask
from embedded_model.colours import COLOURS
from embedded_model.shapes import SHAPES

TURN_KINDS = ("ask", "reply", "writing", "speech", "talk", "prompt", "digits")
TURN_WEIGHTS = (30, 15, 12, 18, 8, 12, 5)


def fixed_texts() -> Iterator[str]:
    """Yield every text without a random part, each once or a few times."""
    for language in LANGUAGES:
        for by_language in (prompts.READ_DIGITS, prompts.READ_TEXT, prompts.TRANSCRIBE, prompts.SPOKEN_DIGITS):
            yield from by_language[language]
        yield prompts.TRANSCRIBE_MAIN[language]
        yield from prompts.ANSWER_SPOKEN[language]
        yield from prompts.FIRST_SECOND[language]
        yield from prompts.DIFFERENCE[language]
        yield from (*asks.YES_NO[language], *asks.HAVE[language], asks.NONE[language])
        yield from (place for row in asks.PLACES[language] for place in row)
        yield from phrases.COMMANDS[language]
        yield from phrases.DIGIT_WORDS[language]
        for _, questions, reply in small_talk.FIXED[language]:
            yield from (*questions, reply)
        for exchange in small_talk.spoken_exchanges(language):
            yield from (exchange.question, phrases.spoken_form(exchange.question), exchange.answer)
        for shape in SHAPES:
            for colour in COLOURS:
                yield asks.both_words(colour.name, shape.name, language)
    for shape in SHAPES:
        yield from (shape.name, shape.plural, shape.chinese, *shape.also_chinese)
        yield from (word for pair in shape.also for word in pair)
    for colour in COLOURS:
        yield from (colour.name, colour.chinese, *colour.also, *colour.also_chinese)
    yield from words.ENGLISH_WORDS
    yield from (case(word) for word in words.ENGLISH_WORDS for case in (str.upper, str.title))
    yield from words.CHINESE_WORDS
    yield from words.CHARACTERS


def sentence(rng: random.Random) -> str:
    """Return one random turn of a user or of the model."""
    language = rng.choice(LANGUAGES)
    kind = rng.choices(TURN_KINDS, TURN_WEIGHTS)[0]
    if kind == "ask":
        return wordings.word(asks.random_ask(rng.choice(asks.ASK_KINDS), rng), language, rng)
    if kind == "reply":
        return _reply(rng, language)
    if kind == "writing":
        count = rng.choice((1, 1, 1, 2, 3))
        return "\n".join(words.sample_line(rng, language, rng.choice((1, 1, 2, 3))) for _ in range(count))
    if kind == "speech":
        return phrases.sample_phrase(language, rng).text
    if kind == "talk":
        exchange = small_talk.sample_exchange(language, rng)
        return rng.choice((exchange.question, exchange.answer))
    if kind == "digits":
        return words.sample_digits(rng)
    if rng.random() < 0.3:
        text = rng.choice(rng.choice(tuple(prompts.TWO_PICTURES.values()))[language])
        shape = asks.shape_word(rng.choice(SHAPES).name, language)
        return text.format(shape=shape, colour=asks.colour_word(rng.choice(COLOURS).name, language))
    return rng.choice((prompts.TRANSCRIBE_MAIN[language], *prompts.READ_TEXT[language], *prompts.READ_DIGITS[language]))


def _reply(rng: random.Random, language: asks.Language) -> str:
    ask: Ask = asks.random_ask("count_both", rng)
    items = [asks.both_words(rng.choice(COLOURS).name, rng.choice(SHAPES).name, language) for _ in range(3)]
    return rng.choice(
        (
            asks.shape_word(ask.shape, language),
            asks.colour_word(ask.colour, language),
            asks.joined(items[: rng.randint(1, 3)], language),
            rng.choice(rng.choice(asks.PLACES[language])),
            rng.choice((*asks.YES_NO[language], *asks.HAVE[language])),
            str(rng.randint(0, 8)),
        )
    )


def corpus(num_lines: int, seed: int = 0) -> Iterator[str]:
    """Yield `num_lines` texts: all fixed ones first, then random ones; a text may hold a line break."""
    rng = random.Random(seed)
    fixed = list(fixed_texts())
    yield from islice(fixed, num_lines)
    for _ in range(num_lines - len(fixed)):
        yield sentence(rng)


def characters() -> list[str]:
    """Return every character that can occur, sorted."""
    written = [text for by in wordings.WORDINGS.values() for texts in by.values() for text in texts]
    written += [text for by in prompts.TWO_PICTURES.values() for texts in by.values() for text in texts]
    for language in LANGUAGES:
        written += [*small_talk.ARITHMETIC[language], *small_talk.OPPOSITE_WORDINGS[language]]
        written += [spelling for spellings in small_talk.OPERATORS[language].values() for spelling in spellings]
    return sorted(set("".join((*fixed_texts(), *written, "\n ,，?？请问、"))))


def main() -> None:
    """Write the corpus, one text a line (a line break inside a text becomes two lines)."""
    parser = argparse.ArgumentParser(description="Write the text the generator can say.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with arguments.path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in corpus(arguments.lines, arguments.seed))
    print(f"{arguments.path}: {arguments.lines} texts, {len(characters())} different characters")


if __name__ == "__main__":
    main()
