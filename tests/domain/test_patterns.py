"""Patterns of the brain: the same matches as `re`, in linear time for every text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.domain.patterns import LinearPattern, PatternTooSlow

PATTERNS = [
    r"(?i)refunded (?P<payment>pay_\w+)",
    r"(a|b)*c",
    r"(?:ab|a)(?P<x>b?)",
    r"\bfoo\b",
    r"^x$",
    r"(?m)^x$",
    r"a{2,4}?b",
    r"[^\d\s]+",
    r"(?s)a.b",
    r"(?P<a>a*?)(?P<b>a*)",
    r"",
    r"(a*)*b",
    r"x|",
    r"\d+(?:\.\d\d)?",
    r"(?i)[a-c]+É",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=st.text("aabbcx\n 1.éÉAB_ofp", max_size=20))
def test_matches_are_those_of_re(pattern: str, text: str) -> None:
    expected = [
        (match[0], {name: value for name, value in match.groupdict().items() if value is not None})
        for match in re.finditer(pattern, text)
    ]
    assert list(LinearPattern(pattern).find_all(text, 100)) == expected


@pytest.mark.parametrize("pattern", [r"(a*)*b", r"(a|a)*b", r"a*a*a*a*b"])
def test_no_text_makes_a_pattern_exponential(pattern: str) -> None:
    assert list(LinearPattern(pattern).find_all("a" * 2_000, 10)) == []


def test_steps_are_bounded() -> None:
    with pytest.raises(PatternTooSlow):
        list(
            LinearPattern("(?:" + "|".join(f"(?:a*){letter}" for letter in "bcdefghi") + ")").find_all(
                "a" * 1_000_000, 1
            )
        )


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(a)\1", "not supported"),
        ("(?=a)", "not supported"),
        ("(", "unterminated"),
        ("a{1000}", "too large"),
        ("a" * 1_001, "longer than"),
    ],
)
def test_unsupported_patterns_are_refused(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        LinearPattern(pattern)
