"""Questions that need no picture: one-digit arithmetic, opposites, greetings, what the model is and can do."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from embedded_model.asks import Language

NAME = "Tianquan embedded model"


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A question and its answer."""

    question: str
    answer: str
    topic: str


OPPOSITES: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (
        *(("big", "small"), ("hot", "cold"), ("up", "down"), ("left", "right"), ("day", "night"), ("open", "closed")),
        *(("fast", "slow"), ("high", "low"), ("old", "new"), ("good", "bad"), ("happy", "sad"), ("black", "white")),
        *(("yes", "no"), ("in", "out"), ("long", "short"), ("wet", "dry"), ("full", "empty"), ("early", "late")),
        *(("light", "dark"), ("hard", "soft"), ("first", "last"), ("near", "far"), ("rich", "poor"), ("on", "off")),
    ),
    "zh": (
        *(("大", "小"), ("热", "冷"), ("上", "下"), ("左", "右"), ("白天", "黑夜"), ("开", "关"), ("快", "慢")),
        *(("高", "低"), ("新", "旧"), ("好", "坏"), ("高兴", "难过"), ("黑", "白"), ("里", "外"), ("长", "短")),
        *(("湿", "干"), ("满", "空"), ("早", "晚"), ("明亮", "黑暗"), ("硬", "软"), ("前", "后"), ("近", "远")),
        *(("多", "少"), ("来", "去"), ("买", "卖")),
    ),
}
ARITHMETIC: dict[Language, tuple[str, ...]] = {
    "en": ("What is {a} {op} {b}?", "{a} {op} {b} = ?", "How much is {a} {op} {b}?", "Calculate {a} {op} {b}."),
    "zh": ("{a}{op}{b}等于多少？", "{a}{op}{b}等于几？", "{a}{op}{b}=？", "计算{a}{op}{b}。"),
}
OPERATORS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {"+": ("+", "plus"), "-": ("-", "minus"), "*": ("*", "times")},
    "zh": {"+": ("+", "加"), "-": ("-", "减"), "*": ("×", "乘以")},
}
OPPOSITE_WORDINGS: dict[Language, tuple[str, ...]] = {
    "en": ("What is the opposite of {word}?", "Opposite of {word}?", "Give me the opposite of {word}."),
    "zh": ("{word}的反义词是什么？", "“{word}”的反义词？", "说出{word}的反义词。"),
}
FIXED: dict[Language, tuple[tuple[str, tuple[str, ...], str], ...]] = {
    "en": (
        ("greeting", ("Hello", "Hi", "Hello!", "Hi there", "Hey"), "Hello! How can I help you?"),
        ("greeting", ("Good morning", "Good morning!"), "Good morning! How can I help you?"),
        ("greeting", ("Good evening", "Good evening!"), "Good evening! How can I help you?"),
        ("greeting", ("How are you?", "How are you doing?"), "I am fine, thank you."),
        ("greeting", ("Thank you", "Thanks", "Thank you!", "Thanks a lot"), "You are welcome!"),
        ("greeting", ("Goodbye", "Bye", "See you", "Good night"), "Goodbye!"),
        (
            "identity",
            ("Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Tell me about yourself."),
            f"I am the {NAME}, a very small model that sees shapes, reads short text and hears short sentences.",
        ),
        (
            "ability",
            ("What can you do?", "How can you help me?", "What are you able to do?", "What do you know?"),
            "I can name shapes and colors, count them, read digits and words, and transcribe short speech.",
        ),
        (
            "limits",
            ("Write a poem.", "Tell me a story.", "Who is the president?", "What is the weather today?", "Write code."),
            "I cannot do that. I am a very small model.",
        ),
    ),
    "zh": (
        ("greeting", ("你好", "您好", "你好！", "嗨"), "你好！有什么可以帮你？"),
        ("greeting", ("早上好", "早上好！"), "早上好！有什么可以帮你？"),
        ("greeting", ("晚上好", "晚上好！"), "晚上好！有什么可以帮你？"),
        ("greeting", ("你好吗？", "最近怎么样？"), "我很好，谢谢。"),
        ("greeting", ("谢谢", "谢谢你", "多谢", "谢谢！"), "不客气！"),
        ("greeting", ("再见", "拜拜", "晚安", "回头见"), "再见！"),
        (
            "identity",
            ("你是谁？", "你叫什么名字？", "你是什么？", "介绍一下你自己。", "请自我介绍。"),
            "我是天权内置模型，一个很小的模型，能看图形、读短文字、听短句。",
        ),
        (
            "ability",
            ("你能做什么？", "你会做什么？", "你有什么功能？", "你会什么？"),
            "我能说出图形和颜色，数数，读数字和文字，还能转写短的语音。",
        ),
        (
            "limits",
            ("写一首诗。", "讲个故事。", "总统是谁？", "今天天气怎么样？", "写一段代码。"),
            "我做不到。我是一个很小的模型。",
        ),
    ),
}
TOPIC_WEIGHTS = (40, 25, 35)  # arithmetic, opposites, fixed


def sample_exchange(language: Language, rng: random.Random) -> Exchange:
    """Return a random question and its answer."""
    topic = rng.choices(("arithmetic", "opposite", "fixed"), TOPIC_WEIGHTS)[0]
    if topic == "arithmetic":
        return _arithmetic(language, rng)
    if topic == "opposite":
        pair = list(rng.choice(OPPOSITES[language]))
        if rng.random() < 0.5:
            pair.reverse()
        wording = rng.choice(OPPOSITE_WORDINGS[language])
        return Exchange(question=wording.format(word=pair[0]), answer=pair[1], topic=topic)
    name, questions, reply = rng.choice(FIXED[language])
    return Exchange(question=rng.choice(questions), answer=reply, topic=name)


def _arithmetic(language: Language, rng: random.Random) -> Exchange:
    sign = rng.choice(("+", "+", "-", "*"))
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    if sign == "-" and b > a:
        a, b = b, a  # answers are not negative
    spelling = rng.choice(OPERATORS[language][sign])
    question = rng.choice(ARITHMETIC[language]).format(a=a, b=b, op=spelling)
    return Exchange(question=question, answer=str(_calculate(a, sign, b)), topic="arithmetic")


def _calculate(a: int, sign: str, b: int) -> int:
    return a + b if sign == "+" else a - b if sign == "-" else a * b


@lru_cache(maxsize=2)
def spoken_exchanges(language: Language) -> tuple[Exchange, ...]:
    """Return the exchanges that are also spoken: sums of two digits in words, opposites, fixed questions."""
    names = ("零一二三四五六七八九",) if language == "zh" else ("zero one two three four five six seven eight nine",)
    digits = list(names[0]) if language == "zh" else names[0].split()
    wording = "{a}加{b}等于几" if language == "zh" else "what is {a} plus {b}"
    sums = [
        Exchange(question=wording.format(a=digits[a], b=digits[b]), answer=str(a + b), topic="arithmetic")
        for a in range(10)
        for b in range(10)
    ]
    words = [word for pair in OPPOSITES[language] for word in (pair, pair[::-1])]
    opposites = [
        Exchange(question=OPPOSITE_WORDINGS[language][0].format(word=word[0]), answer=word[1], topic="opposite")
        for word in words
    ]
    fixed = [
        Exchange(question=q[0], answer=reply, topic=topic) for topic, q, reply in FIXED[language] for _ in range(8)
    ]
    return tuple(sums + opposites + fixed)
