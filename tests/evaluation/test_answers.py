from __future__ import annotations

import json

import pytest

from tianquan.evaluation.answers import EvaluatedTurn, RecordResult, Score, answer_records, scores_by
from tianquan.request import MediaPolicy
from tianquan.training.records import RecordError, parse_record


def record(turns, number=1, **extra):
    talk = [{"role": role, "content": content} for pair in turns for role, content in zip(("user", "assistant"), pair)]
    return parse_record(json.dumps({"conversations": talk, **extra}), f"file:{number}")


def answers(llm, records, media_root, max_tokens=6):
    return list(answer_records(llm, records, MediaPolicy(), media_root, max_tokens))


def greedy(llm, messages, media_root, max_tokens=6):
    from dataclasses import replace

    from tianquan.llm import GREEDY

    return llm.chat(messages, sampling=replace(GREEDY, max_tokens=max_tokens), media_root=media_root).text


def test_what_the_model_says_is_right_and_what_it_does_not_is_wrong(reference_llm, media_root):
    question = {"text": "What?", "image": "tiny_100x60.png"}
    said = greedy(reference_llm, [{"role": "user", "content": question}], media_root)
    good, bad = answers(
        reference_llm,
        [
            record([(question, said)], task="a", language="en"),
            record([(question, said), ("And?", "nothing the model says")], 2),
        ],
        media_root,
    )
    assert good.is_right
    assert (good.source, good.task, good.language) == ("file:1", "a", "en")
    assert good.character_errors.edits == 0
    assert not bad.is_right
    assert [turn.is_right for turn in bad.turns] == [True, False]


def test_later_turns_see_the_true_history(reference_llm, media_root):
    talk = [("Hello", "a true answer"), ("And now?", "x")]
    (result,) = answers(reference_llm, [record(talk)], media_root)
    history = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "a true answer"},
        {"role": "user", "content": "And now?"},
    ]
    assert result.turns[1].got == greedy(reference_llm, history, media_root)


def test_more_records_than_are_asked_at_once_come_in_order(reference_llm, media_root):
    records = [record([(f"number {n}", "x")], n) for n in range(11)]
    results = answers(reference_llm, records, media_root, max_tokens=2)
    assert [result.source for result in results] == [f"file:{n}" for n in range(11)]


def test_a_record_that_cannot_be_asked_is_named(reference_llm, media_root):
    missing = record([({"image": "none.png"}, "x")], 7)
    with pytest.raises(RecordError, match=r"file:7: .*none\.png"):
        answers(reference_llm, [missing], media_root)
    with pytest.raises(RecordError, match=r"file:8: .*context window"):
        answers(reference_llm, [record([("x " * 5000, "x")], 8)], media_root)


def result(is_right, task, language="en"):
    turn = EvaluatedTurn(expected="one two", got="one two" if is_right else "one", finish_reason="stop")
    return RecordResult(source="file:1", task=task, language=language, turns=(turn,))


def test_scores():
    results = [result(True, "a"), result(False, "a", "zh"), result(True, "b")]
    score = Score.of(results)
    assert (score.num_records, score.num_right) == (3, 2)
    assert score.to_dict()["wer"] == pytest.approx(1 / 6)
    by_task = scores_by(results, lambda one: one.task)
    assert {name: one.accuracy for name, one in by_task.items()} == {"a": 0.5, "b": 1.0}
    assert Score.of([]).to_dict()["interval_95"] == [0.0, 1.0]
