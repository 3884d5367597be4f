"""Films: what is asked can be seen in the frames, splits differ, and a film becomes a training example and a record."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
from embedded_model.asks import both_words
from embedded_model.films import (
    BOUNCING_SIZES,
    FILM_KINDS,
    MANY_FRAMES,
    MAX_BOUNCES,
    NUM_FRAMES,
    SIDE,
    _arc_heights,
    draw_film,
)
from embedded_model.frame_targets import follow
from embedded_model.moments import ask_moments
from embedded_model.samples import WEIGHTS
from embedded_model.write_records import write_records

from tianquan.checkpoint import find_folder, open_checkpoint
from tianquan.processing.messages import parse_messages
from tianquan.request import MediaPolicy, VideoPolicy
from tianquan.training.examples import build_example
from tianquan.training.records import Record, read_records

FILM_TASKS = [task for task in WEIGHTS if task.startswith("film_")]


def films(kind, language, count):
    rng = random.Random(f"{kind}/{language}")
    return [draw_film(kind, language, rng, np.random.default_rng(n)) for n in range(count)]


def change_centres(frames):
    """Return the middle of what differs from the median frame, for each frame."""
    ground = np.median(frames, axis=0)
    weights = np.clip(np.abs(frames - ground).sum(axis=3) - 90, 0, None)
    total = weights.sum(axis=(1, 2)) + 1e-6
    return (weights.sum(axis=1) @ np.arange(SIDE)) / total, (weights.sum(axis=2) @ np.arange(SIDE)) / total


def test_films_are_off_in_the_stages_there_are():
    assert all(WEIGHTS[task] == 0 for task in FILM_TASKS)
    assert len(FILM_TASKS) == 7


@pytest.mark.parametrize("kind", FILM_KINDS)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_films_have_few_small_frames_and_a_spread_of_answers(kind, language):
    drawn = films(kind, language, 60)
    sizes = BOUNCING_SIZES if kind == "bounces" else ((SIDE, SIDE),)
    assert {film.frames.shape[1:] for film in drawn} == {(height, width, 3) for width, height in sizes}
    assert all(4 <= len(film.frames) <= MANY_FRAMES[1] for film in drawn)
    assert {len(film.frames) <= NUM_FRAMES[1] for film in drawn} == {True, False}
    assert all(film.question.isascii() == (language == "en") and "{" not in film.question for film in drawn)
    replies = Counter(film.reply for film in drawn)
    assert max(replies.values()) < 30


def test_directions_can_be_seen():
    right = 0
    for film in films("direction", "en", 40):
        across, down = change_centres(film.frames.astype(float))
        step = {"left": -1, "right": 1, "up": -1, "down": 1}[film.reply]
        moved = (across if film.reply in ("left", "right") else down)[[0, -1]]
        right += np.sign(moved[1] - moved[0]) == step
    assert right >= 36  # the median frame is not always the ground


def test_bounces_are_one_to_four_and_apart():
    for film in films("bounces", "zh", 40):
        assert 1 <= int(film.reply) <= MAX_BOUNCES
        assert len(film.frames) >= 2 * int(film.reply)


def test_arcs_come_down_as_often_as_the_answer_says():
    for n in range(200):
        bounces = 1 + n % MAX_BOUNCES
        heights, bounced = _arc_heights(bounces, random.Random(n))
        assert heights[0] < 1e-6 or heights[0] > 0.6  # thrown up, or let fall
        falls = np.diff(heights) < 0
        assert np.count_nonzero(falls[1:] & ~falls[:-1]) + falls[0] == bounces
        known = [number for number in bounced if number is not None]
        assert known == sorted(known)
        assert 0 <= known[0] <= known[-1] <= bounces
        assert all(height > 0.02 for height, number in zip(heights, bounced, strict=True) if number is not None)


def test_splits_differ(train, heldout):
    for task in set(FILM_TASKS) - {"film_speech"}:
        seen = [stream.sample(3, {task: 1.0}).conversation[0]["content"]["video"][0] for stream in (train, heldout)]
        assert seen[0].shape != seen[1].shape or not np.array_equal(*seen)


@pytest.mark.parametrize("task", FILM_TASKS)
def test_a_film_is_a_training_example(task, train, processor):
    sample = train.sample(1, {task: 1.0})
    record = Record(tuple(parse_messages(sample.conversation)), "film")
    policy = MediaPolicy(video=VideoPolicy(max_tokens=10_000))
    example = build_example(processor, record, policy, None, 10_000)
    assert 1 <= example.prompt.num_video_frames <= MANY_FRAMES[1]
    assert len(example.prompt.audios) == (task == "film_speech")
    assert example.loss_mask.any()


def test_films_are_written_as_records(train, tmp_path, processor):
    path = write_records([train.sample(n, {"film_order": 1.0}) for n in range(2)], tmp_path, "film_order")
    line = json.loads(path.read_text().splitlines()[0])
    assert line["conversations"][0]["content"]["video"].endswith(".mp4")
    for n, record in enumerate(read_records(path)):
        prompt = build_example(processor, record, MediaPolicy(), tmp_path, 10_000).prompt
        frames, rate = train.sample(n, {"film_order": 1.0}).conversation[0]["content"]["video"]
        assert 2 <= prompt.num_video_frames <= len(frames)
        assert rate > 0


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_ordered_film_is_asked_for_both_ends(language):
    for film in films("order", language, 20):
        question, reply = film.other_end
        ends = ("first", "last") if language == "en" else ("先", "后")
        assert {end in film.question for end in ends} == {end in question for end in ends} == {True, False}
        assert (ends[0] in film.question) != (ends[0] in question)
        assert reply != film.reply


@pytest.mark.parametrize("kind", FILM_KINDS)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_moments_are_asked_by_the_times_of_the_frames(kind, language):
    rng = random.Random(kind)
    for film in films(kind, language, 12):
        questions = list(ask_moments(film, language, rng))
        assert questions or len({thing.shape for thing in film.shown[0]}) < len(film.shown[0])
        times = {f"{n / film.rate:.1f}s" for n in range(len(film.frames))}
        for question, reply in questions:
            assert question.isascii() == (language == "en")
            assert any(time in question for time in times)
            assert reply


def test_what_is_said_of_moments_leads_to_the_answer():
    rng = random.Random(0)
    for film in films("bounces", "en", 30):
        counts = [int(reply) for question, reply in ask_moments(film, "en", rng) if "boun" in question]
        assert max(counts, default=0) <= int(film.reply)
    for film in films("order", "en", 30):
        things = {both_words(thing.colour, thing.shape, "en") for thing in film.scene.objects}
        numbers: dict[str, set[int]] = {}
        for question, reply in ask_moments(film, "en", rng):
            named = set() if reply == "none" else set(reply.replace(" and ", ", ").split(", "))
            number = int(reply) if "How many" in question else len(named)
            numbers.setdefault(question.split()[-1], set()).add(number)
            assert reply.isdigit() or named <= things
        assert {0, len(things)} <= set().union(*numbers.values())
        assert all(len(said) == 1 for said in numbers.values())


def _followed(sample, processor):
    """Return a sample's example, the same with targets behind its frames, and those targets as (place, text)."""
    record = Record(tuple(parse_messages(sample.conversation)), "film")
    example = build_example(processor, record, MediaPolicy(video=VideoPolicy(max_tokens=10_000)), None, 10_000)
    other = follow(example, sample.films[0], processor.tokenizer)
    np.testing.assert_array_equal(other.targets[example.loss_mask], example.prompt.token_ids[example.loss_mask])
    np.testing.assert_array_equal(other.prompt.token_ids, example.prompt.token_ids)
    extra = np.flatnonzero(other.loss_mask & ~example.loss_mask)
    return example, [(int(at), processor.tokenizer.decode([int(other.targets[at])])) for at in extra]


def test_a_ball_is_followed_frame_by_frame(train, processor):
    whole = 0
    for n in range(12):
        sample = train.sample(n, {"film_bounces": 1.0})
        (film,) = sample.films
        example, targets = _followed(sample, processor)
        known = [str(number) for number in film.bounced if number is not None]
        said = [text for _, text in targets]
        assert said == sorted(said)
        assert set(said) <= set(known)
        assert (np.diff([at for at, _ in targets]) > 3).all()
        if len(example.prompt.spans) == len(film.frames):  # else frames were alike
            whole += 1
            assert said == known
    assert whole >= 6


def test_what_comes_and_goes_is_told_in_its_frame(train):
    processor, left_out = open_checkpoint(find_folder("embedded")).processor, 0  # whose tokens are these words
    for n in range(24):
        sample = train.sample(n, {"film_order": 1.0})
        (film,) = sample.films
        example, targets = _followed(sample, processor)
        ends = [span.start + span.length for span in example.prompt.spans]
        assert [at for at, _ in targets] == [place for end in ends for place in (end, end + 2)]
        left_out += len(ends) < len(film.frames)
        told = [text.strip() for _, text in targets if text != "0"]
        things = [thing for thing in film.changed if thing is not None]
        words = [word for thing in things for word in (thing.shape, thing.colour)]
        assert told == words
        end = things[0] if film.asked == things[0] else things[-1]
        assert film.reply == both_words(end.colour, end.shape, sample.language)
    assert left_out
