"""Makes pictures, clips and speech as someone else would, with questions; foreign_media.py asks them.

Nothing here comes from embedded_model: plain Pillow, PyAV and the espeak-ng program. Each task has a random stream of
its own, so that the same seed gives the same media whichever tasks are made.
"""

from __future__ import annotations

import math
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]
COLOURS: dict[str, tuple[RGB, str]] = {
    "red": ((230, 25, 25), "红色"),
    "green": ((20, 150, 40), "绿色"),
    "blue": ((20, 60, 230), "蓝色"),
    "yellow": ((250, 225, 20), "黄色"),
    "orange": ((255, 140, 0), "橙色"),
    "purple": ((130, 30, 170), "紫色"),
    "pink": ((255, 120, 190), "粉色"),
    "brown": ((130, 70, 25), "棕色"),
    "black": ((0, 0, 0), "黑色"),
    "gray": ((128, 128, 128), "灰色"),
    "cyan": ((0, 210, 225), "青色"),
}
SHAPES = {
    "circle": ("circles", "圆形"),
    "square": ("squares", "正方形"),
    "triangle": ("triangles", "三角形"),
    "star": ("stars", "星形"),
    "rectangle": ("rectangles", "长方形"),
    "cross": ("crosses", "十字形"),
    "heart": ("hearts", "心形"),
    "diamond": ("diamonds", "菱形"),
    "ellipse": ("ellipses", "椭圆形"),
    "pentagon": ("pentagons", "五边形"),
    "hexagon": ("hexagons", "六边形"),
}
GROUNDS: dict[str, tuple[RGB, ...]] = {
    "white": ((255, 255, 255),),
    "pastel": ((255, 245, 225), (225, 240, 255), (230, 255, 230), (250, 230, 250)),
    "dark": ((15, 15, 25), (40, 40, 45)),
}
CANVASES = ((128, 128), (224, 224), (256, 256), (320, 320), (320, 240), (240, 320), (512, 512))
CLIP_CANVASES = ((128, 128), (160, 120), (224, 224), (256, 256), (320, 240))
CONTAINERS = {"mp4": "libx264", "webm": "libvpx", "gif": "gif"}
PLACES = (
    *(("top left", "左上角"), ("top", "上方"), ("top right", "右上角"), ("left", "左边"), ("center", "中间")),
    *(("right", "右边"), ("bottom left", "左下角"), ("bottom", "下方"), ("bottom right", "右下角")),
)
MOVES = {"left": ("向左", -1, 0), "right": ("向右", 1, 0), "up": ("向上", 0, -1), "down": ("向下", 0, 1)}
FONTS = (
    "Pillow",
    "Roboto-Regular.ttf",
    "Carlito-Bold.ttf",
    "Inconsolata.otf",
    "C059-Roman.otf",
    "DejaVuSansMono-Bold.ttf",
)
FONT_PACKAGES = "fonts-roboto-unhinted fonts-crosextra-carlito fonts-inconsolata fonts-urw-base35 fonts-dejavu-core"
VOICES = {
    "en": ("en", "en-us+victor", "en+Lee", "en-gb+zac", "en-us+iven3", "en+aunty", "en-us+shelby"),
    "zh": ("cmn", "cmn-latn-pinyin+victor", "cmn-latn-pinyin+Lee", "cmn-latn-pinyin+iven3", "cmn-latn-pinyin+shelby"),
}
DIGIT_WORDS = {
    "en": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "zh": list("零一二三四五六七八九"),
}


@dataclass(kw_only=True)
class Case:
    """One question with its media, as files beside it."""

    task: str
    language: str
    question: str | None
    answer: str
    media: dict[str, str] = field(default_factory=dict)  # image, audio, video: file names
    traits: dict[str, str] = field(default_factory=dict)


# Drawing ----------------------------------------------------------------------------------------------------
def outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Return the corners of a shape whose middle is (x, y)."""

    def ring(n: int, start: float, inner: float = 1.0) -> list[tuple[float, float]]:
        turns = [(start + k / n, 1.0 if k % 2 == 0 else inner) for k in range(n)]
        return [(x + r * s * math.cos(t * math.tau), y + r * s * math.sin(t * math.tau)) for t, s in turns]

    def box(w: float, h: float) -> list[tuple[float, float]]:
        return [(x - w * r, y - h * r), (x + w * r, y - h * r), (x + w * r, y + h * r), (x - w * r, y + h * r)]

    if shape == "heart":
        turns = [k / 48 * math.tau for k in range(48)]
        wave = [(16 * math.sin(t) ** 3, 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)) for t in turns]
        return [(x + a * r / 17, y - b * r / 17) for a, b in wave]
    if shape == "cross":
        a, b = 0.3 * r, 0.9 * r
        corners = ((-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a))
        return [(x + dx, y + dy) for dx, dy in (*corners, (-a, -a))]
    if shape == "ellipse":
        return [(px, y + (py - y) * 0.58) for px, py in ring(48, 0)]
    sides = {"circle": 60, "triangle": 3, "pentagon": 5, "hexagon": 6, "diamond": 4}
    if shape in sides:
        return ring(sides[shape], -0.25)
    return {"square": box(0.8, 0.8), "rectangle": box(1.0, 0.55), "star": ring(10, -0.25, 0.4)}[shape]


def paint(image: Image.Image, shape: str, rgb: RGB, x: float, y: float, r: float, line: int) -> None:
    """Draw one shape, outlined in black where `line` is not 0."""
    points = outline(shape, x, y, r)
    canvas = ImageDraw.Draw(image)
    canvas.polygon(points, fill=rgb)
    if line:
        canvas.line([*points, points[0], points[1]], fill=(0, 0, 0), width=line, joint="curve")


class Maker:
    """Draws and writes the media of one task into a folder."""

    def __init__(self, task: str, seed: int, folder: Path) -> None:
        self.task, self.folder, self.rng = task, folder, random.Random(f"{seed}/{task}")
        self.number = 0
        folder.mkdir(parents=True, exist_ok=True)

    def case(self, make: Callable[[Maker, str], Case]) -> Case:
        """Return the next case."""
        self.number += 1
        return make(self, self.rng.choice(("en", "zh")))

    def ground(self, used: Sequence[str]) -> tuple[str, RGB]:
        """Return a ground on which these colours are seen."""
        kinds = ["white", "white", "pastel", "dark"]
        dark = {"black", "purple", "brown", "blue", "gray", "green"}
        kind = self.rng.choice([k for k in kinds if k != "dark" or not dark & set(used)])
        return kind, self.rng.choice(GROUNDS[kind])

    def name(self, ending: str) -> str:
        """Return a new file name."""
        return f"{self.task}-{self.number:04d}.{ending}"

    def picture(self, things: Sequence[tuple[str, str, float, float, float]], size: tuple[int, int]) -> dict[str, Any]:
        """Draw (shape, colour, x, y, radius) in shares of the canvas and its shorter side; return media and traits."""
        kind, base = self.ground([colour for _, colour, *_ in things])
        line = self.rng.choice((0, 0, 2, 4))
        image = Image.new("RGB", size, base)
        for shape, colour, x, y, r in things:
            paint(image, shape, COLOURS[colour][0], x * size[0], y * size[1], r * min(size), line)
        name = self.name(self.rng.choice(("png", "png", "jpg")))
        image.save(self.folder / name)
        traits = {"ground": kind, "canvas": f"{size[0]}x{size[1]}", "outline": str(line)}
        return {"media": {"image": name}, "traits": traits}

    def clip(
        self, colours: Sequence[str], seconds: float, draw: Callable[[Image.Image, float], None]
    ) -> dict[str, Any]:
        """Write a clip that `draw` paints at each share of its length; return media and traits."""
        kind, base = self.ground(colours)
        size = self.rng.choice(CLIP_CANVASES)
        rate = self.rng.choice((8, 10, 12, 15, 24, 30))
        count = min(60, max(8, round(seconds * rate)))
        frames = []
        for n in range(count):
            image = Image.new("RGB", size, base)
            draw(image, n / (count - 1))
            frames.append(image)
        container = self.rng.choice(tuple(CONTAINERS))
        name = self.name(container)
        write_clip(frames, rate, self.folder / name)
        length = "to 2 s" if count / rate <= 2 else "to 4 s" if count / rate <= 4 else "beyond 4 s"
        return {"media": {"video": name}, "traits": {"ground": kind, "container": container, "length": length}}

    def thing(self) -> tuple[str, str]:
        """Return a shape and a colour."""
        return self.rng.choice(tuple(SHAPES)), self.rng.choice(tuple(COLOURS))

    def speech(self, text: str, language: str) -> dict[str, Any]:
        """Let espeak-ng say something; return media and traits."""
        voice, speed = self.rng.choice(VOICES[language]), self.rng.choice((120, 150, 175, 200))
        name = self.name("wav")
        command = ["espeak-ng", "-v", voice, "-s", str(speed), "-w", str(self.folder / name), text]
        subprocess.run(command, check=True, capture_output=True)
        return {"media": {"audio": name}, "traits": {"voice": voice, "speed": str(speed)}}


def write_clip(frames: Sequence[Image.Image], rate: int, path: Path) -> None:
    """Write frames in the container that the file's name says."""
    if path.suffix == ".gif":
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / rate), loop=0)
        return
    with av.open(str(path), "w") as output:
        stream = output.add_stream(CONTAINERS[path.suffix[1:]], rate=rate, options={"threads": "1"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 800_000
        for n, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = n, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def both(colour: str, shape: str, language: str) -> str:
    """Return "red circle" or "红色的圆形"."""
    return f"{colour} {shape}" if language == "en" else f"{COLOURS[colour][1]}的{SHAPES[shape][1]}"


def name_of(thing: str, language: str) -> str:
    """Return the word for a colour or a shape."""
    return thing if language == "en" else (COLOURS.get(thing) or SHAPES[thing])[1]


# Tasks ------------------------------------------------------------------------------------------------------
def one_thing(maker: Maker, language: str, ask: str) -> Case:
    """Ask about the only shape: its colour, its shape, both."""
    (shape, colour), rng = maker.thing(), maker.rng
    drawn = maker.picture(
        [(shape, colour, rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6), rng.uniform(0.18, 0.36))], rng.choice(CANVASES)
    )
    question, answer = {
        "colour": {"en": ("What color is the shape?", colour), "zh": ("这个图形是什么颜色？", name_of(colour, "zh"))},
        "shape": {"en": ("What shape is this?", shape), "zh": ("这是什么形状？", name_of(shape, "zh"))},
        "both": {
            "en": ("What is in the picture?", both(colour, shape, "en")),
            "zh": ("图里有什么？", both(colour, shape, "zh")),
        },
    }[ask][language]
    return Case(task=maker.task, language=language, question=question, answer=answer, **drawn)


def scattered(maker: Maker, count: int) -> list[tuple[float, float]]:
    """Return that many places of a grid of three by three, shaken a little."""
    cells = maker.rng.sample(range(9), count)
    return [(0.18 + 0.32 * (c % 3) + maker.rng.uniform(-0.03, 0.03), 0.18 + 0.32 * (c // 3)) for c in cells]


def count_things(maker: Maker, language: str) -> Case:
    """Ask how many shapes there are, of all or of one kind."""
    rng, (shape, colour) = maker.rng, maker.thing()
    count, r = rng.randint(1, 5), rng.uniform(0.08, 0.13)
    of_one_kind = rng.random() < 0.4
    others = rng.randint(1, 3) if of_one_kind else 0
    other = rng.choice([name for name in SHAPES if name != shape])
    places = scattered(maker, count + others)
    same = rng.random() < 0.5 or of_one_kind
    things = []
    for n, (x, y) in enumerate(places):
        kind, hue = (shape, colour) if same else maker.thing()
        things.append((other if n >= count else kind, rng.choice(tuple(COLOURS)) if n >= count else hue, x, y, r))
    drawn = maker.picture(things, rng.choice(CANVASES))
    asked = {"en": f"How many {SHAPES[shape][0]} are there?", "zh": f"有几个{name_of(shape, 'zh')}？"}
    question = asked if of_one_kind else {"en": "How many shapes are there?", "zh": "图里有几个图形？"}
    drawn["traits"]["number"] = str(count)
    return Case(task=maker.task, language=language, question=question[language], answer=str(count), **drawn)


def where(maker: Maker, language: str) -> Case:
    """Ask in which of nine places the only shape is."""
    rng, (shape, colour) = maker.rng, maker.thing()
    n = rng.randrange(9)
    x, y = 0.2 + 0.3 * (n % 3), 0.2 + 0.3 * (n // 3)
    drawn = maker.picture([(shape, colour, x, y, rng.uniform(0.1, 0.17))], rng.choice(CANVASES))
    question = {"en": f"Where is the {shape}?", "zh": f"{name_of(shape, 'zh')}在哪里？"}[language]
    answer = PLACES[n][0 if language == "en" else 1]
    return Case(task=maker.task, language=language, question=question, answer=answer, **drawn)


def number(maker: Maker, language: str) -> Case:
    """Ask which number is written."""
    rng = maker.rng
    digits = str(rng.randint(0, 9)) + "".join(rng.choice("0123456789") for _ in range(rng.randint(0, 3)))
    size, font_name = rng.choice(CANVASES), rng.choice(FONTS)
    kind, base = maker.ground(["black"])
    image = Image.new("RGB", size, base)
    pixels = round(min(size[0] / len(digits) * 1.3, size[1] * 0.6) * rng.uniform(0.6, 1.0))
    font = ImageFont.load_default(pixels) if font_name == "Pillow" else ImageFont.truetype(font_name, pixels)
    ink = rng.choice(((0, 0, 0), (0, 0, 0), (200, 20, 20), (20, 40, 180)))
    ImageDraw.Draw(image).text((size[0] / 2, size[1] / 2), digits, fill=ink, font=font, anchor="mm")
    name = maker.name("png")
    image.save(maker.folder / name)
    traits = {"ground": kind, "canvas": f"{size[0]}x{size[1]}", "digits": str(len(digits)), "font": font_name}
    question = {"en": "What number is shown?", "zh": "图中的数字是什么？"}[language]
    return Case(
        task=maker.task, language=language, question=question, answer=digits, media={"image": name}, traits=traits
    )


def direction(maker: Maker, language: str) -> Case:
    """A shape crosses the picture."""
    rng, (shape, colour) = maker.rng, maker.thing()
    move = rng.choice(tuple(MOVES))
    text, dx, dy = MOVES[move]
    r, lane, reach, line = rng.uniform(0.1, 0.18), rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.32), rng.choice((0, 2))

    def draw(image: Image.Image, share: float) -> None:
        at = 0.5 + (2 * share - 1) * reach * (dx + dy)
        x, y = (at, lane) if dx else (lane, at)
        w, h = image.size
        paint(image, shape, COLOURS[colour][0], x * w, y * h, r * min(w, h), line)

    clip = maker.clip([colour], rng.uniform(0.8, 5), draw)
    question = {"en": f"Which way does the {shape} move?", "zh": f"{name_of(shape, 'zh')}向哪个方向移动？"}[language]
    return Case(
        task=maker.task, language=language, question=question, answer=move if language == "en" else text, **clip
    )


def order(maker: Maker, language: str) -> Case:
    """Two or three shapes appear one after the other, or go."""
    rng, count = maker.rng, maker.rng.choice((2, 2, 3))
    things = list(zip(rng.sample(tuple(SHAPES), count), rng.sample(tuple(COLOURS), count), strict=True))
    places, appears, line = scattered(maker, count), rng.random() < 0.6, rng.choice((0, 2))
    moments = [(n + 1) / (count + 1) for n in range(count)]

    def draw(image: Image.Image, share: float) -> None:
        w, h = image.size
        for (shape, colour), (x, y), at in zip(things, places, moments, strict=True):
            if (share >= at) == appears:
                paint(image, shape, COLOURS[colour][0], x * w, y * h, 0.14 * min(w, h), line)

    clip = maker.clip([colour for _, colour in things], rng.uniform(1.5, 5), draw)
    first = rng.random() < 0.5
    shape, colour = things[0 if first else -1]
    verb, end = ("appears" if appears else "disappears"), ("first" if first else "last")
    chinese = f"什么{'最先' if first else '最后'}{'出现' if appears else '消失'}？"
    question = f"What {verb} {end}?" if language == "en" else chinese
    return Case(task=maker.task, language=language, question=question, answer=both(colour, shape, language), **clip)


def colour_change(maker: Maker, language: str) -> Case:
    """A shape changes its colour on the way."""
    rng, shape = maker.rng, maker.thing()[0]
    before, after = rng.sample(tuple(COLOURS), 2)
    at, r, line = rng.uniform(0.3, 0.7), rng.uniform(0.16, 0.32), rng.choice((0, 2))

    def draw(image: Image.Image, share: float) -> None:
        w, h = image.size
        paint(image, shape, COLOURS[after if share >= at else before][0], 0.5 * w, 0.5 * h, r * min(w, h), line)

    clip = maker.clip([before, after], rng.uniform(0.8, 5), draw)
    question = {"en": f"What color does the {shape} turn?", "zh": f"{name_of(shape, 'zh')}变成了什么颜色？"}[language]
    return Case(task=maker.task, language=language, question=question, answer=name_of(after, language), **clip)


def bounces(maker: Maker, language: str) -> Case:
    """A ball bounces on the ground, each time in half a second to a whole."""
    rng, colour = maker.rng, maker.thing()[1]
    count, r, line = rng.randint(1, 4), rng.uniform(0.08, 0.13), rng.choice((0, 2))
    across, thrown, kept = rng.random() < 0.5, rng.random() < 0.4, rng.choice((1.0, 0.8))

    def draw(image: Image.Image, share: float) -> None:
        w, h = image.size
        turns = share * count + (0.0 if thrown else 0.5)  # whole on the ground: thrown up from it, or let fall
        height = abs(math.sin(turns * math.pi)) * kept ** int(turns) * (0.8 - 2 * r)
        ImageDraw.Draw(image).rectangle((0, 0.9 * h, w, 0.93 * h), fill=(90, 90, 90))
        x = (0.15 + 0.7 * share if across else 0.5) * w
        paint(image, "circle", COLOURS[colour][0], x, (0.9 - r - height) * h, r * min(w, h), line)

    clip = maker.clip([colour, "gray"], count * rng.uniform(0.5, 1.0), draw)
    clip["traits"]["number"] = str(count)
    question = {"en": "How many times does the circle bounce?", "zh": "圆形弹了几次？"}[language]
    return Case(task=maker.task, language=language, question=question, answer=str(count), **clip)


def spoken_digits(maker: Maker, language: str) -> Case:
    """Digits said one by one."""
    digits = "".join(maker.rng.choice("0123456789") for _ in range(maker.rng.randint(1, 4)))
    said = maker.speech(
        " ".join(digits) if language == "zh" else " ".join(DIGIT_WORDS["en"][int(d)] for d in digits), language
    )
    question = {"en": "Which digits do you hear?", "zh": "你听到了哪些数字？"}[language]
    return Case(task=maker.task, language=language, question=question, answer=digits, **said)


def transcript(maker: Maker, language: str) -> Case:
    """A colour and a shape, to write down."""
    shape, colour = maker.thing()
    text = both(colour, shape, language)
    said = maker.speech(text, language)
    if language == "zh":  # the program reads characters wrongly with -v cmn
        said["traits"]["voice"] += " (characters)"
    question = {"en": "Convert speech to text.", "zh": "将语音转化为文字。"}[language]
    return Case(task=maker.task, language=language, question=question, answer=text, **said)


def spoken_question(maker: Maker, language: str) -> Case:
    """A picture of two shapes and a spoken question about the colour of one."""
    rng = maker.rng
    shapes, colours = rng.sample(tuple(SHAPES), 2), rng.sample(tuple(COLOURS), 2)
    places = scattered(maker, 2)
    things = [(s, c, x, y, 0.14) for s, c, (x, y) in zip(shapes, colours, places, strict=True)]
    drawn = maker.picture(things, rng.choice(CANVASES))
    said = maker.speech(
        {"en": f"What color is the {shapes[0]}?", "zh": f"{name_of(shapes[0], 'zh')}是什么颜色"}[language], language
    )
    media, traits = {**drawn["media"], **said["media"]}, {**drawn["traits"], **said["traits"]}
    answer = name_of(colours[0], language)
    return Case(task=maker.task, language=language, question=None, answer=answer, media=media, traits=traits)


TASKS: dict[str, Callable[[Maker, str], Case]] = {
    "colour": partial(one_thing, ask="colour"),
    "shape": partial(one_thing, ask="shape"),
    "colour_shape": partial(one_thing, ask="both"),
    "count": count_things,
    "position": where,
    "read_digits": number,
    "film_direction": direction,
    "film_order": order,
    "film_colour": colour_change,
    "film_bounces": bounces,
    "spoken_digits": spoken_digits,
    "transcribe": transcript,
    "spoken_question": spoken_question,
}


def make(tasks: Sequence[str], count: int, seed: int, folder: Path) -> Iterator[Case]:
    """Write the media of all cases into a folder and yield the cases."""
    for task in tasks:
        maker = Maker(task, seed, folder)
        for _ in range(count):
            yield maker.case(TASKS[task])
