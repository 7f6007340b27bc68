"""`sparsegnn methods`: what sparsifies, and what can be set."""

from __future__ import annotations

import inspect
import re
import textwrap

from sparsegnn import _console

STEPS = 200  # of the recipe that is shown: full-batch training of a citation graph
COLUMNS = ("name", "family", "target", "pattern", "dense gradient", "starts", "paper")


def methods(name: str = "", as_json: bool = False) -> None:
    """The methods of `train --method`; with a NAME, one of them and its settings (`train --set setting=value`)."""
    from sparsegnn.cli.settings import find
    from sparsegnn.controllers import METHODS, registry

    if name:
        described = describe(find(name), name)
        text = "" if as_json else _page(described)
    else:
        order = registry.FAMILIES
        found = sorted(METHODS.items(), key=lambda item: order.index(item[1].family))  # as registered in each family
        described = [facts(cls, method) for method, cls in found]
        text = "" if as_json else _table(described)
    print(_console.json_text(described) if as_json else text, end="\n" if as_json else "")


def facts(cls: type, name: str) -> dict:
    """What the table says of a method."""
    return {
        "name": name,
        "family": cls.family,
        "target": cls.target,
        "pattern": cls.patterns,
        "dense_gradient": cls.dense_gradient_need,
        "starts": cls.start,
        "paper": cls.paper,
    }


def describe(cls: type, name: str) -> dict:
    """Facts, docstring and settings of a method."""
    from sparsegnn.cli.settings import expected, kinds
    from sparsegnn.controllers import registry

    recipe, said = cls.recipe(STEPS), _said_of_settings(cls)
    settings = [
        {
            "name": setting,
            "kind": expected(kinds(cls, p)),
            "default": p.default,
            "recipe": recipe.get(setting, p.default),
            "meaning": said.get(setting, ""),
        }
        for setting, p in registry.settings(cls).items()
    ]
    text = _plain(inspect.cleandoc(cls.__doc__ or "").partition("\nArgs:")[0])
    return facts(cls, name) | {"class": f"{cls.__module__}.{cls.__qualname__}", "text": text, "settings": settings}


def _table(rows: list[dict]) -> str:
    cells = [[(row["name"], "bold"), *list(row.values())[1:]] for row in rows]
    note = "sparsegnn train --method NAME, or a class of your own: module:Class\nsettings: sparsegnn methods NAME\n"
    return _console.table("methods", cells, COLUMNS, box="SIMPLE_HEAD") + note


def _page(found: dict) -> str:
    about = [(column, found[column.replace(" ", "_")]) for column in COLUMNS[1:]] + [("class", found["class"])]
    page = _console.table(found["name"], about) + "\n"
    page += "".join(f"{_console.clean(line)}\n" for line in _filled(found["text"])) + "\n"
    cells = [
        [(s["name"], "bold"), s["kind"], str(s["default"]), str(s["recipe"]), s["meaning"]] for s in found["settings"]
    ]
    if not cells:
        return page + "no settings\n"
    head = ("setting", "is", "default", f"for {STEPS} steps", "meaning")
    return page + _console.table("--set setting=value", cells, head, box="SIMPLE_HEAD")


# --- docstrings ------------------------------------------------------------------------------------------------------

ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")


def _said_of_settings(cls: type) -> dict[str, str]:
    """Setting -> what the docstring of the class says of it, or else that of the class that it comes from."""
    said: dict[str, str] = {}
    for owner in cls.__mro__:
        for name, text in _arguments(owner.__dict__.get("__doc__") or "").items():
            if not text.startswith("as for "):
                said.setdefault(name, text)
    return said


def _arguments(doc: str) -> dict[str, str]:
    """The entries of the section Args; those of several names count for each."""
    found: dict[str, str] = {}
    names: list[str] = []
    _, _, section = inspect.cleandoc(doc).partition("Args:\n")
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        text = line.strip()
        if line.startswith("    ") and not line.startswith("     ") and (entry := ENTRY.match(text)):
            names, text = entry[1].split(", "), entry[2]
            found |= dict.fromkeys(names, "")
        for name in names:
            found[name] = f"{found[name]} {_plain(text)}".strip()
    return found


def _filled(text: str) -> list[str]:
    """The text in lines that fit; what is indented or a list stays as it is."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        own = [line for line in paragraph.splitlines() if line.startswith((" ", "* ", "- "))]
        lines += ["", *(paragraph.splitlines() if own else textwrap.wrap(paragraph, _console.width()))]
    return lines[1:]


def _plain(text: str) -> str:
    """Without the marks of reStructuredText."""
    return re.sub(r":\w+:`~?([^`]*)`", lambda m: m[1].rpartition(".")[2], text).replace("``", "")
