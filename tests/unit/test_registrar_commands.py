"""The command line of ``python -m registrar``."""

from __future__ import annotations

import pytest

from registrar import __main__ as registrar


@pytest.mark.parametrize("line", ["run --why x", "health --once", "--once health", "--why x", "stop", "environment x"])
def test_an_option_of_another_command_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr("sys.argv", ["registrar", *line.split()])
    with pytest.raises(SystemExit) as caught:
        registrar.main()
    assert caught.value.code == 2


@pytest.mark.parametrize(("line", "once"), [("", False), ("--once", True), ("run --once", True), ("--once run", True)])
def test_without_a_command_it_runs(line: str, once: bool) -> None:
    arguments = registrar.make_parser().parse_args(line.split())
    assert (arguments.command or "run", arguments.once) == ("run", once)
