"""Input files for batch jobs: mixed rows, and rows that are broken in different ways."""

from __future__ import annotations

import json
import random

IMAGES = ("tiny_100x60.png", "crop_448x448.png")
CLIPS = ("speech_1s_16k.wav",)


def chat_row(custom_id, content, **fields):
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 6, **fields}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def image_part(url):
    return {"type": "image_url", "image_url": {"url": url}}


def mixed_row(number, rng):
    """Text, a picture, sound, both, or a plain completion; greedy or sampled, short or long."""
    text = {"type": "text", "text": f"question {number} " + "and more " * rng.randrange(8)}
    fields = {"max_tokens": rng.randrange(1, 12), **({"temperature": 0} if rng.random() < 0.5 else {})}
    kind = rng.choice(("text", "text", "image", "audio", "both", "plain"))
    if kind == "plain":
        body = {"prompt": f"once upon a time {number}", **fields}
        return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/completions", "body": body}
    parts = [text]
    if kind in ("image", "both"):
        parts.append(image_part(rng.choice(IMAGES)))
    if kind in ("audio", "both"):
        parts.append({"type": "audio_url", "audio_url": {"url": rng.choice(CLIPS)}})
    return chat_row(f"row-{number}", text["text"] if kind == "text" else parts, **fields)


def broken_rows(custom_id="row-0"):
    """Ten rows that cannot be answered, by what is wrong with them: (line, code of the error)."""
    good = chat_row("broken", "hello")
    return [
        (b'{"custom_id": "cut off', "invalid_json"),
        (b"\xff\xfe\x00not text", "invalid_json"),
        (b'["no", "object"]', "invalid_row"),
        (_line(chat_row(custom_id, "an id that is taken")), "duplicate_custom_id"),
        (_line({**good, "custom_id": 17}), "invalid_custom_id"),
        (_line({**good, "custom_id": "b5", "method": "GET"}), "invalid_method"),
        (_line({**good, "custom_id": "b6", "url": "/v1/embeddings"}), "invalid_url"),
        (_line(chat_row("b7", [image_part("no-such-file.png")])), "file_not_found"),
        (_line(chat_row("b8", "hello", temperature=-1)), "invalid_value"),
        (_line(chat_row("b9", "word " * 20000)), "invalid_value"),
    ]


def _line(row):
    return json.dumps(row, ensure_ascii=False).encode()


def write_job(path, num_rows, seed=0):
    """Write `num_rows` rows, the ten broken ones among them; return the numbers of those and their codes."""
    rng = random.Random(seed)
    broken = broken_rows()
    places = sorted(rng.sample(range(1, num_rows), len(broken)))
    codes = {}
    with open(path, "wb") as file:
        for number in range(num_rows):
            if number in places:
                line, codes[number] = broken[places.index(number)]
            else:
                line = _line(mixed_row(number, rng))
            file.write(line + b"\n")
    return codes


def answers(path):
    """Return the rows of an output, without what differs between two runs: times, and what was in a cache."""
    rows = []
    for line in path.read_bytes().splitlines(keepends=True):
        assert line.endswith(b"\n")
        row = json.loads(line)
        body = (row["response"] or {}).get("body", {})
        for name in ("created", "timings"):
            body.pop(name, None)
        body.get("usage", {}).pop("prompt_tokens_details", None)
        rows.append(row)
    return rows
