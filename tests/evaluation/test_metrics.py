from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianquan.evaluation.metrics import (
    ErrorCount,
    character_errors,
    characters,
    edit_distance,
    is_exact,
    normalise,
    wilson_interval,
    word_errors,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red Circle.", "a red circle"),
        ("  two\n words ", "two words"),
        ("ＡＢＣ　１２３", "abc 123"),
        ("红色，圆形。", "红色 圆形"),
        ("don't", "dont"),
        ("red,blue", "red blue"),
        ("3.5 m", "3.5 m"),
        ("No. 5.", "no 5"),
        ("-4 or (5)", "-4 or 5"),
        ("a-4", "a 4"),
        ("1+1=2 $", "1+1=2 $"),
        ("...", "..."),
        ("50％ of C#, a&b", "50% of c# a&b"),
        ("**bold** / or_not", "bold or not"),
        ("\u22125 or \u20135, 1\u20132", "-5 or -5 1\u20132"),
        (".5, -.5, v.5 and ..5", ".5 -.5 v 5 and 5"),
        ("10\u00b2 2\u00b9\u2070", "10^2 2^10"),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected
    assert normalise(expected) == expected


def test_units():
    assert characters("Two 红色") == ["t", "w", "o", "红", "色"]
    assert words("Two 红色 circles") == ["two", "红", "色", "circles"]
    assert words("红two") == ["红", "two"]
    assert words("二〇〇七年人々") == list("二〇〇七年人々")


def test_exact():
    assert is_exact("Red circle", "red circle.")
    assert is_exact("红色圆形", "红色 圆形。")
    assert not is_exact("3 4", "34")
    assert not is_exact("3.5", "35")
    assert not is_exact("red", "")
    assert not any(is_exact(*pair) for pair in (("5", ".5"), ("75", ".75"), ("102", "10\u00b2"), ("5", "\u20135")))
    assert is_exact("-5", "\u22125")
    assert is_exact("二〇〇七", "二〇 〇七")
    assert not any(is_exact(*pair) for pair in (("50%", "50"), ("C#", "C"), ("%", "#"), ("1%", "1#"), (".", "")))


@pytest.mark.parametrize(
    ("expected", "got", "distance"),
    [("", "", 0), ("abc", "", 3), ("", "abc", 3), ("kitten", "sitting", 3), ("abc", "abc", 0), ("ab", "ba", 2)],
)
def test_edit_distance(expected, got, distance):
    assert edit_distance(expected, got) == distance


def plain_distance(a, b):
    rows = [[max(i, j) if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            change = rows[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, change)
    return rows[-1][-1]


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_edit_distance_is_the_textbook_one(a, b):
    assert edit_distance(a, b) == plain_distance(a, b)


def test_error_rates():
    assert character_errors("三个圆", "两个圆形") == ErrorCount(2, 3)
    assert word_errors("two red circles", "two circles") == ErrorCount(1, 3)
    assert (ErrorCount(1, 3) + ErrorCount(2, 3)).rate == 0.5
    assert character_errors(" ", "x").rate is None
    assert character_errors("a", "abcd").rate == 3.0


def test_wilson_interval():
    # 8 of 10: 0.490 to 0.943 (Agresti and Coull 1998 give the formula; the values are worked by hand)
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)
    assert wilson_interval(10, 10)[0] == pytest.approx(0.7225, abs=1e-4)
    low, high = wilson_interval(950, 1000)
    assert 0.93 < low < 0.95 < high < 0.97
