"""Templates that compute too much, and what templates of the field use."""

from __future__ import annotations

import pytest

from tianquan.errors import CheckpointError, PromptError
from tianquan.processing.chat_template import MAX_SOURCE_LEN, ChatTemplate

LOOP = "{% for i in range(10000) %}"
DOUBLE = "{% set ns = namespace(x='ab') %}" + LOOP + "{% set ns.x = EXPRESSION %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        LOOP * 3 + "{% endfor %}" * 3,
        LOOP * 2 + "{% for i in range(10000) if false %}{% endfor %}" + "{% endfor %}" * 2,
        LOOP * 2 + "x" * 2000 + "{% endfor %}" * 2,
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
        "{% for i in [1] recursive %}{% if loop.depth < 90 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 10 ** (10 ** 8) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10 ** 9) }}",
        "{{ 'a'.center(10 ** 9) }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ ('\t' * 100000).expandtabs(100000) }}",
        "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
        "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
        "{{ ('b' * 100000).join('a' * 100000) }}",
        "{{ range(100000) | join('b' * 100000) }}",
        "{{ 'a' | indent(10 ** 9, true) }}",
        "{{ 1 | round(10 ** 9) }}",
        "{{ [1] | tojson(indent=10 ** 9) }}",
        "{% set x = ('中' * 19000000) | list %}",
        "{% set x = ('中' * 19000000) | map('upper') | list %}",
        "{% set x = ('a,' * 9000000).split(',') %}",
        "{% set x = ('a ' * 9000000).split() %}",
        "{% set x = ('a\n' * 9000000).splitlines() %}",
        DOUBLE.replace("EXPRESSION", "ns.x ~ ns.x"),
        DOUBLE.replace("EXPRESSION", "ns.x + ns.x"),
        DOUBLE.replace("EXPRESSION", "[ns.x, ns.x]"),
        DOUBLE.replace("EXPRESSION", "(ns.x, ns.x)"),
        DOUBLE.replace("EXPRESSION", "{1: ns.x, 2: ns.x}"),
        DOUBLE.replace("EXPRESSION", "dict(a=ns.x, b=ns.x)"),
        DOUBLE.replace("{% set ns.x = EXPRESSION %}", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
        DOUBLE.replace("'ab'", "3").replace("EXPRESSION", "ns.x * ns.x"),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    ],
)
def test_templates_that_compute_too_much_are_stopped(template):
    with pytest.raises(PromptError, match="chat template") as caught:
        ChatTemplate(template).render()
    assert str(caught.value).isprintable()


def test_long_texts_may_be_cut_in_two():
    template = ChatTemplate("{{ text.split('</think>')[1] }}{{ text.splitlines() | length }}")
    assert template.render(text="x" * 2_000_000 + "</think>y") == "y1"


def test_a_budget_is_of_one_render():
    template = ChatTemplate("{% for i in range(100) %}{% for j in range(1000) %}{% endfor %}{% endfor %}x")
    for _ in range(12):
        assert template.render() == "x"


@pytest.mark.parametrize("name", ["lipsum(9)", "'a' | center(9)", "[1] | batch(9)", "[1] | slice(9)", "'a' | urlize"])
def test_what_no_chat_template_needs_is_left_out(name):
    with pytest.raises((CheckpointError, PromptError), match="chat template"):
        ChatTemplate(f"{{{{ {name} }}}}").render()


@pytest.mark.parametrize("source", ["{{" + "(" * 5000, "{{ " + "-" * 5000 + "1 }}", "a" * (MAX_SOURCE_LEN + 1)])
def test_templates_that_cannot_be_compiled(source):
    with pytest.raises(CheckpointError, match="chat template") as caught:
        ChatTemplate(source)
    assert str(caught.value).isprintable()


def test_what_templates_of_the_field_use():
    source = """{%- set ns = namespace(found=false) %}
{%- for message in messages %}
    {%- if loop.first and message.role == 'system' %}{% set ns.found = true %}{% continue %}{% endif %}
    {{- '<' + message['role'] + '>' }}
    {%- generation %}{{ message['content'] | trim }}{% endgeneration %}
{%- endfor %}
{{- '%s and %d' % ('a', 2) }} {{ '{} {x}'.format(1, x='y') }} {{ ns.found }} {{ messages[1:] | length }}
{{- messages | map(attribute='role') | join(', ') }}
{%- for i in range(5) if i is odd %}{{ i }}{% else %}-{% endfor %}"""
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": " hi "}]
    assert ChatTemplate(source).render(messages=messages) == "<user>hia and 2 1 y True 1system, user13"


def test_json_takes_the_arguments_of_hugging_face():
    value = {"b": "é<", "a": 1}
    assert ChatTemplate("{{ v | tojson }}").render(v=value) == '{"b": "é<", "a": 1}'
    options = "ensure_ascii=true, indent=1, separators=(',', ':'), sort_keys=true"
    assert ChatTemplate(f"{{{{ v | tojson({options}) }}}}").render(v=value) == '{\n "a":1,\n "b":"\\u00e9<"\n}'


def test_refusals_are_one_line():
    with pytest.raises(PromptError) as caught:
        ChatTemplate("{{ raise_exception('one\ntwo') }}").render()
    assert str(caught.value).isprintable()
