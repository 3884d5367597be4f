"""What is spoken: digits, colours, shapes, commands, questions about a picture, small talk; with what it means.

`text` is the transcript: lower case, no punctuation, digits as the words that are heard. `say` is what the
synthesiser gets, which may spell the same sound another way ("3 5 7").
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from embedded_model import asks, small_talk, wordings
from embedded_model.asks import Ask, AskKind, Language
from embedded_model.colours import COLOUR_NAMES
from embedded_model.shapes import SHAPE_NAMES
from embedded_model.words import sample_digits

PhraseKind = Literal["digits", "name", "command", "question", "chat"]
PHRASE_KINDS: tuple[PhraseKind, ...] = get_args(PhraseKind)
PHRASE_WEIGHTS = (30, 12, 20, 28, 10)

DIGIT_WORDS: dict[Language, tuple[str, ...]] = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "zh": ("零", "一", "二", "三", "四", "五", "六", "七", "八", "九"),
}
SPOKEN_KINDS: tuple[AskKind, ...] = (
    "colour_of_shape",
    "shape_of_colour",
    "only_colour",
    "only_shape",
    "only_both",
    "count_all",
    "count_shape",
    "count_colour",
    "count_both",
    "exists_shape",
    "exists_both",
    "where_shape",
)
SPOKEN_KIND_WEIGHTS = (3, 3, 1, 1, 1, 1, 3, 2, 2, 2, 2, 2)

COMMANDS: dict[Language, tuple[str, ...]] = {
    "en": (
        *("turn on the light", "turn off the light", "turn on the radio", "turn off the radio", "turn on the fan"),
        *("turn off the fan", "turn on the television", "turn off the television", "open the door", "close the door"),
        *("open the window", "close the window", "lock the door", "unlock the door", "play music", "stop the music"),
        *("play the next song", "play the last song", "turn up the volume", "turn down the volume", "mute the sound"),
        *("call my mother", "call the doctor", "send a message", "read my messages", "take a picture", "take a photo"),
        *("set an alarm", "stop the alarm", "start the timer", "stop the timer", "what time is it", "go home"),
        *("start the car", "stop the car", "turn left", "turn right", "go straight", "go back", "go forward", "stop"),
        *("start", "yes", "no", "hello", "goodbye", "good morning", "good night", "thank you", "please help me"),
        *("move left", "move right", "move up", "move down", "open the box", "close the box", "make it warmer"),
        *("make it colder", "start the washing machine", "water the flowers", "feed the cat", "clean the floor"),
        *("show me the weather", "read the news", "save the file", "delete the file", "print the page", "wake up"),
    ),
    "zh": (
        *("打开灯", "关闭灯", "把灯打开", "把灯关上", "打开收音机", "关闭收音机", "打开风扇", "关闭风扇", "打开电视"),
        *("关闭电视", "打开门", "关上门", "打开窗户", "关上窗户", "锁上门", "播放音乐", "停止音乐", "下一首歌"),
        *("上一首歌", "声音大一点", "声音小一点", "静音", "打电话给妈妈", "打电话给医生", "发送消息", "读消息"),
        *("拍照", "拍一张照片", "设置闹钟", "停止闹钟", "开始计时", "停止计时", "现在几点", "回家", "启动汽车"),
        *("停车", "向左转", "向右转", "一直走", "后退", "前进", "停止", "开始", "是", "不是", "你好", "再见", "早上好"),
        *("晚安", "谢谢", "请帮帮我", "向左移动", "向右移动", "向上移动", "向下移动", "打开盒子", "关上盒子"),
        *("温度高一点", "温度低一点", "启动洗衣机", "给花浇水", "喂猫", "打扫地板", "今天天气怎么样", "读新闻"),
        *("保存文件", "删除文件", "打印这一页", "起床"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """Something to say."""

    kind: PhraseKind
    language: Language
    text: str
    say: str
    ask: Ask | None = None  # of a question about a picture
    reply: str | None = None  # the digits that were said, or the answer to small talk


def spoken_form(text: str) -> str:
    """Return a written sentence as a transcript: lower case, no punctuation."""
    return " ".join("".join(c for c in text.lower() if c.isalnum() or c in " '").split())


def digits_phrase(digits: str, language: Language, *, as_figures: bool = False) -> Phrase:
    """Return digits said one by one; `as_figures` hands the synthesiser "3 5 7" instead of words."""
    names = [DIGIT_WORDS[language][int(digit)] for digit in digits]
    text = (" " if language == "en" else "").join(names)
    say = " ".join(digits) if as_figures else text
    return Phrase(kind="digits", language=language, text=text, say=say, reply=digits)


def sample_phrase(language: Language, rng: random.Random) -> Phrase:
    """Return a random phrase."""
    kind = rng.choices(PHRASE_KINDS, PHRASE_WEIGHTS)[0]
    if kind == "digits":
        return digits_phrase(sample_digits(rng), language, as_figures=rng.random() < 0.4)
    if kind == "name":
        return _plain(kind, language, _sample_name(language, rng))
    if kind == "command":
        return _plain(kind, language, rng.choice(COMMANDS[language]))
    if kind == "chat":
        exchange = rng.choice(small_talk.spoken_exchanges(language))
        text = spoken_form(exchange.question)
        return Phrase(kind=kind, language=language, text=text, say=exchange.question, reply=exchange.answer)
    ask = asks.random_ask(rng.choices(SPOKEN_KINDS, SPOKEN_KIND_WEIGHTS)[0], rng)
    wording = rng.choice(wordings.WORDINGS[ask.kind][language][: wordings.SPOKEN_WORDINGS])
    return _question(ask, wording, language)


def _plain(kind: PhraseKind, language: Language, text: str) -> Phrase:
    return Phrase(kind=kind, language=language, text=text, say=text)


def _sample_name(language: Language, rng: random.Random) -> str:
    colour, shape = rng.choice(COLOUR_NAMES), rng.choice(SHAPE_NAMES)
    form = rng.random()
    if form < 0.3:
        return asks.colour_word(colour, language)
    if form < 0.6:
        return asks.shape_word(shape, language)
    both = asks.both_words(colour, shape, language)
    return both if form < 0.8 else both.removeprefix("an ").removeprefix("a ")


def _question(ask: Ask, wording: str, language: Language) -> Phrase:
    written = wordings.fill(wording, ask, language, None)
    return Phrase(kind="question", language=language, text=spoken_form(written), say=written, ask=ask)


@lru_cache(maxsize=1)
def spoken_words() -> tuple[str, ...]:
    """Return every word (Chinese: character) that can be spoken, sorted: the classes 1.. of the frame targets."""
    texts = {" ".join(names) for names in DIGIT_WORDS.values()}
    texts |= {text for language in asks.LANGUAGES for text in COMMANDS[language]}
    texts |= {spoken_form(e.question) for language in asks.LANGUAGES for e in small_talk.spoken_exchanges(language)}
    for language in asks.LANGUAGES:
        for shape in SHAPE_NAMES:
            for colour in COLOUR_NAMES:
                texts.add(asks.both_words(colour, shape, language))
                for kind in SPOKEN_KINDS:
                    ask = Ask(kind=kind, shape=shape, colour=colour)
                    spoken = wordings.WORDINGS[kind][language][: wordings.SPOKEN_WORDINGS]
                    texts |= {_question(ask, wording, language).text for wording in spoken}
    return tuple(sorted({token for text in texts for token in tokens(text)}))


def tokens(text: str) -> list[str]:
    """Split a transcript into words; a Chinese character is a word."""
    return [token for word in text.split() for token in ([word] if word.isascii() else list(word))]
