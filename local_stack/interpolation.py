"""Variables in a compose file and in the file .env beside it, by the Compose Specification ("Interpolation")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from dotenv.parser import parse_stream

from local_stack.errors import LocalStackError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-?+]")
_QUOTED = re.compile(r"^[^=]*=\s*'")


class InterpolationError(ValueError):
    """The text is not of this form, or a variable that it requires is not set."""


def interpolate(text: str, env: Mapping[str, str]) -> str:
    """Replaces ``$NAME``, ``${NAME}``, ``${NAME:-default}``, ``${NAME:?error}`` and ``${NAME:+replacement}``.

    Without the colon an empty variable counts as set. Defaults and replacements may hold variables. ``$$`` is a dollar
    sign.
    """
    found, end = _until(text, 0, env, nested=False)
    assert end == len(text)  # noqa: S101 - only a nested text ends earlier
    return found


def _until(text: str, at: int, env: Mapping[str, str], *, nested: bool) -> tuple[str, int]:
    """Returns the text from ``at`` to its end, which is a closing brace if it is nested; and the index of that end."""
    parts: list[str] = []
    while at < len(text):
        if nested and text[at] == "}":
            return "".join(parts), at
        if text[at] != "$":
            parts.append(text[at])
            at += 1
        elif text[at + 1 : at + 2] == "$":
            parts.append("$")
            at += 2
        else:
            part, at = _variable(text, at + 1, env)
            parts.append(part)
    if nested:
        raise InterpolationError(f"a brace is not closed in {text!r}")
    return "".join(parts), at


def _variable(text: str, at: int, env: Mapping[str, str]) -> tuple[str, int]:
    """Returns the value of the variable after a dollar sign, and the index of its end."""
    braced = text[at : at + 1] == "{"
    match = _NAME.match(text, at + braced)
    if not match:
        raise InterpolationError(f"no variable name after a $ in {text!r}; a $ by itself is written $$")
    name, at = match[0], match.end()
    if not braced:
        return env.get(name, ""), at
    if text[at : at + 1] == "}":
        return env.get(name, ""), at + 1
    operator = _OPERATOR.match(text, at)
    if not operator:
        raise InterpolationError(f"{name} is followed by neither }} nor one of :- - :? ? :+ + in {text!r}")
    other, end = _until(text, operator.end(), env, nested=True)
    return _choose(name, operator[0], other, env), end + 1


def _choose(name: str, operator: str, other: str, env: Mapping[str, str]) -> str:
    present = bool(env.get(name)) if operator[0] == ":" else name in env
    if operator[-1] == "+":
        return other if present else ""
    if present:
        return env[name]
    if operator[-1] == "?":
        raise InterpolationError(f"the variable {name} is required: {other or 'it is not set'}")
    return other


def variables(directory: Path, shell: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables for a compose file: those of ``.env`` beside it and the shell's, which win."""
    file = directory / ".env"
    if not file.exists():
        return dict(shell)
    try:
        with file.open(encoding="utf-8") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise LocalStackError(f".env can't be read: {error}") from error
    found = dict(shell)
    for one in bindings:
        text, line = one.original.string.strip(), one.original.line
        if one.error:
            raise LocalStackError(f".env, line {line}: {text!r} is not of the form NAME=VALUE")
        if one.key is None or one.value is None or one.key in shell:
            continue
        try:
            # Single quotes keep a dollar sign.
            found[one.key] = one.value if _QUOTED.search(text) else interpolate(one.value, found)
        except InterpolationError as error:
            raise LocalStackError(f".env, line {line}: {error}") from error
    return found
