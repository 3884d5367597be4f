"""The wordings of questions about a scene, per kind and language, and the filling of their slots.

Slots: {shape} {shapes} {colour} {other} {others}; {hue} is "color" or "colour". The first wordings of a kind are also
spoken, so they hold plain words only; the others are only written.
"""

from __future__ import annotations

import random

from embedded_model import colours, shapes
from embedded_model.asks import Ask, AskKind, Language

SPOKEN_WORDINGS = 3  # the first of each kind

WORDINGS: dict[AskKind, dict[Language, tuple[str, ...]]] = {
    "colour_of_shape": {
        "en": (
            "What {hue} is the {shape}?",
            "Tell me the {hue} of the {shape}.",
            "Which {hue} does the {shape} have?",
            "What is the {hue} of the {shape}?",
            "The {shape} is what {hue}?",
            "{shape} {hue}?",
        ),
        "zh": (
            "{shape}是什么颜色?",
            "{shape}的颜色是什么?",
            "请告诉我{shape}的颜色。",
            "图中的{shape}是什么颜色的?",
            "这个{shape}是哪种颜色?",
        ),
    },
    "shape_of_colour": {
        "en": (
            "What shape is {colour}?",
            "Which shape is {colour}?",
            "What is the {colour} shape?",
            "What shape is the {colour} object?",
            "What shape is the {colour} one?",
            "Name the {colour} shape.",
        ),
        "zh": (
            "{colour}的是什么形状?",
            "{colour}的图形是什么?",
            "哪个图形是{colour}的?",
            "{colour}的物体是什么形状?",
            "什么形状是{colour}的?",
        ),
    },
    "only_colour": {
        "en": (
            "What {hue} is it?",
            "What {hue} is the shape?",
            "What {hue} do you see?",
            "What {hue} is the object in the picture?",
            "What is the {hue} of this shape?",
            "Which {hue} is this?",
            "What {hue} is this?",
        ),
        "zh": (
            "它是什么颜色?",
            "这个图形是什么颜色?",
            "这是什么颜色?",
            "图中的物体是什么颜色的?",
            "图形的颜色是什么?",
        ),
    },
    "only_shape": {
        "en": (
            "What shape is it?",
            "What shape is this?",
            "What shape do you see?",
            "What shape is in the picture?",
            "Which shape is shown?",
            "Name the shape.",
            "What is the shape of the object?",
        ),
        "zh": (
            "它是什么形状?",
            "这是什么形状?",
            "图里是什么形状?",
            "图中的图形是什么形状?",
            "说出这个图形的形状。",
        ),
    },
    "only_both": {
        "en": (
            "What is in the picture?",
            "What do you see?",
            "What is this?",
            "What is shown in the image?",
            "What's in this image?",
            "Describe the shape and its {hue}.",
            "What {hue} and shape is it?",
            "What {hue} and what shape is the object?",
        ),
        "zh": (
            "图里有什么?",
            "你看到了什么?",
            "这是什么?",
            "图片里是什么?",
            "这张图片中有什么?",
            "说出图形的颜色和形状。",
            "它是什么颜色什么形状?",
        ),
    },
    "count_all": {
        "en": (
            "How many shapes are there?",
            "How many objects are in the picture?",
            "Count the shapes.",
            "How many shapes do you see?",
            "How many things are in the image?",
            "What is the number of shapes?",
        ),
        "zh": (
            "一共有几个图形?",
            "图里有几个图形?",
            "有多少个图形?",
            "图中有多少个物体?",
            "数一数有几个图形。",
            "图片里一共有多少个形状?",
        ),
    },
    "count_shape": {
        "en": (
            "How many {shapes} are there?",
            "Count the {shapes}.",
            "How many {shapes} do you see?",
            "How many {shapes} are in the picture?",
            "What is the number of {shapes}?",
        ),
        "zh": (
            "有几个{shape}?",
            "图里有几个{shape}?",
            "有多少个{shape}?",
            "图中一共有多少个{shape}?",
            "数一数{shape}有几个。",
        ),
    },
    "count_colour": {
        "en": (
            "How many {colour} shapes are there?",
            "Count the {colour} shapes.",
            "How many shapes are {colour}?",
            "How many {colour} objects are in the picture?",
            "How many things are {colour}?",
        ),
        "zh": (
            "有几个{colour}的图形?",
            "{colour}的图形有几个?",
            "有多少个{colour}的图形?",
            "图中有多少个{colour}的物体?",
            "数一数{colour}的图形有几个。",
        ),
    },
    "count_both": {
        "en": (
            "How many {colour} {shapes} are there?",
            "Count the {colour} {shapes}.",
            "How many {colour} {shapes} do you see?",
            "How many {colour} {shapes} are in the picture?",
        ),
        "zh": (
            "有几个{colour}的{shape}?",
            "图里有几个{colour}的{shape}?",
            "有多少个{colour}的{shape}?",
            "{colour}的{shape}有几个?",
        ),
    },
    "exists_shape": {
        "en": (
            "Is there a {shape}?",
            "Do you see a {shape}?",
            "Can you see a {shape}?",
            "Is there a {shape} in the picture?",
            "Does the image contain a {shape}?",
        ),
        "zh": ("有没有{shape}?", "图里有{shape}吗?", "有{shape}吗?", "图中有没有{shape}?", "你看到{shape}了吗?"),
    },
    "exists_colour": {
        "en": (
            "Is there a {colour} shape?",
            "Do you see a {colour} shape?",
            "Is any shape {colour}?",
            "Is there anything {colour} in the picture?",
            "Is there a {colour} object?",
        ),
        "zh": (
            "有没有{colour}的图形?",
            "图里有{colour}的图形吗?",
            "有{colour}的图形吗?",
            "图中有没有{colour}的物体?",
        ),
    },
    "exists_both": {
        "en": (
            "Is there a {colour} {shape}?",
            "Do you see a {colour} {shape}?",
            "Can you see a {colour} {shape}?",
            "Is there a {colour} {shape} in the picture?",
        ),
        "zh": ("有没有{colour}的{shape}?", "图里有{colour}的{shape}吗?", "有{colour}的{shape}吗?"),
    },
    "is_colour": {
        "en": ("Is the {shape} {colour}?", "Is the {hue} of the {shape} {colour}?", "Is it a {colour} {shape}?"),
        "zh": ("{shape}是{colour}的吗?", "{shape}是不是{colour}的?", "{shape}的颜色是{colour}吗?"),
    },
    "where_shape": {
        "en": (
            "Where is the {shape}?",
            "Tell me where the {shape} is.",
            "In which part of the picture is the {shape}?",
            "What is the position of the {shape}?",
        ),
        "zh": ("{shape}在哪里?", "{shape}在什么位置?", "{shape}在图的哪个位置?", "{shape}在图片的哪一边?"),
    },
    "where_both": {
        "en": (
            "Where is the {colour} {shape}?",
            "Tell me where the {colour} {shape} is.",
            "What is the position of the {colour} {shape}?",
        ),
        "zh": ("{colour}的{shape}在哪里?", "{colour}的{shape}在什么位置?", "{colour}的{shape}在图的哪个位置?"),
    },
    "bigger_shape": {
        "en": (
            "Which is bigger, the {shape} or the {other}?",
            "Which shape is bigger, the {shape} or the {other}?",
            "Which is larger, the {shape} or the {other}?",
        ),
        "zh": ("{shape}和{other}哪个更大?", "哪个更大,{shape}还是{other}?", "{shape}和{other}哪个大?"),
    },
    "smaller_shape": {
        "en": (
            "Which is smaller, the {shape} or the {other}?",
            "Which shape is smaller, the {shape} or the {other}?",
        ),
        "zh": ("{shape}和{other}哪个更小?", "哪个更小,{shape}还是{other}?", "{shape}和{other}哪个小?"),
    },
    "bigger_colour": {
        "en": (
            "Which shape is bigger, the {colour} one or the {other} one?",
            "Which is bigger, the {colour} shape or the {other} shape?",
            "Which one is larger, the {colour} or the {other}?",
        ),
        "zh": ("{colour}的和{other}的哪个更大?", "哪个更大,{colour}的还是{other}的?"),
    },
    "left_of": {
        "en": ("Is the {shape} to the left of the {other}?", "Is the {shape} left of the {other}?"),
        "zh": ("{shape}在{other}的左边吗?", "{shape}是不是在{other}左边?"),
    },
    "right_of": {
        "en": ("Is the {shape} to the right of the {other}?", "Is the {shape} right of the {other}?"),
        "zh": ("{shape}在{other}的右边吗?", "{shape}是不是在{other}右边?"),
    },
    "above": {
        "en": ("Is the {shape} above the {other}?", "Is the {shape} higher than the {other}?"),
        "zh": ("{shape}在{other}的上面吗?", "{shape}是不是在{other}上方?"),
    },
    "below": {
        "en": ("Is the {shape} below the {other}?", "Is the {shape} under the {other}?"),
        "zh": ("{shape}在{other}的下面吗?", "{shape}是不是在{other}下方?"),
    },
    "describe": {
        "en": (
            "Describe the picture.",
            "Describe the image from left to right.",
            "List the shapes from left to right.",
            "What shapes are in the picture, from left to right?",
            # As of a single shape: asked of any picture, the answer is all there is to see.
            "What is in the picture?",
            "What do you see?",
            "What is in this image?",
        ),
        "zh": (
            "描述这张图片。",
            "从左到右描述图片。",
            "从左到右说出图中的图形。",
            "请描述图中有什么。",
            "图里有什么?",
            "你看到了什么?",
            "这张图片中有什么?",
        ),
    },
}


def word(ask: Ask, language: Language, rng: random.Random) -> str:
    """Put an ask into written words: any wording, synonyms, now and then without case or question mark."""
    text = fill(rng.choice(WORDINGS[ask.kind][language]), ask, language, rng)
    if language == "en":
        text = text[0].upper() + text[1:]
        if rng.random() < 0.12:
            text = text.lower()
    else:
        text = text.replace(",", "，").replace("?", rng.choice("?？？"))
        if rng.random() < 0.08 and text[-1] in "?？":
            text = "请问" + text
    return text.rstrip("?？.。") if rng.random() < 0.1 else text


def fill(wording: str, ask: Ask, language: Language, rng: random.Random | None) -> str:
    """Fill the slots of a wording; with `rng` synonyms may be used, without it the canonical words are."""
    one, many = _shape_words(ask.shape, language, rng)
    is_colour = ask.other in colours.BY_NAME
    other = _colour_word(ask.other, language, rng) if is_colour else _shape_words(ask.other, language, rng)[0]
    hue = rng.choice(("color", "color", "colour")) if rng else "color"
    text = wording.format(shape=one, shapes=many, colour=_colour_word(ask.colour, language, rng), other=other, hue=hue)
    return with_articles(text)


def with_articles(text: str) -> str:
    """Return an English sentence with "an" where a slot was filled with a word that wants it."""
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}")
    return text


def _shape_words(name: str, language: Language, rng: random.Random | None) -> tuple[str, str]:
    if not name:
        return "", ""
    shape = shapes.BY_NAME[name]
    use_other = rng is not None and rng.random() < 0.15
    if language == "zh":
        text = rng.choice(shape.also_chinese) if rng and use_other and shape.also_chinese else shape.chinese
        return text, text
    return rng.choice(shape.also) if rng and use_other and shape.also else (shape.name, shape.plural)


def _colour_word(name: str, language: Language, rng: random.Random | None) -> str:
    if not name:
        return ""
    colour = colours.BY_NAME[name]
    use_other = rng is not None and rng.random() < 0.15
    if language == "zh":
        longer = [text for text in colour.also_chinese if len(text) > 1]  # "红" alone does not fit every wording
        return rng.choice(longer) if rng and use_other and longer else colour.chinese
    return rng.choice(colour.also) if rng and use_other and colour.also else colour.name
