"""Widths in a terminal: wide letters, combining marks, emoji of several parts, control characters."""

import pytest

from minirlhf.columns import aligned, beginning, clusters, columns_of, ending, printable, shortened, wrapped


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        *[("abc", 3), ("", 0), ("暖气", 4), ("ｆ", 2), ("e\u0301", 1), ("각", 2), ("\u1100\u1161\u11a8", 2)],
        ("\U0001f469\u200d\U0001f469\u200d\U0001f467", 2),  # a family: three emoji that are drawn as one
        ("\U0001f44d\U0001f3fd", 2),  # a thumb with a skin tone
        ("\U0001f3c3\u200d\u2642\ufe0f", 2),  # a runner and a narrow sign
        ("\u2764", 1),
        ("\u2764\ufe0f", 2),  # a heart as text, and as an emoji
        ("1\ufe0f\u20e3", 2),  # a key
        ("a\ufe0f", 1),
        ("\U0001f1eb\U0001f1f7", 2),  # a flag: two letters
        ("क\u094d\u200dष", 2),  # a joiner between letters
    ],
)
def test_columns_of_known_letters(text, columns):
    assert columns_of(text) == columns


def test_no_text_is_cut_inside_a_cluster():
    family = "\U0001f469\u200d\U0001f467"
    assert list(clusters(f"{family}e\u0301x")) == [(family, 2), ("e\u0301", 1), ("x", 1)]
    assert wrapped(family * 3, 5) == [family * 2, family] and shortened(family * 5, 8) == f"{family * 1}...{family}"
    assert beginning(f"a{family}", 2) == "a" and ending(f"{family}a", 2) == "a" and ending("abc", 0) == ""


def test_no_mark_is_cut_from_its_letter():
    assert wrapped("e\u0301" * 5, 2) == ["e\u0301" * 2, "e\u0301" * 2, "e\u0301"]
    assert wrapped("暖气ab", 3) == ["暖", "气a", "b"]


def test_letters_that_a_terminal_obeys_are_escaped():
    assert printable("a\x1b[31m\n\tb\x9b\ud800\u202e") == "a\\x1b[31m b\\x9b\\ud800\\u202e"
    assert printable("क्\u200dष é 😀") == "क्\u200dष é 😀"


def test_a_table_is_as_wide_as_its_texts_and_numbers_stand_right():
    assert aligned(["name", "n", "share"], [["ab", "5", "0.25"], ["暖气好", "123", "-"]]).splitlines() == [
        "name      n  share",
        "------  ---  -----",
        "ab        5   0.25",
        "暖气好  123      -",
    ]


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("abcdefghij", 10, "abcdefghij"),
        ("abcdefghij", 9, "abc...hij"),
        ("abcdefghij", 8, "abc...ij"),  # the middle is not in the middle of an even width
        ("暖气很好吗啊", 9, "暖气...啊"),  # two wide letters would be one column too many at the end
        ("e\u0301" * 10, 9, "e\u0301" * 3 + "..." + "e\u0301" * 3),
        ("", 5, ""),
    ],
)
def test_the_middle_of_a_long_text_is_left_out(text, width, expected):
    assert shortened(text, width) == expected and columns_of(expected) <= width
