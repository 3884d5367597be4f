"""Questions with an answer at every name: where "red" or "circles" is said, how many there are, where or how large.

A count is one token at the end of a dozen. To predict it at each name of a shape or colour, in truth followed by the
rest of the question, makes the model find and add up what is named, whatever is then asked; nothing of this is said
when it answers. What is left of what was at chance as well, while the places were in what the model saw; and of two
sizes it named a third thing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from embedded_model import colours, shapes
from embedded_model.pictures import Object, Scene
from tianquan.processing.tokenizer import Tokenizer
from tianquan.training.examples import Example

SPECIAL = b"\n"  # what stands in the text for a special token
EIGHTHS = 8  # of a picture's width or height: half a cell of the resampler's
TENTHS = 10  # of a picture's shorter side: a thing's size is the root of its area
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


SHAPES, COLOURS = _names()
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
    return _tell_behind_names(example, tokenizer, lambda named: [str(named.count(scene))])


def place_names(example: Example, scene: Scene, tokenizer: Tokenizer) -> Example:
    """Return an example that also predicts, behind each name, where what it names is.

    In eighths of the picture: from the left and, a token later, from the top. Of what is not there, or more than once,
    nothing is predicted.
    """

    def place(named: Named) -> list[str]:
        things = named.things(scene)
        if len(things) != 1:
            return []
        shares = (things[0].x / scene.size[0], things[0].y / scene.size[1])
        return [str(min(EIGHTHS - 1, int(EIGHTHS * share))) for share in shares]

    return _tell_behind_names(example, tokenizer, place)


def size_names(example: Example, scene: Scene, tokenizer: Tokenizer) -> Example:
    """Return an example that also predicts, behind each name of one thing, its size in tenths of the shorter side."""

    def size(named: Named) -> list[str]:
        things = named.things(scene)
        if len(things) != 1:
            return []
        return [str(min(TENTHS - 1, int(TENTHS * things[0].area ** 0.5 / min(scene.size))))]

    return _tell_behind_names(example, tokenizer, size)


def _tell_behind_names(example: Example, tokenizer: Tokenizer, tell: Callable[[Named], list[str]]) -> Example:
    """Return an example that also predicts one-token texts in the places behind each name that are free."""
    mask, targets = example.loss_mask.copy(), example.targets.copy()
    first = example.prompt.spans[0].start + example.prompt.spans[0].length
    for start, stop in _questions(example, first):
        tokens = example.prompt.token_ids[start:stop].tolist()
        pieces = [tokenizer.token_bytes(token) or SPECIAL for token in tokens]
        ends = list(itertools.accumulate(map(len, pieces)))
        text = b"".join(pieces).decode("utf-8", errors="replace")
        for named in names_in(text):
            end = len(text[: named.end].encode())
            place = start + 1 + next(n for n, piece_end in enumerate(ends) if piece_end >= end)
            for at, told in enumerate(tell(named), place):
                if at < len(mask) and not example.loss_mask[at]:  # of names that end in one token, the last
                    mask[at] = True
                    (targets[at],) = tokenizer.encode_text(told)
    return replace(example, loss_mask=mask, other_targets=targets)


def _questions(example: Example, first: int) -> Iterator[tuple[int, int]]:
    """Yield where there are tokens from `first` on that are neither an answer's nor a medium's."""
    own = example.loss_mask.copy()
    own[:first] = True
    for span in example.prompt.spans:
        own[span.start : span.start + span.length] = True
    edges = [0, *(n + 1 for n in range(len(own) - 1) if own[n] != own[n + 1]), len(own)]
    return ((start, stop) for start, stop in itertools.pairwise(edges) if not own[start])
