"""Samples: the same number gives the same sample, splits are apart, answers are right, records load."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
from embedded_model.asks import Ask
from embedded_model.samples import WEIGHTS, SampleStream, without_speech
from embedded_model.voices import voices
from embedded_model.write_records import write_records
from PIL import Image

from embedded_model import asks, fonts, phrases, scene_plans, shapes, small_talk, speech, vocabulary, wordings
from tianquan.processing.audio import audio_counts
from tianquan.processing.messages import parse_messages


def content_of(sample):
    """Everything of a sample as comparable values."""
    media = [picture.image.tobytes() for picture in sample.pictures] + [s.samples.tobytes() for s in sample.sounds]
    labels = [picture.labels.index.tobytes() for picture in sample.pictures]
    texts = [(m["role"], m["content"].get("text"), sorted(m["content"])) for m in sample.conversation]
    return sample.task, sample.language, texts, media, labels


@pytest.mark.parametrize("task", WEIGHTS)
def test_a_number_gives_the_same_sample_in_any_order(task, train, bank_folder):
    other = SampleStream("train", bank_folder=bank_folder, max_side=168)
    forward = [content_of(train.sample(n, {task: 1.0})) for n in range(4)]
    backward = [content_of(other.sample(n, {task: 1.0})) for n in reversed(range(4))]
    assert forward == backward[::-1]
    assert forward[0] != forward[1]


def test_splits_and_seeds_differ(train, heldout, bank_folder):
    other_seed = SampleStream("train", seed=1, bank_folder=bank_folder, max_side=168)
    for n in range(5):
        seen = [content_of(stream.sample(n, {"count": 1.0}))[3] for stream in (train, heldout, other_seed)]
        assert seen[0] != seen[1]
        assert seen[0] != seen[2]


def test_heldout_fonts_and_voices_are_not_trained_on():
    packages = [{f.package for f in fonts.FAMILIES if f.split == split} for split in ("train", "heldout")]
    assert not packages[0] & packages[1]
    for script in ("latin", "chinese"):
        assert not set(fonts.font_names("train", script)) & set(fonts.font_names("heldout", script))
    variants = [{voice.name.partition("+")[2] for voice in voices(split)} for split in ("train", "heldout")]
    assert not variants[0] & variants[1]


def test_languages_and_tasks_follow_the_weights(fonts_installed):
    stream = SampleStream("train", weights={"text": 3.0, "position": 1.0}, max_side=112)
    samples = [stream.sample(n) for n in range(600)]
    assert 0.42 < Counter(sample.language for sample in samples)["en"] / 600 < 0.58
    assert 0.68 < Counter(sample.task for sample in samples)["text"] / 600 < 0.82
    with pytest.raises(ValueError, match="unknown tasks: colors"):
        stream.sample(0, {"colors": 1.0})
    mostly = SampleStream("train", weights={"text": 1.0, "position": 1.0}, chinese={"text": 0.8}, max_side=112)
    chinese = {
        task: [s.language == "zh" for s in map(mostly.sample, range(600)) if s.task == task]
        for task in ("text", "position")
    }
    assert 0.72 < np.mean(chinese["text"]) < 0.88
    assert 0.42 < np.mean(chinese["position"]) < 0.58


def naive_answer(ask: Ask, scene, language):
    """The answer worked out again, without the code under test."""
    zh = language == "zh"
    things = scene.objects
    shape_zh = {s.name: s.chinese for s in shapes.SHAPES}
    colour_zh = {"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "orange": "橙色", "purple": "紫色"}
    colour_zh |= {"pink": "粉色", "brown": "棕色", "black": "黑色", "white": "白色", "gray": "灰色", "cyan": "青色"}
    colour = colour_zh.get if zh else str
    shape = shape_zh.get if zh else str
    by_shape = [t for t in things if t.shape == ask.shape]
    by_colour = [t for t in things if t.colour == ask.colour]
    both = [t for t in by_shape if t.colour == ask.colour]
    found = {"shape": by_shape, "colour": by_colour, "both": both, "all": list(things)}[ask.kind.rpartition("_")[2]]
    if ask.kind.startswith("count"):
        return str(len(found))
    if ask.kind.startswith("exists"):
        return ("有" if found else "没有") if zh else ("yes" if found else "no")
    if ask.kind == "colour_of_shape":
        return colour(by_shape[0].colour) if by_shape else ("没有" if zh else "none")
    if ask.kind == "shape_of_colour":
        return shape(by_colour[0].shape) if by_colour else ("没有" if zh else "none")
    first, second = (next(t for t in things if t.shape == name) for name in (ask.shape, ask.other))
    return shape((first if (first.area > second.area) == (ask.kind == "bigger_shape") else second).shape)


NAIVE_KINDS = [k for k in asks.ASK_KINDS if k.startswith(("count", "exists", "colour_of", "shape_of"))]
NAIVE_KINDS += ["bigger_shape", "smaller_shape"]


@pytest.mark.parametrize("kind", NAIVE_KINDS)
def test_answers_are_right(kind):
    rng = random.Random(kind)
    for _ in range(60):
        ask, language = asks.random_ask(kind, rng), rng.choice(asks.LANGUAGES)
        scene, reply = scene_plans.scene_for(ask, (168, 140), rng, language)
        assert reply == naive_answer(ask, scene, language)


@pytest.mark.parametrize("kind", asks.ASK_KINDS)
def test_every_kind_has_wordings_and_a_spread_of_answers(kind):
    rng = random.Random(0)
    for language in asks.LANGUAGES:
        replies = Counter()
        for _ in range(150):
            ask = asks.random_ask(kind, rng)
            text = wordings.word(ask, language, rng)
            assert text
            assert not any(mark in text for mark in "{}")
            assert text.isascii() == (language == "en")
            replies[scene_plans.scene_for(ask, (168, 168), rng, language)[1]] += 1
        assert max(replies.values()) < 0.66 * 150, replies


@pytest.mark.parametrize(
    ("x", "y", "en", "zh"), [(20, 84, "left", "左边"), (84, 84, "center", "中间"), (84, 150, "bottom", "下方")]
)
def test_places(x, y, en, zh):
    thing = scene_plans.plan_scene(
        [scene_plans.Wanted(shape="circle", colour="red", radius=0.07, place=(x / 168, y / 168))],
        (168, 168),
        random.Random(0),
    )
    assert asks.place(thing.objects[0], thing, "en") == en
    assert asks.place(thing.objects[0], thing, "zh") == zh


def test_follow_ups_are_answered_from_the_one_picture(train):
    for n in range(30):
        sample = train.sample(n, {"follow_up": 1.0})
        replies = [m["content"]["text"] for m in sample.conversation if m["role"] == "assistant"]
        derived = [asks.answer(ask, sample.pictures[0].scene, sample.language) for ask in sample.asks]
        assert len(sample.pictures) == 1
        assert len(replies) >= 2
        assert [reply for reply in replies if reply in derived] != []
        assert set(derived) <= set(replies)


def test_spoken_questions_are_answered_from_the_picture(train):
    for n in range(20):
        sample = train.sample(n, {"spoken_question": 1.0})
        reply = sample.conversation[-1]["content"]["text"]
        assert reply == asks.answer(sample.asks[0], sample.pictures[0].scene, sample.language)
        assert sample.sounds[0].clip.phrase.ask == sample.asks[0]


def test_frame_labels_spell_the_transcript(train):
    bank = train.bank()
    for n in range(40):
        sound = train.sound(n)
        labels = sound.frame_classes(sound.words, bank.word_class)
        assert labels.size == audio_counts(sound.samples.size).encoder_frames
        tokens = phrases.tokens(sound.clip.phrase.text)
        assert [span.token for span in sound.words] == tokens
        assert set(labels) - {0} == {bank.word_class[token] for token in tokens}
        assert sound.frame_classes(sound.phonemes, bank.phoneme_class).any()
        assert np.abs(sound.samples).max() > 500


def test_a_shard_is_reproducible(bank_folder, tmp_path):
    speech.build_bank(tmp_path, clips_per_voice={"train": 1, "heldout": 40}, num_voices=1)
    for name in sorted(path.name for path in (bank_folder / "heldout").iterdir()):
        assert (tmp_path / "heldout" / name).read_bytes() == (bank_folder / "heldout" / name).read_bytes()


def test_a_missing_bank_says_how_to_make_one(fonts_installed, tmp_path):
    stream = SampleStream("train", bank_folder=tmp_path)
    with pytest.raises(speech.BankMissingError, match=r"python -m embedded_model\.speech"):
        stream.sample(0, {"transcribe": 1.0})
    assert stream.sample(0, without_speech()).conversation


def test_records_load(heldout, tmp_path):
    for task in WEIGHTS:
        samples = (heldout.sample(n, {task: 1.0}) for n in range(2))
        for line in write_records(samples, tmp_path, task).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            assert record["task"] == task
            assert record["language"] in asks.LANGUAGES
            messages = parse_messages(record["conversations"])
            assert [m.role for m in messages] == ["user", "assistant"] * (len(messages) // 2)
            for message in messages:
                for reference in message.images:
                    with Image.open(tmp_path / str(reference.source)) as image:
                        assert image.mode == "RGB"
                for source in message.audios:
                    assert (tmp_path / str(source)).stat().st_size > 3000


def test_samples_parse_as_they_are(train):
    for task in WEIGHTS:
        assert parse_messages(train.sample(3, {task: 1.0}).conversation)


def test_the_vocabulary_covers_what_is_said(train):
    known = set(vocabulary.characters())
    for n in range(300):
        for message in train.sample(n).conversation:
            assert set(message["content"].get("text", "")) <= known
    texts = list(vocabulary.corpus(6000, seed=1))
    assert len(texts) == 6000
    assert set("".join(texts)) <= known


def test_arithmetic_is_right():
    rng = random.Random(0)
    for _ in range(300):
        exchange = small_talk.sample_exchange("en", rng)
        if exchange.topic == "arithmetic":
            sum_text = exchange.question.replace("plus", "+").replace("minus", "-").replace("times", "*")
            digits = [c for c in sum_text if c in "0123456789+-*"]
            assert str(eval("".join(digits))) == exchange.answer
