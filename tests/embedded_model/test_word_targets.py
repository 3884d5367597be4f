"""What a question names, and the number of it behind each name as a target."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from embedded_model.frame_targets import tell_pictures
from embedded_model.word_targets import (
    EIGHTHS,
    REPEATED,
    TENTHS,
    TOKEN_SAMPLES,
    count_heard_names,
    count_names,
    names_in,
    place_names,
    size_names,
)

from tianquan.checkpoint import find_folder, open_checkpoint
from tianquan.processing.messages import parse_messages
from tianquan.request import ImagePolicy, MediaPolicy
from tianquan.training.examples import build_example
from tianquan.training.records import Record


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("How many red circles are there?", [("", "red"), ("circle", "red")]),
        ("Grey crosses, a plus sign and discs", [("", "gray"), ("cross", "gray"), ("cross", ""), ("circle", "")]),
        ("how many shapes do you see", [("", "")]),
        ("Which is larger, the ring or the star?", [("ring", ""), ("star", "")]),
        ("A bored starling is in a circular hall.", []),
        ("有几个红色的圆形？", [("", "red"), ("circle", "red")]),
        ("椭圆形、圆、蓝色", [("ellipse", ""), ("circle", ""), ("", "blue")]),
        ("图里有几个图形?", [("", "")]),
        ("", []),
    ],
)
def test_names_are_found(text, names):
    found = list(names_in(text))
    assert [(named.shape, named.colour) for named in found] == names
    assert [named.end for named in found] == sorted(named.end for named in found)


@pytest.fixture(scope="module")
def processor():
    return open_checkpoint(find_folder("embedded")).processor


@pytest.mark.parametrize("task", ["tally", "count", "interview", "follow_up", "spoken_interview"])
def test_behind_each_name_stands_the_number(train, processor, task):
    targets = 0
    for n in range(10):
        sample = train.sample(n, {task: 1.0})
        turns = tuple(parse_messages(sample.conversation))
        policy = MediaPolicy(image=ImagePolicy(max_slices=1))
        example = build_example(processor, Record(turns, "picture"), policy, None, 2048)
        scene = sample.pictures[0].scene
        other = count_names(example, scene, processor.tokenizer)
        assert (other.loss_mask >= example.loss_mask).all()
        np.testing.assert_array_equal(other.targets[example.loss_mask], example.prompt.token_ids[example.loss_mask])
        places = np.flatnonzero(other.loss_mask & ~example.loss_mask)
        targets += len(places)
        said = [processor.tokenizer.decode([int(other.targets[place])]) for place in places]
        texts = [turn["content"].get("text", "") for turn in sample.conversation if turn["role"] == "user"]
        named = [named for text in texts for named in names_in(text)]
        if sample.conversation[0]["content"].get("image") is None:  # small talk comes first
            continue
        wanted = [str(name.count(scene)) for name in named]
        if sample.language == "en":
            assert said == wanted
        else:  # two names may end in one token
            rest = iter(wanted)
            assert all(number in rest for number in said)
            assert len(said) >= len(wanted) / 2
        first = example.prompt.spans[0]
        assert (places > first.start + first.length).all()
    assert targets > 5


@pytest.mark.parametrize("task", ["spoken_each", "spoken_counts"])
def test_where_a_name_has_been_heard_stands_the_number(train, processor, task):
    tokenizer, targets = processor.tokenizer, 0
    for n in range(12):
        sample = train.sample(n, {task: 1.0})
        record = Record(tuple(parse_messages(sample.conversation)), "speech")
        example = build_example(processor, record, MediaPolicy(), None, 2048)
        scene = sample.pictures[0].scene
        other = count_heard_names(example, scene, sample.sounds, tokenizer)
        np.testing.assert_array_equal(other.targets[example.loss_mask], example.prompt.token_ids[example.loss_mask])
        clips = [span for span in example.prompt.spans if span.kind == "audio"]
        for span, sound in zip(clips, sample.sounds, strict=True):
            own = range(span.start, span.start + span.length + 1)
            said = {place: tokenizer.decode([int(other.targets[place])]) for place in own if other.loss_mask[place]}
            text = sound.clip.phrase.text.lower()
            letters = [word for word in sound.words for _ in word.token]
            told = {}
            for name in names_in(text):
                end = letters[len(text[: name.end].replace(" ", "")) - 1].end  # samples; told in the token it lies in
                first = span.start + min(1 - (-end // TOKEN_SAMPLES), span.length)
                told |= dict.fromkeys(range(first, min(first + 3, own.stop)), str(name.count(scene)))
            assert said == told
            targets += len(told)
    assert targets > 40


def test_behind_each_name_stands_the_place(train, processor):
    tokenizer, targets = processor.tokenizer, 0
    for n in range(12):
        sample = train.sample(n, {"relate": 1.0})
        record = Record(tuple(parse_messages(sample.conversation)), "picture")
        example = build_example(processor, record, MediaPolicy(image=ImagePolicy(max_slices=1)), None, 2048)
        scene = sample.pictures[0].scene
        other = place_names(example, scene, tokenizer)
        np.testing.assert_array_equal(other.targets[example.loss_mask], example.prompt.token_ids[example.loss_mask])
        places = np.flatnonzero(other.loss_mask & ~example.loss_mask)
        said = [int(tokenizer.decode([int(other.targets[place])])) for place in places]
        known = [[int(EIGHTHS * o.x / scene.size[0]), int(EIGHTHS * o.y / scene.size[1])] for o in scene.objects]
        # A name's second place may be the next name's first, or an answer's: then it is left out.
        pairs = [said[i : i + 2] for i in range(len(said) - 1) if places[i + 1] == places[i] + 1]
        pairs_known = itertools.permutations(scene.objects, 2)
        further = {
            int(5 * (1 + (a - b) / side))
            for one, other_one in pairs_known
            for a, b, side in zip((one.x, one.y), (other_one.x, other_one.y), scene.size, strict=True)
        }
        chinese = further if sample.language == "zh" else set()
        assert set(said) <= {number for pair in known for number in pair} | chinese
        if sample.language == "en":
            assert all(pair in known for pair in pairs[:1])
        targets += len(pairs)
    assert targets > 20


def test_behind_a_chinese_direction_stands_where_along_it_both_are(train, processor):
    tokenizer, found = processor.tokenizer, set()
    samples = (train.sample(n, {"relation": 1.0}) for n in range(60))
    for sample in (sample for sample in samples if sample.language == "zh"):
        record = Record(tuple(parse_messages(sample.conversation)), "picture")
        example = build_example(processor, record, MediaPolicy(), None, 2048)
        scene, ask = sample.pictures[0].scene, sample.asks[0]
        other = place_names(example, scene, tokenizer)
        axis = 0 if ask.kind in ("left_of", "right_of") else 1
        first, second = (next(o for o in scene.objects if o.shape == shape) for shape in (ask.shape, ask.other))
        shares = [(o.x, o.y)[axis] / scene.size[axis] for o in (first, second)]
        before, behind = shares if ask.kind in ("left_of", "above") else reversed(shares)
        further = int(5 * (1 + behind - before))
        wanted = [int(EIGHTHS * before), int(EIGHTHS * behind), *[further] * REPEATED]
        assert (further >= 5) == (sample.conversation[-1]["content"]["text"] == "是")
        pieces = [tokenizer.token_bytes(token) or b"" for token in example.prompt.token_ids.tolist()]
        direction = "左边 右边 上面 上方 下面 下方".encode().split()
        (place,) = (n for n, piece in enumerate(pieces) if any(word in piece for word in direction))
        told = slice(place + 1, place + 1 + len(wanted))
        assert other.loss_mask[told].all()
        assert not example.loss_mask[told].any()
        assert [int(tokenizer.decode([int(number)])) for number in other.targets[told]] == wanted
        found.add(ask.kind)
    assert found == {"left_of", "right_of", "above", "below"}


def test_behind_each_name_stands_the_size(train, processor):
    tokenizer, targets = processor.tokenizer, 0
    for n in range(12):
        sample = train.sample(n, {"compare": 1.0})
        record = Record(tuple(parse_messages(sample.conversation)), "picture")
        example = build_example(processor, record, MediaPolicy(image=ImagePolicy(max_slices=1)), None, 2048)
        scene, ask = sample.pictures[0].scene, sample.asks[0]
        other = size_names(example, scene, tokenizer)
        places = np.flatnonzero(other.loss_mask & ~example.loss_mask)
        said = [int(tokenizer.decode([int(other.targets[place])])) for place in places]
        named = [
            [o for o in scene.objects if name in (o.shape, o.colour)] for name in (ask.colour or ask.shape, ask.other)
        ]
        known = [int(TENTHS * thing.area**0.5 / min(scene.size)) for (thing,) in named]
        if sample.language == "en":
            assert said == known
        assert set(said) <= set(known)
        targets += len(said)
    assert targets > 15


def test_what_is_not_there_once_has_no_place(train, processor):
    sample = next(s for s in (train.sample(n, {"tally": 1.0}) for n in range(50)) if len(s.pictures[0].scene.objects))
    record = Record(tuple(parse_messages(sample.conversation)), "picture")
    example = build_example(processor, record, MediaPolicy(), None, 2048)
    empty = replace(sample.pictures[0].scene, objects=())
    assert (place_names(example, empty, processor.tokenizer).loss_mask == example.loss_mask).all()


def test_behind_each_of_two_pictures_stands_what_it_shows(train, processor):
    tokenizer, kinds = processor.tokenizer, set()
    for n in range(20):
        sample = train.sample(n, {"two_images": 1.0})
        record = Record(tuple(parse_messages(sample.conversation)), "pictures")
        example = build_example(processor, record, MediaPolicy(), None, 2048)
        scenes = [picture.scene for picture in sample.pictures]
        other = tell_pictures(example, scenes, tokenizer)
        np.testing.assert_array_equal(other.targets[example.loss_mask], example.prompt.token_ids[example.loss_mask])
        places = np.flatnonzero(other.loss_mask & ~example.loss_mask)
        said = [tokenizer.decode([int(other.targets[place])]).strip() for place in places]
        wanted = [
            (things[0].shape, things[0].colour) if len(things) == 1 else (str(len(things)),) * 2
            for things in (scene.objects for scene in scenes)
        ]
        assert said == [word for words in wanted for word in words]
        second = sum(len(image.slices) for image in example.prompt.images[:1])  # its overview
        assert places[1] < example.prompt.spans[second].start <= places[2]
        assert places[2] >= example.prompt.spans[-1].start + example.prompt.spans[-1].length
        kinds.add(len(scenes[0].objects) == 1)
    assert kinds == {True, False}


def test_a_tally_names_what_is_there_and_what_is_not(train):
    numbers = set()
    for n in range(20):
        sample = train.sample(n, {"tally": 1.0})
        scene = sample.pictures[0].scene
        question, answer = (turn["content"]["text"] for turn in sample.conversation)
        named = list(names_in(question))
        numbers |= {name.count(scene) for name in named}
        assert {name.shape for name in named} >= {thing.shape for thing in scene.objects}
        assert {name.colour for name in named} >= {thing.colour for thing in scene.objects}
        assert answer == str(len(scene.objects))
    assert numbers >= {0, 1, 2, 3, 4}
