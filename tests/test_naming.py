"""Names that others gave: Markdown shows them letter by letter, in tables and code too."""

import html
import re

import pytest
from markdown_it import MarkdownIt

from tasks.naming import escape_markdown, write_code

NASTY = [
    "a|b", "`a`", "a``b", "<script>alert(1)</script>", "[a](http://b)", "![a](http://b)", "http://a", "www.a.de",
    "a@b.de", "*a*", "_a_", "__a__", "~~a~~", "a\\|b", "&lt;", "# a", "a ", " a", "1. a", "a\nb", "trip_distance",
    "größe (m²)",
]  # fmt: skip


def render(text):
    return MarkdownIt("gfm-like", {"linkify": False}).render(text)


def shown(rendered):
    return html.unescape(re.sub("<[^>]*>", "", rendered)).strip("\n")


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("write", [escape_markdown, write_code])
def test_a_name_in_a_table_is_one_cell_with_its_letters(write, name):
    made = render(f"| column | min |\n|---|---:|\n| {write(name)} | 1 |\n")
    assert made.count("<td") == 2
    assert all(tag not in made for tag in ("<a ", "<img", "<script", "<em>", "<strong>", "<s>", "<h1"))
    cell = made.split("<td>")[1].split("</td>")[0]
    assert shown(cell).strip() == name.replace("\n", " ").strip()


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("write", [escape_markdown, write_code])
def test_a_name_in_a_sentence_is_its_letters(write, name):
    made = render(f"The column {write(name)} is there")
    assert shown(made) == f"The column {name} is there".replace("\n", " ")
    assert all(tag not in made for tag in ("<a ", "<img", "<script", "<em>", "<strong>", "<s>", "<h1"))


@pytest.mark.parametrize("text", ["The champion: RMSE 1.5 against 2.", "price, trip_distance", "part*.csv"])
def test_what_needs_no_care_stays_readable(text):
    assert escape_markdown(text).replace("\\*", "*") == text
    assert write_code(text) == f"`{text}`"
