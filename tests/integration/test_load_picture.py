"""The live view of a load on a real terminal, while replicas come and go; it is the picture in README.md."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import shutil
import signal
import struct
import sys
import termios
import time
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

from tests.support.drivers import ROOT, LocalDriver
from tests.support.scenarios import wait_for_replicas

COLUMNS, LINES = 88, 12
COMMAND = "python -m grpc_client --duration 60 --rate 500 --concurrency 16"


class Terminal:
    """A program on a pseudo-terminal, and what is on its screen."""

    def __init__(self, command: list[str]) -> None:
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            # The child of a pseudo-terminal's fork.
            os.execvpe(command[0], command, {**os.environ, "TERM": "xterm-256color", "COLUMNS": "", "LINES": ""})  # noqa: S606
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))

    def read(self, seconds: float) -> None:
        """Takes over what the program prints in that time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._terminal], [], [], left)[0]:
                try:
                    self._stream.feed(os.read(self._terminal, 65536))
                except OSError:
                    return

    def end(self) -> int:
        """Interrupts it; its exit code."""
        os.kill(self.pid, signal.SIGINT)
        self.read(3)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._terminal)
        return code


def svg(screen: pyte.Screen) -> str:
    """The screen as a picture, below the command."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {COMMAND}", style="bold"))
    for line in range(LINES):
        text = Text(no_wrap=True)
        for column in range(COLUMNS):
            cell = screen.buffer[line][column]
            colour = "" if cell.fg == "default" else cell.fg.replace("brown", "yellow").replace("bright", "bright_")
            text.append(cell.data, style=f"{'bold ' if cell.bold else ''}{colour}" or "")
        if text.plain.strip():
            console.print(text)
    # Without the fonts that it would load from elsewhere.
    return re.sub(
        r"\s*@font-face \{.*?\}", "", console.export_svg(title="grpc_client", unique_id="load"), flags=re.DOTALL
    )


def test_the_live_view_shows_replicas_as_they_come(three_replicas: LocalDriver, tmp_path: Path) -> None:
    names = wait_for_replicas(three_replicas, 3)
    terminal = Terminal([sys.executable, *COMMAND.split()[1:], "--port", str(three_replicas.port)])
    terminal.read(4)
    shown = "\n".join(terminal.screen.display)
    assert all(name in shown for name in names), shown
    scaling = three_replicas.begin("scale", "hello_server=5")
    terminal.read(7)
    for _ in range(100):
        if scaling.poll() is not None:
            break
        terminal.read(0.5)
    assert scaling.returncode == 0
    names = wait_for_replicas(three_replicas, 5)
    terminal.read(2)
    shown = "\n".join(terminal.screen.display)
    picture = tmp_path / "load.svg"
    picture.write_text(svg(terminal.screen))
    code = terminal.end()
    assert all(name in shown for name in names), shown
    assert re.search(r"\d+ OK, 0 failed, \d{2,3} calls/s", shown), shown
    assert re.search(r"latency: p50 [\d.]+ ms", shown), shown
    assert shown.count("█") > 5 * 20, shown
    assert code == 0
    # A terminal of this size, drawn.
    assert picture.read_text().startswith("<svg")
    if os.environ.get("UPDATE_DOCS") == "1":
        shutil.copyfile(picture, ROOT / "docs" / "load.svg")
