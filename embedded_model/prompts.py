"""What users write with a text picture, a clip, or two pictures; questions about one scene are in `wordings`."""

from __future__ import annotations

from embedded_model.asks import Language

READ_DIGITS: dict[Language, tuple[str, ...]] = {
    "en": (
        *("What number is shown?", "Read the number.", "Read the digits.", "What digits are in the picture?"),
        *("What is the number in the image?", "Which number do you see?", "What number is this?"),
        "Read the digits in the image.",
    ),
    "zh": (
        *("图中的数字是什么？", "读出数字。", "这是什么数字？", "图里的数字是多少？", "请读出图片中的数字。"),
        *("识别图中的数字。", "你看到了什么数字？", "图片上写的是哪个数字？"),
    ),
}
READ_TEXT: dict[Language, tuple[str, ...]] = {
    "en": (
        *("Read the text.", "What does it say?", "What text is in the image?", "What is written in the picture?"),
        *("Read the text in the image.", "What does the text say?", "What word is this?", "Transcribe the text."),
    ),
    "zh": (
        *("读出图中的文字。", "图里写了什么？", "图片中的文字是什么？", "识别图中的文字。", "写的是什么？"),
        *("请读出图片里的字。", "图上的文字是什么？", "提取图中的文字。"),
    ),
}
TRANSCRIBE_MAIN: dict[Language, str] = {"en": "Convert speech to text.", "zh": "将语音转化为文字。"}
TRANSCRIBE: dict[Language, tuple[str, ...]] = {
    "en": (
        *("Transcribe the audio.", "Transcribe the speech.", "What is said?", "Write down what you hear."),
        *("What do you hear?", "What does the speaker say?", "Convert the speech to text."),
    ),
    "zh": (
        *("请转写这段语音。", "这段语音说了什么？", "写下你听到的内容。", "把语音转成文字。", "录音里说了什么？"),
        "将语音转换为文字。",
    ),
}
SPOKEN_DIGITS: dict[Language, tuple[str, ...]] = {
    "en": (
        *("Which digits do you hear?", "Write the digits as numerals.", "What number is spoken?"),
        *("Write down the digits you hear in figures.", "Which digits are spoken?"),
    ),
    "zh": (
        *("你听到了哪些数字？", "用阿拉伯数字写出听到的数字。", "语音中的数字是什么？", "说的是什么数字？"),
        "写出语音里的数字。",
    ),
}
SAID_IN_FILM: dict[Language, tuple[str, ...]] = {
    "en": ("What is said in the video?", "What do you hear in the clip?", "Write down what is said in the video."),
    "zh": ("视频里说了什么？", "你在视频里听到了什么？", "写下视频中说的话。"),
}
ANSWER_SPOKEN: dict[Language, tuple[str, ...]] = {
    "en": ("Answer the question.", "Answer the spoken question.", "Please answer the question in the audio."),
    "zh": ("回答问题。", "请回答语音中的问题。", "回答语音里的问题。"),
}
TWO_PICTURES: dict[str, dict[Language, tuple[str, ...]]] = {
    "same_shape": {
        "en": ("Do both pictures show the same shape?", "Is the shape the same in both images?", "Same shape?"),
        "zh": ("两张图的形状相同吗？", "两张图片里的形状一样吗？", "它们的形状是不是一样？"),
    },
    "same_colour": {
        "en": ("Are both shapes the same color?", "Is the color the same in both images?", "Same color?"),
        "zh": ("两张图的颜色相同吗？", "两张图片里图形的颜色一样吗？", "它们的颜色是不是一样？"),
    },
    "more": {
        "en": ("Which picture has more shapes?", "Which image contains more objects?", "Which one has more shapes?"),
        "zh": ("哪张图的图形更多？", "哪张图片里的图形多？", "哪一张的物体更多？"),
    },
    "which_shape": {
        "en": ("Which picture shows a {shape}?", "Which image has the {shape}?", "In which picture is the {shape}?"),
        "zh": ("哪张图里有{shape}？", "{shape}在哪张图里？", "哪张图片是{shape}？"),
    },
    "which_colour": {
        "en": ("Which picture has a {colour} shape?", "In which image is the shape {colour}?"),
        "zh": ("哪张图里有{colour}的图形？", "{colour}的图形在哪张图里？"),
    },
    "first_what": {
        "en": ("What is in the first picture?", "What does the first image show?"),
        "zh": ("第一张图里是什么？", "第一张图片里有什么？"),
    },
    "second_what": {
        "en": ("What is in the second picture?", "What does the second image show?"),
        "zh": ("第二张图里是什么？", "第二张图片里有什么？"),
    },
    "different": {
        "en": ("What is different, the shape or the color?", "Do the pictures differ in shape or in color?"),
        "zh": ("不同的是形状还是颜色？", "两张图是形状不同还是颜色不同？"),
    },
}
FIRST_SECOND: dict[Language, tuple[str, str, str]] = {
    "en": ("the first", "the second", "the same"),
    "zh": ("第一张", "第二张", "一样多"),
}
DIFFERENCE: dict[Language, tuple[str, str]] = {"en": ("the shape", "the color"), "zh": ("形状", "颜色")}
