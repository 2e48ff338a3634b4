"""The progress bar: lines in a log, one line redrawn on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios

# Work of one second; says at the end how long it has really taken.
WORK = """
import sys, time
from mambaout.data import bar
bar.LINE_SECONDS = {interval}
begun = time.monotonic()
with bar.progress_bar(total=50, unit=" images", desc="pack photos", disable={disable}) as shown:
    for _ in range(50):
        time.sleep(0.02)
        shown.update()
print(time.monotonic() - begun)
"""
LINE = r"pack photos: \d+ of 50 images \(\d+ %\), [\d.]+ images/s, \d\d:\d\d so far, \d\d:\d\d left"


def work(interval: float, disable: bool = False) -> tuple[float, str]:
    """Seconds that it took, and what it wrote to a pipe."""
    code = WORK.format(interval=interval, disable=disable)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout), done.stderr


def test_a_log_has_whole_lines_with_rate_and_time_left_one_an_interval():
    seconds, shown = work(interval=0.2)
    lines = shown.splitlines()
    assert "\r" not in shown
    assert all(re.fullmatch(LINE, line) for line in lines), shown
    assert 2 <= len(lines) <= seconds / 0.2 + 1
    assert lines[-1].startswith("pack photos: 50 of 50 images (100 %)")


def test_short_work_writes_nothing_to_a_log():
    assert work(interval=1e6)[1] == ""
    assert work(interval=0.2, disable=True)[1] == ""


def test_slow_work_has_a_line_an_interval_after_quick_work():
    code = (
        "import time\n"
        "from mambaout.data import bar\n"
        "bar.LINE_SECONDS = 0.2\n"
        "with bar.progress_bar(total=2000, desc='pack', unit=' images') as shown:\n"
        "    for index in range(2000):\n"
        "        time.sleep(0.0005 if index < 1996 else 0.3)\n"
        "        shown.update()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    counts = [int(found) for found in re.findall(r"(\d+) of 2000", done.stderr)]
    assert counts[-5:] == [1997, 1998, 1999, 2000, 2000]


def test_a_terminal_redraws_one_line():
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (24, 80))
    code = WORK.format(interval=0.2, disable=False)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=there, stdout=subprocess.PIPE)
    os.close(there)
    shown = b""
    while True:
        try:
            shown += os.read(here, 1 << 16)
        except OSError:  # what Linux answers once nobody writes any more
            break
    os.close(here)
    process.communicate()
    text = shown.decode()
    assert text.count("\r") > 2
    assert text.strip().count("\n") == 0
    assert "50/50" in text
