"""Films with an answer after every frame: how often the ball has bounced so far, or what has just come or gone.
Two pictures with one after each.

A count is one token after up to twenty frames, and so is what came first. To predict where each frame ends how things
stand, where in truth the end of the slice or the time of the next frame follows, makes the model keep up with the film;
nothing of this is said when it answers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace

from embedded_model.films import Film
from embedded_model.pictures import Scene
from tianquan.processing.frames import time_text
from tianquan.processing.tokenizer import Tokenizer
from tianquan.training.examples import Example

CLOSING, AFTER_SLICE = 0, 2  # tokens after the features: the slice's closing one, and the first after the line feed
NOTHING = "0"
TIME = re.compile(r"\d+\.\ds")


def follow(example: Example, film: Film, tokenizer: Tokenizer) -> Example:
    """Return an example that also predicts what is known of each frame that is shown; unchanged if nothing is.

    After a frame comes a count, or a colour; in the place of the token that closes its slice, a shape. They are
    English words always: in which language the film will be asked about is not known yet.
    """
    spans = [span for span in example.prompt.spans if span.kind == "image"]
    mask, targets = example.loss_mask.copy(), example.prompt.token_ids.copy()
    for span, frame in zip(spans, _frames_shown(example, film, tokenizer), strict=True):
        for place, word in _words(film, frame).items():
            at = span.start + span.length + place
            if not mask[at]:
                mask[at] = True
                targets[at] = tokenizer.encode_text(word)[0]
    return replace(example, loss_mask=mask, other_targets=targets)


def tell_pictures(example: Example, scenes: Sequence[Scene], tokenizer: Tokenizer) -> Example:
    """Return an example that also predicts, where each of several pictures ends, what it shows.

    Of a single object its shape in the place of the token that closes the picture and its colour behind it, of several
    their number there; in English as well.
    """
    mask, targets = example.loss_mask.copy(), example.prompt.token_ids.copy()
    spans = iter(span for span in example.prompt.spans if span.kind == "image")
    for image, scene in zip(example.prompt.images, scenes, strict=True):
        *_, last = itertools.islice(spans, len(image.slices))
        things, end = scene.objects, last.start + last.length
        words = [f" {things[0].shape}", f" {things[0].colour}"] if len(things) == 1 else [str(len(things))] * 2
        for at, word in enumerate(words, end):
            if not mask[at]:
                mask[at] = True
                targets[at] = tokenizer.encode_text(word)[0]
    return replace(example, loss_mask=mask, other_targets=targets)


def _frames_shown(example: Example, film: Film, tokenizer: Tokenizer) -> list[int]:
    """Return which frame each picture of the prompt is, by the time written before it; some are left out."""
    times = [time_text(n / film.rate) for n in range(len(film.frames))]
    token_ids, end, frames = example.prompt.token_ids, 0, []
    for span in example.prompt.spans:
        if span.kind == "image":
            before = tokenizer.decode(token_ids[end : span.start].tolist())
            frames.append(times.index(TIME.findall(before)[-1]))
        end = span.start + span.length
    return frames


def _words(film: Film, frame: int) -> dict[int, str]:
    """Return what is to be predicted behind a frame: the word by the number of tokens after its features."""
    if film.bounced:
        number = film.bounced[frame]
        return {} if number is None else {AFTER_SLICE: str(number)}
    if not film.changed:
        return {}
    thing = film.changed[frame]
    if thing is None:
        return dict.fromkeys((CLOSING, AFTER_SLICE), NOTHING)
    return {CLOSING: f" {thing.shape}", AFTER_SLICE: f" {thing.colour}"}  # each one token, as inside an answer
