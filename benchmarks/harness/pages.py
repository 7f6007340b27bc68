"""Pages of which a part is made: what stands between two markers, the rest is written by hand."""


def between(text: str, begin: str, end: str, content: str) -> str:
    """``text`` with ``content`` between the line that starts with ``begin`` and ``end``."""
    start = text.index("\n", text.index(begin)) + 1
    return text[:start] + "\n" + content + "\n\n" + text[text.index(end) :]
