"""Tasks with speech: to write down, to answer, about a picture or not."""

from __future__ import annotations

from embedded_model import asks, prompts
from embedded_model.asks import Language
from embedded_model.interviews import COUNT_KINDS, MORE_QUESTIONS, ask_more, large_things
from embedded_model.pictures import Picture, Wanted, any_thing, plan_scene
from embedded_model.scene_plans import MAX_OBJECTS, scene_for
from embedded_model.speech import Clip
from embedded_model.studio import Draft, Studio

MOST_SPOKEN = 4  # spoken ones, of
CLIPS_TRIED = 120
ALIKE = (0, 1, 1, 2, 2, 3, 3, 4, 4, 5)  # how many there are of what is counted, as often


def transcribe(studio: Studio, language: Language) -> Draft:
    """A clip to write down."""
    clip = studio.bank().sample_clip(language, ("digits", "name", "command", "question", "chat"), studio.rng)
    prompt_language = studio.prompt_language(language)
    text = prompts.TRANSCRIBE_MAIN[prompt_language]
    if studio.rng.random() < 0.4:
        text = studio.rng.choice(prompts.TRANSCRIBE[prompt_language])
    return Draft().ask(text, clip.phrase.text, sound=studio.sound(clip))


def spoken_digits(studio: Studio, language: Language) -> Draft:
    """Spoken digits to write as figures."""
    clip = studio.bank().sample_clip(language, ("digits",), studio.rng)
    assert clip.phrase.reply is not None, "digits come with their figures"
    return Draft().ask(studio.rng.choice(prompts.SPOKEN_DIGITS[language]), clip.phrase.reply, sound=studio.sound(clip))


def spoken_question(studio: Studio, language: Language) -> Draft:
    """A picture and a question about it, spoken."""
    clip = studio.bank().sample_clip(language, ("question",), studio.rng)
    assert clip.phrase.ask is not None, "a question comes with what it asks"
    scene, reply = scene_for(clip.phrase.ask, studio.size(), studio.rng, language)
    text = studio.rng.choice(prompts.ANSWER_SPOKEN[language]) if studio.rng.random() < 0.3 else None
    return Draft(asks=[clip.phrase.ask]).ask(text, reply, (studio.draw(scene),), studio.sound(clip))


def spoken_each(studio: Studio, language: Language) -> Draft:
    """Large objects of different shapes and colours, and several spoken questions about them."""
    rng = studio.rng
    scene, _ = large_things(studio)
    draft = Draft()
    pictures: tuple[Picture, ...] = (studio.draw(scene),)
    for _ in range(CLIPS_TRIED):
        clip = studio.bank().sample_clip(language, ("question",), rng)
        ask = clip.phrase.ask
        assert ask is not None, "a question comes with what it asks"
        reply = asks.answer(ask, scene, language)
        # Most clips name what is not there; asked so each time, the model would answer none.
        is_absent = reply in ("0", asks.NONE[language], asks.HAVE[language][1])
        if reply is None or ask in draft.asks or (is_absent and rng.random() < 0.9):
            continue
        draft.ask(None, reply, pictures, studio.sound(clip))
        draft.asks.append(ask)
        pictures = ()
        if len(draft.asks) == MOST_SPOKEN:
            break
    return draft if draft.asks else spoken_question(studio, language)


def spoken_counts(studio: Studio, language: Language) -> Draft:
    """Spoken questions for counts, and a picture with some of what each of them names."""
    rng, clips = studio.rng, dict[asks.Ask, Clip]()
    for _ in range(CLIPS_TRIED):
        clip = studio.bank().sample_clip(language, ("question",), rng)
        if clip.phrase.ask is not None and clip.phrase.ask.kind in COUNT_KINDS:
            clips.setdefault(clip.phrase.ask, clip)
        if len(clips) == MOST_SPOKEN:
            break
    if not clips:
        return spoken_question(studio, language)
    named = [(ask.shape, ask.colour) for ask in clips for _ in range(rng.choice(ALIKE))]
    named = rng.sample(named, min(MAX_OBJECTS, len(named))) or [("", "")]
    large = rng.uniform(0.2, 0.38) / len(named) ** 0.5 if rng.random() < 0.5 else None
    things = [(any_thing(rng), shape, colour) for shape, colour in named]
    wanted = [
        Wanted(shape=shape or other.shape, colour=colour or other.colour, radius=large)
        for other, shape, colour in things
    ]
    scene = plan_scene(wanted, studio.size(), rng)
    draft = Draft(asks=list(clips))
    pictures: tuple[Picture, ...] = (studio.draw(scene),)
    for ask, clip in clips.items():
        reply = asks.answer(ask, scene, language)
        assert reply is not None, "a count is always known"
        draft.ask(None, reply, pictures, studio.sound(clip))
        pictures = ()
    return draft


def spoken_interview(studio: Studio, language: Language) -> Draft:
    """A picture, a spoken question about it, and more questions in writing."""
    draft = spoken_question(studio, language)
    scene = draft.pictures[0].scene
    assert scene is not None, "a spoken question is about a scene"
    return ask_more(studio, language, draft, scene, studio.rng.randint(*MORE_QUESTIONS))


def spoken_chat(studio: Studio, language: Language) -> Draft:
    """Small talk, spoken: the answer, not the transcript."""
    clip = studio.bank().sample_clip(language, ("chat",), studio.rng)
    assert clip.phrase.reply is not None, "small talk comes with its answer"
    text = studio.rng.choice(prompts.ANSWER_SPOKEN[language]) if studio.rng.random() < 0.3 else None
    return Draft().ask(text, clip.phrase.reply, sound=studio.sound(clip))
