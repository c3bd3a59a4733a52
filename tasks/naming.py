"""Names that others gave, in text: read from a command line, written into messages and into Markdown.

In both a list of names is a line of CSV: a name with a comma, a quote, or a space at its end stands in quotes.
"""

import difflib
import re
from collections.abc import Iterable

CELL = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*|([^",][^,]*|))(?:,|$)')
MOST_LISTED = 40
MARKS = re.compile(r"[\\`*\[\]<>|&~!#]|(?<![^\W_])_|_(?![^\W_])|(?<=\w)@(?=\w)|:(?=//)|(?<=www)\.", re.IGNORECASE)
REFERENCES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", ":": "&#58;", "@": "&#64;"}


def split_names(text: str) -> list[str]:
    """Return the names in a line of CSV; empty ones are left out. Raises ValueError for a quote that does not end."""
    names, at = [], 0
    while at < len(text):
        found = CELL.match(text, at)
        if found is None:
            raise ValueError(f"the quotes in {text[at:].strip()!r} do not enclose a name")
        quoted, plain = found.groups()
        names.append(plain.strip() if quoted is None else quoted.replace('""', '"'))
        at = found.end()
    return [name for name in names if name]


def join_names(names: Iterable[str], separator: str = ", ") -> str:
    """Return the names as `split_names` reads them; of very many the first ones, and how many more there are."""
    written = [_quote(name) for name in names]
    more = len(written) - MOST_LISTED
    return separator.join(written[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "; the nearest name is 'price'" where a name that is not known is like one that is, else ""."""
    by_letters = {each.casefold().strip(): each for each in known}
    nearest = difflib.get_close_matches(name.casefold().strip(), by_letters, n=1)
    return f"; the nearest name is {by_letters[nearest[0]]!r}" if nearest else ""


def escape_markdown(text: str) -> str:
    """Return text that Markdown, and the HTML made of it, show letter by letter: no table, code, link or tag.

    Marks follow a backslash: Prefect's first pages know no numeric references, and show them as they are. Only the
    signs that make an address a link have one, since MLflow's pages know no backslash before those.
    """
    return MARKS.sub(lambda found: REFERENCES.get(found[0], f"\\{found[0]}"), " ".join(text.splitlines()))


def write_code(text: str) -> str:
    """Return Markdown that shows text letter by letter: as code, but for what no code span can hold in a table."""
    if any(sign in text for sign in "`|\n\r") or text != text.strip() or not text:
        return escape_markdown(text)
    return f"`{text}`"


def _quote(name: str) -> str:
    if not name.isprintable():
        return repr(name)
    if not name or name != name.strip() or any(sign in name for sign in ',"'):
        return '"' + name.replace('"', '""') + '"'
    return name
