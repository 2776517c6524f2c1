"""Variables in a compose file, by the Compose Specification ("Interpolation")."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-?+]")


class InterpolationError(ValueError):
    """The text is not of that form, or a variable that it requires is not set."""


def interpolate(text: str, env: Mapping[str, str]) -> str:
    """Replaces ``$NAME``, ``${NAME}``, ``${NAME:-default}``, ``${NAME:?error}`` and ``${NAME:+replacement}``.

    Without the colon an empty variable counts as set. Defaults and replacements may hold variables. ``$$`` is a dollar
    sign.

    Raises:
        InterpolationError: see there.
    """
    found, end = _until(text, 0, env, nested=False)
    assert end == len(text)  # noqa: S101 - nothing ends it earlier
    return found


def _until(text: str, at: int, env: Mapping[str, str], *, nested: bool) -> tuple[str, int]:
    """The text from ``at``, to the brace that ends it if it is nested; and where it ends."""
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
    """The value of the variable behind a dollar sign, and where it ends."""
    braced = text[at : at + 1] == "{"
    match = _NAME.match(text, at + braced)
    if not match:
        raise InterpolationError(f"no variable's name behind a $ in {text!r}; a $ by itself is written $$")
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
