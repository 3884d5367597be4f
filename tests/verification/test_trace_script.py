"""The script of docs/verify.md on a stand-in that is shaped as the official remote code is known to be."""

from __future__ import annotations

from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "verify.md"
UNKNOWN, AUDIO_START, SIZE, VOCAB = 7, 8, 4, 16
PROMPT = [1, 2, UNKNOWN, UNKNOWN, 3, 4, UNKNOWN, UNKNOWN, 5, AUDIO_START, UNKNOWN, UNKNOWN, UNKNOWN, 6]


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("torch")
    code = DOCUMENT.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    names = {"__name__": "trace"}
    exec(compile(code, str(DOCUMENT), "exec"), names)
    return names


def stand_in(torch):
    """A model that embeds, writes features over placeholders, prefills and decodes, as `chat` of the original does."""
    nn = torch.nn

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens = nn.Embedding(VOCAB, SIZE)
            self.layer = nn.Linear(SIZE, SIZE)

        def forward(self, input_ids=None, inputs_embeds=None, use_cache=False):
            hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            return (self.layer(hidden),)

    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Backbone()
            self.lm_head = nn.Linear(SIZE, VOCAB, bias=False)

    class Omni(nn.Module):
        def __init__(self):
            super().__init__()
            self.llm = Language()
            self.features = torch.randn(PROMPT.count(UNKNOWN), SIZE)

        def chat(self, talk, sampling, max_new_tokens):
            assert talk == ["hello"]
            ids = torch.tensor([PROMPT])
            self.llm.model.embed_tokens(torch.tensor([[0]]))  # something unrelated is looked up too
            hidden = self.llm.model.embed_tokens(ids)
            hidden[ids == UNKNOWN] = self.features
            last = self.llm.lm_head(self.llm.model(inputs_embeds=hidden)[0])[:, -1:]  # newer code keeps one row
            self.llm.model(input_ids=last.argmax(-1))

    return Omni()


def test_stages_are_found(script):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = stand_in(torch)
    token_ids, hidden, logits = script["capture"](model, ["hello"])
    assert token_ids.tolist() == PROMPT
    assert logits.shape == (len(PROMPT), VOCAB)
    torch.testing.assert_close(logits, model.llm.lm_head(model.llm.model.layer(hidden)).detach())
    tensors = script["split_features"](token_ids, hidden, UNKNOWN, AUDIO_START)
    assert set(tensors) == {"image_features", "audio_features.0"}
    torch.testing.assert_close(tensors["image_features"], model.features[:4].reshape(2, 2, SIZE))
    torch.testing.assert_close(tensors["audio_features.0"], model.features[4:])
    assert not model.llm.model._forward_hooks


def test_text_alone_has_no_features(script):
    torch = pytest.importorskip("torch")
    assert script["split_features"](torch.tensor([1, 2, 3]), torch.zeros(3, SIZE), UNKNOWN, AUDIO_START) == {}
