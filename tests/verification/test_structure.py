from __future__ import annotations

import pytest

import tianquan
from json_files import edit_json
from shards import rewrite_shard
from tianquan.checkpoint import open_checkpoint
from tianquan.errors import CheckpointError
from tianquan.verification.structure import check_template, check_tensors, check_tokens


def test_every_tensor_is_used(checkpoint_folder):
    outcome = check_tensors(checkpoint_folder)
    assert outcome.status == "ok"
    assert "120 of 120 tensors used, 120 of 120 needed" in outcome.detail


def test_missing_extra_and_misshapen_tensors_are_named(copied_folder):
    def change(tensors):
        first, second, *_ = sorted(tensors)
        tensors["another.weight"] = tensors[first]
        tensors["llm.model.rotary_emb.inv_freq"] = tensors[first]
        del tensors[first]
        dtype, data = tensors[second]
        tensors[second] = (dtype, data.reshape(1, *data.shape))
        change.named = first, second

    rewrite_shard(copied_folder, change)
    outcome = check_tensors(copied_folder)
    assert outcome.status == "FAILED"
    for words in (f"missing: {change.named[0]}", "not used: another.weight", f"of another shape: {change.named[1]}"):
        assert words in outcome.detail
    assert "1 recomputed tables ignored" in outcome.detail
    assert "118 of 120 tensors used, 118 of 120 needed" in outcome.detail


def test_low_bit_folders(checkpoint_folder, tmp_path):
    folder = tmp_path / "int4"
    tianquan.load(checkpoint_folder, precision="int4").save_low_bit(folder)
    outcome = check_tensors(folder)
    assert (outcome.status, "checksums equal" in outcome.detail) == ("ok", True)
    damaged = bytearray((folder / "audio.safetensors").read_bytes())
    damaged[-1] ^= 1
    (folder / "audio.safetensors").write_bytes(damaged)
    with pytest.raises(CheckpointError, match="checksum"):
        check_tensors(folder)


def test_tokens_and_template(checkpoint_folder):
    checkpoint = open_checkpoint(checkpoint_folder)
    outcomes = [*check_tokens(checkpoint), *check_template(checkpoint)]
    assert {outcome.status for outcome in outcomes} == {"ok"}
    text = "\n".join(map(str, outcomes))
    for words in ("<|audio_start|> 988", "ids 980, 985", "two pictures in one turn", "followed by [985]"):
        assert words in text


def test_a_template_that_never_ends_an_answer_fails(copied_folder):
    template = (
        "{% for m in messages %}<|role_start|>{{ m.role }}<|role_end|>"
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for kind in ['image', 'audio'] %}{% if kind in m.content %}"
        "{% for item in ([m.content[kind]] if m.content[kind] is string else m.content[kind]) %}"
        "(<{{ kind }}>./</{{ kind }}>){% endfor %}{% endif %}{% endfor %}{{ m.content.text }}{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}<|role_start|>assistant<|role_end|>{% endif %}"
    )
    edit_json(copied_folder / "tokenizer_config.json", chat_template=template)
    statuses = {outcome.name: outcome.status for outcome in check_template(open_checkpoint(copied_folder))}
    assert statuses == {"template": "ok", "two pictures in one turn": "ok", "template ends an answer": "FAILED"}


def test_a_template_for_one_picture_a_turn_is_no_failure(copied_folder):
    template = (
        "{% for m in messages %}<|role_start|>{{ m.role }}<|role_end|>"
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for kind in ['image', 'audio'] %}{% if kind in m.content %}(<{{ kind }}>./</{{ kind }}>){% endif %}"
        "{% endfor %}{{ m.content.text }}{% endif %}<|turn_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|role_start|>assistant<|role_end|>{% endif %}"
    )
    edit_json(copied_folder / "tokenizer_config.json", chat_template=template)
    statuses = {outcome.name: outcome.status for outcome in check_template(open_checkpoint(copied_folder))}
    assert statuses == {"template": "ok", "two pictures in one turn": "skipped", "template ends an answer": "ok"}
