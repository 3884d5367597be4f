"""Films with an answer after every frame: where a frame ends the model is to say how often the ball has bounced so far.

A count is one token after up to twenty frames. To predict it at the end of each, where in truth the time of the next
frame follows, makes the model keep it up to date; nothing of this is said when it answers.
"""

from __future__ import annotations

from dataclasses import replace

from embedded_model.films import Film
from tianquan.processing.tokenizer import Tokenizer
from tianquan.training.examples import Example

AFTER_SPAN = 2  # tokens: the slice's closing one and the line feed, after which the next token is predicted


def follow(example: Example, film: Film, tokenizer: Tokenizer) -> Example:
    """Return an example that also predicts `film.bounced` frame by frame; unchanged if frames are missing."""
    spans = [span for span in example.prompt.spans if span.kind == "image"]
    if len(spans) != len(film.bounced):
        return example
    mask, targets = example.loss_mask.copy(), example.prompt.token_ids.copy()
    for span, number in zip(spans, film.bounced, strict=True):
        place = span.start + span.length + AFTER_SPAN
        if number is not None and not mask[place]:
            mask[place] = True
            (targets[place],) = tokenizer.encode_text(str(number))
    return replace(example, loss_mask=mask, other_targets=targets)
