"""Questions with an answer at every name: where "red" or "circles" is said, how many there are, where or how large.

A count is one token at the end of a dozen. To predict it at each name of a shape or colour, in truth followed by the
rest of the question, makes the model find and add up what is named, whatever is then asked; nothing of this is said
when it answers. A name that is heard has its number, too. What is left of what was at chance as well, while the
places were in what the model saw; and of two sizes it named a third thing.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from embedded_model import colours, shapes
from embedded_model.pictures import Object, Scene
from embedded_model.speech import FRAME_SAMPLES
from embedded_model.studio import Sound
from tianquan.processing.tokenizer import Tokenizer
from tianquan.training.examples import Example

SPECIAL = b"\n"  # what stands in the text for a special token
EIGHTHS = 8  # of a picture's width or height: half a cell of the resampler's
TENTHS = 10  # of a picture's shorter side: a thing's size is the root of its area
TOKEN_SAMPLES = 2 * FRAME_SAMPLES  # of an audio token
ANY_SHAPE = ("shapes", "objects", "things", "图形", "物体")


def _names() -> tuple[dict[str, str], dict[str, str]]:
    """Return the shape that each word names ("" for any), and the colour that each does."""
    named_shapes = dict.fromkeys(ANY_SHAPE, "")
    for shape in shapes.BY_NAME.values():
        words = (shape.name, shape.plural, *itertools.chain.from_iterable(shape.also))
        named_shapes |= dict.fromkeys((*words, shape.chinese, *shape.also_chinese), shape.name)
    named_colours = {
        word: colour.name
        for colour in colours.BY_NAME.values()
        for word in (colour.name, *colour.also, colour.chinese, *colour.also_chinese)
    }
    return named_shapes, named_colours


def _any_of(words: dict[str, str]) -> str:
    """Return a pattern of the words, the longest first; Chinese ones end anywhere."""
    ordered = sorted(words, key=len, reverse=True)
    return "|".join(rf"\b{word}\b" if word.isascii() else word for word in ordered)


Told = tuple[int, list[str]]  # behind which character of a text, one token each
SHAPES, COLOURS = _names()
# In Chinese it follows both names; the first of them is asked to be further along, or not as far.
DIRECTION = re.compile("(?P<across>左边|右边)|上面|上方|下面|下方")
FURTHER = ("右边", "下面", "下方")
REPEATED = 3  # places from there to the answer, or that a number heard of is told in
NAME = re.compile(
    rf"(?P<colour>{_any_of(COLOURS)})(?:\s+|的)?(?P<both>{_any_of(SHAPES)})?|(?P<shape>{_any_of(SHAPES)})",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Named:
    """What is named in a text, and the character behind the name."""

    shape: str  # "": any
    colour: str  # "": any
    end: int

    def things(self, scene: Scene) -> list[Object]:
        """Return those of a scene's objects that are named."""
        return [o for o in scene.objects if self.shape in ("", o.shape) and self.colour in ("", o.colour)]

    def count(self, scene: Scene) -> int:
        """Return how many of them a scene has."""
        return len(self.things(scene))


def names_in(text: str) -> Iterator[Named]:
    """Yield what a text names, in order: a colour with a shape is named twice, the colour alone and both."""
    for found in NAME.finditer(text):
        if found["shape"] is not None:
            yield Named(SHAPES[found["shape"].lower()], "", found.end())
            continue
        colour = COLOURS[found["colour"].lower()]
        yield Named("", colour, found.end("colour"))
        if found["both"] is not None:
            yield Named(SHAPES[found["both"].lower()], colour, found.end())


def count_names(example: Example, scene: Scene, tokenizer: Tokenizer) -> Example:
    """Return an example that also predicts, behind each name in a question about its one picture, their number."""
    return _tell_in_questions(
        example, tokenizer, lambda text: ((named.end, [str(named.count(scene))]) for named in names_in(text))
    )


def count_heard_names(example: Example, scene: Scene, sounds: Sequence[Sound], tokenizer: Tokenizer) -> Example:
    """Return an example that also predicts, where a name in a spoken question has been said, their number.

    And in the next places of the clip, as far as nothing else is said in them.

    Args:
        example: of a conversation about one picture.
        scene: the picture's.
        sounds: the conversation's clips.
        tokenizer: the model's.
    """
    mask, targets = example.loss_mask.copy(), example.targets.copy()
    clips = (span for span in example.prompt.spans if span.kind == "audio")
    for span, sound in zip(clips, sounds, strict=True):
        for named, moment in _names_heard(sound):
            heard = math.ceil(moment / TOKEN_SAMPLES)  # tokens, behind the one that begins a clip
            first = span.start + min(1 + heard, span.length)
            last = min(first + REPEATED - 1, span.start + span.length)
            mask[first : last + 1] = True
            targets[first : last + 1] = tokenizer.encode_text(str(named.count(scene)))
    return replace(example, loss_mask=mask, other_targets=targets)


def _names_heard(sound: Sound) -> Iterator[tuple[Named, int]]:
    """Yield what a clip names and the sample at which it has been said."""
    text, ends, at = sound.clip.phrase.text.lower(), [], 0
    for word in sound.words:
        at = text.index(word.token, at) + len(word.token)
        ends.append(at)
    for named in names_in(text):
        yield named, sound.words[bisect.bisect_left(ends, named.end)].end


def place_names(example: Example, scene: Scene, tokenizer: Tokenizer) -> Example:
    """Return an example that also predicts, behind each name, where what it names is.

    In eighths of the picture: from the left and, a token later, from the top. Behind a direction that follows two names
    it predicts how far along the one is that should be nearer the left or the top, then the other, then three times how
    much further the other: in fifths, from 0 for a picture less to 9 for nearly one more; from 5 on the answer is
    yes. Of what is not there, or more than once, nothing is predicted.
    """

    def place(named: Named) -> tuple[float, float] | None:
        things = named.things(scene)
        return (things[0].x / scene.size[0], things[0].y / scene.size[1]) if len(things) == 1 else None

    def tell(text: str) -> Iterator[Told]:
        told = [(named.end, place(named)) for named in names_in(text)]
        yield from ((end, [_eighth(share) for share in at]) for end, at in told if at is not None)
        for direction in DIRECTION.finditer(text):
            of_two = [at for end, at in told if end <= direction.start()][-2:]
            along = [at[0 if direction["across"] else 1] for at in of_two if at is not None]
            if len(along) == 2:
                before, behind = reversed(along) if direction[0] in FURTHER else along
                further = min(9, int(5 * (1 + behind - before)))
                yield direction.end(), [_eighth(before), _eighth(behind), *[str(further)] * REPEATED]

    return _tell_in_questions(example, tokenizer, tell)


def _eighth(share: float) -> str:
    return str(min(EIGHTHS - 1, int(EIGHTHS * share)))


def size_names(example: Example, scene: Scene, tokenizer: Tokenizer) -> Example:
    """Return an example that also predicts, behind each name of one thing, its size in tenths of the shorter side."""

    def size(named: Named) -> list[str]:
        things = named.things(scene)
        if len(things) != 1:
            return []
        return [str(min(TENTHS - 1, int(TENTHS * things[0].area ** 0.5 / min(scene.size))))]

    return _tell_in_questions(example, tokenizer, lambda text: ((named.end, size(named)) for named in names_in(text)))


def _tell_in_questions(example: Example, tokenizer: Tokenizer, tell: Callable[[str], Iterable[Told]]) -> Example:
    """Return an example that also predicts one-token texts in free places of its questions."""
    mask, targets = example.loss_mask.copy(), example.targets.copy()
    first = example.prompt.spans[0].start + example.prompt.spans[0].length
    for start, stop in _questions(example, first):
        tokens = example.prompt.token_ids[start:stop].tolist()
        pieces = [tokenizer.token_bytes(token) or SPECIAL for token in tokens]
        ends = list(itertools.accumulate(map(len, pieces)))
        text = b"".join(pieces).decode("utf-8", errors="replace")
        for behind, words in tell(text):
            end = len(text[:behind].encode())
            place = start + 1 + next(n for n, piece_end in enumerate(ends) if piece_end >= end)
            for at, word in enumerate(words, place):
                if at < len(mask) and not example.loss_mask[at]:  # of words for one place, the last
                    mask[at] = True
                    (targets[at],) = tokenizer.encode_text(word)
    return replace(example, loss_mask=mask, other_targets=targets)


def _questions(example: Example, first: int) -> Iterator[tuple[int, int]]:
    """Yield where there are tokens from `first` on that are neither an answer's nor a medium's."""
    own = example.loss_mask.copy()
    own[:first] = True
    for span in example.prompt.spans:
        own[span.start : span.start + span.length] = True
    edges = [0, *(n + 1 for n in range(len(own) - 1) if own[n] != own[n + 1]), len(own)]
    return ((start, stop) for start, stop in itertools.pairwise(edges) if not own[start])
