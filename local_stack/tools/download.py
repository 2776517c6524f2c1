"""Downloads a file: `download.py URL FILE ANSWER_SECONDS PAUSE_SECONDS`.

It is a process of its own, which SIGALRM ends, because nothing else bounds the time that the look-up of a name takes.
"""

import shutil
import signal
import sys
import urllib.request
from pathlib import Path

signal.setitimer(signal.ITIMER_REAL, float(sys.argv[3]))
with urllib.request.urlopen(sys.argv[1], timeout=float(sys.argv[4])) as response:  # noqa: S310 (release.py checks it)
    signal.setitimer(signal.ITIMER_REAL, 0)
    with Path(sys.argv[2]).open("wb") as file:
        shutil.copyfileobj(response, file)
