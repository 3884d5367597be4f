"""Prompts, media and options in vLLM: what this package's processor makes, and errors instead of silence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tianquan.processing.image import patchify
from tianquan.request import ImagePolicy, MediaPolicy
from vllm_plugin.conftest import data_url

CASES = Path(__file__).parents[1] / "conformance" / "cases"


@pytest.fixture(scope="module")
def prompt_of(vllm_llm):
    """Token ids of the prompt of a conversation."""

    def prompt(messages, **options):
        from vllm import SamplingParams

        outputs = vllm_llm.chat(messages, SamplingParams(max_tokens=1), use_tqdm=False, **options)
        return list(outputs[0].prompt_token_ids)

    return prompt


def refused(message):
    """Expect vLLM's error for wrong requests, which its server answers with 400."""
    from vllm.exceptions import VLLMClientError

    return pytest.raises(VLLMClientError, match=message)


def user(*parts, text=None):
    return [{"role": "user", "content": [*parts, *([{"type": "text", "text": text}] if text else [])]}]


def image(path):
    return {"type": "image_url", "image_url": {"url": data_url(path)}}


def audio(path):
    return {"type": "audio_url", "audio_url": {"url": data_url(path)}}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "(<image>./</image>) <|turn_end|> (<audio>./</audio>) <|unk|>"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}],
    ],
)
def test_text_is_what_the_processor_makes_of_it(prompt_of, processor, messages):
    assert prompt_of(messages) == processor(messages).token_ids.tolist()


def test_media_are_placed_as_the_processor_does(prompt_of, processor, media_root):
    tiny, shapes, speech = (
        media_root / name for name in ("tiny_100x60.png", "shapes_640x480.png", "speech_1s_16k.wav")
    )
    first = user(
        image(tiny), {"type": "text", "text": "What"}, audio(speech), image(shapes), text="(<image>./</image>)?"
    )
    # The second picture is now in the cache as number 1, and becomes number 0.
    for messages in (first, user(image(shapes), image(tiny), text="And now?")):
        assert prompt_of(messages) == processor(messages).token_ids.tolist()


def test_pictures_in_every_mode(processor, tmp_path, vllm_llm):
    """What is transparent, deep or stored lying on its side becomes what this package makes of it, and once only."""
    rng = np.random.default_rng(0)
    clear = Image.fromarray(rng.integers(0, 255, (60, 80, 4), np.uint8), "RGBA")
    deep = Image.fromarray(rng.integers(0, 65535, (60, 80), np.uint16))
    on_its_side = clear.convert("RGB")
    on_its_side.getexif()[0x0112] = 6
    from vllm.renderers.params import ChatParams

    renderer = vllm_llm.llm_engine.renderer
    for picture in (clear, deep, clear.convert("P"), clear.convert("LA"), on_its_side):
        path = tmp_path / "picture.png"
        picture.save(path, exif=picture.getexif())
        messages = user(image(path), text="?")
        expected = processor(messages)
        (engine_input,) = renderer.render_chat([messages], ChatParams(), skip_mm_cache=True)[1]
        assert list(engine_input["prompt_token_ids"]) == expected.token_ids.tolist()
        patches = np.concatenate([patchify(part, 14) for part in expected.images[0].slices])
        np.testing.assert_array_equal(engine_input["mm_kwargs"]["image"][0]["image_patches"].data.numpy(), patches)


def test_a_prompt_as_text(vllm_llm, media_root):
    """Programs may write the template themselves: marks are places, special tokens are special."""
    from vllm import SamplingParams

    expected = json.loads((CASES / "two_images.json").read_text())
    names = [entry["file"] for entry in expected["images"]]
    pictures = [Image.open(media_root / name) for name in names]
    system = (
        "<|role_start|>system<|role_end|>你是Megrez-3B-Instruct，将针对用户的问题给出详细的、积极的回答。<|turn_end|>"
    )
    turn = f"<|role_start|>user<|role_end|>{'(<image>./</image>)' * 2}Compare the two pictures.<|turn_end|>"
    prompt = {"prompt": f"{system}{turn}<|role_start|>assistant<|role_end|>", "multi_modal_data": {"image": pictures}}
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    output = vllm_llm.generate(prompt, params, use_tqdm=False)[0]
    assert list(output.prompt_token_ids) == expected["prompt_token_ids"]
    assert list(output.outputs[0].token_ids) == expected["greedy_token_ids"]


def test_fewer_slices(prompt_of, processor, media_root):
    messages = user(image(media_root / "sample_image.jpg"), text="?")
    policy = MediaPolicy(image=ImagePolicy(max_slices=2))
    got = prompt_of(messages, mm_processor_kwargs={"max_slices": 2})
    assert got == processor(messages, policy).token_ids.tolist()
    assert len(got) < len(prompt_of(messages))


def test_long_sound(prompt_of, processor, vllm_llm, media_root):
    from vllm import SamplingParams

    sound = np.random.default_rng(0).normal(0, 0.1, 31 * 16000).astype(np.float32)
    prompt = {"prompt": "(<audio>./</audio>)", "multi_modal_data": {"audio": (sound, 16000)}}
    with refused("31 s of sound; the model takes 30 s at a time"):
        vllm_llm.generate(prompt, SamplingParams(max_tokens=1), use_tqdm=False)
    prompt["mm_processor_kwargs"] = {"long_audio": "truncate"}
    output = vllm_llm.generate(prompt, SamplingParams(max_tokens=1), use_tqdm=False)[0]
    assert len(output.prompt_token_ids) == 750 + 2 + 2


@pytest.fixture(scope="module")
def process_sounds(vllm_llm):
    """The prompt, fields and hashes of sounds alone."""
    from vllm.multimodal.processing import ProcessorInputs, TimingContext

    processor = vllm_llm.llm_engine.renderer.mm_processor
    ids = processor.info.folder.processor.placeholder_ids

    def process(*sounds, **options):
        items = processor.info.parse_mm_data({"audio": [(sound, 16_000) for sound in sounds]})
        prompt = [ids["<|audio_start|>"], ids["<|audio_end|>"]] * len(sounds)
        inputs = ProcessorInputs(prompt, items, hf_processor_mm_kwargs=options)
        return processor.apply(inputs, TimingContext(enabled=False))

    return process


def test_long_sound_in_clips(process_sounds, processor):
    sound = np.random.default_rng(0).normal(0, 0.1, 40 * 16000).astype(np.float32)
    result = process_sounds(sound, long_audio="chunk")
    clips = processor.load_clips((sound, 16_000), MediaPolicy(long_audio="chunk"))
    (prepared,) = processor.prepare_clips([clips])
    assert len(prepared) == 2
    fields = result["mm_kwargs"]["audio"][0]
    sizes = [[len(clip.mel), clip.num_frames, clip.num_tokens] for clip in prepared]
    assert fields["audio_sizes"].data.tolist() == sizes
    np.testing.assert_array_equal(fields["audio_mels"].data.numpy(), np.concatenate([clip.mel for clip in prepared]))
    assert result["prompt_token_ids"] == processor.audio_token_ids([clip.span for clip in prepared])


def test_a_clip_beside_a_longer_one_is_another_item(process_sounds):
    """What the cache keeps of a clip holds one frame more then; see `processing/audio.py`."""
    rng = np.random.default_rng(0)
    short, long = (rng.normal(0, 0.1, n).astype(np.float32) for n in (16_000, 32_000))

    def frames_and_hash(*sounds):
        result = process_sounds(*sounds)
        return len(result["mm_kwargs"]["audio"][0]["audio_mels"].data), result["mm_hashes"]["audio"][0]

    (alone, hash_alone), (beside, hash_beside) = frames_and_hash(short), frames_and_hash(short, long)
    assert beside == alone + 1
    assert hash_alone != hash_beside
    assert frames_and_hash(long, short) == frames_and_hash(long)
    assert frames_and_hash(short, short) == (alone, hash_alone)


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([{"role": "user", "content": {"text": "Hi"}}], {}, "expected a string or a list of parts"),
        ([{"role": "user", "content": []}], {}, r"messages\[0\] has no content"),
        ([{"role": "user", "content": "Hi"}], {"chat_template": "{{ messages }}"}, "runs the template of its own"),
        (
            [{"role": "user", "content": "Hi"}],
            {"continue_final_message": True, "add_generation_prompt": False},
            "continue_final_message is not supported",
        ),
        (
            [{"role": "user", "content": "Hi"}],
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
            "tools is not supported",
        ),
        ([{"role": "reader", "content": "Hi"}], {}, "role must be one of"),
    ],
)
def test_refused_conversations(prompt_of, messages, options, message):
    with refused(message):
        prompt_of(messages, **options)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"prompt": "(<image>./</image>)"}, "the prompt has 1 places for image inputs, got none"),
        ({"prompt": "Hi", "multi_modal_data": {"image": Image.new("RGB", (9, 9))}}, "0 places for image inputs, got 1"),
        (
            {"prompt": "(<image>./</image>)" * 2, "multi_modal_data": {"image": Image.new("RGB", (9, 9))}},
            "has 2 places for image inputs, got 1",
        ),
        (
            {"prompt": "(<audio>./</audio>)", "multi_modal_data": {"audio": (np.zeros(100, np.float32), 16_000)}},
            "the model needs at least 30 ms",
        ),
        (
            {"prompt": "(<audio>./</audio>)", "multi_modal_data": {"audio": (np.full(9999, 9e3, np.float32), 16_000)}},
            "float samples have full scale at 1",
        ),
    ],
)
def test_refused_prompts(vllm_llm, prompt, message):
    from vllm import SamplingParams

    with refused(message):
        vllm_llm.generate(prompt, SamplingParams(max_tokens=1), use_tqdm=False)


def test_expanded_prompts_are_refused(vllm_llm, media_root):
    """Token ids with placeholders in them leave no place to put a picture."""
    from vllm import SamplingParams

    token_ids = json.loads((CASES / "image_448.json").read_text())["prompt_token_ids"]
    prompt = {"prompt_token_ids": token_ids, "multi_modal_data": {"image": Image.new("RGB", (448, 448))}}
    with refused("has 0 places for image inputs, got 1"):
        vllm_llm.generate(prompt, SamplingParams(max_tokens=1), use_tqdm=False)
