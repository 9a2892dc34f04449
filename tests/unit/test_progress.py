"""Notes of progress, and durations."""

from __future__ import annotations

import pytest

from gguf_bof4.progress import NOTE, duration_text, progress_bar


def test_notes_are_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("reading") as progress:
        progress("layer 1 of 30", 1, 30)
        progress("about 7 min: 30 layers, [32] samples", 0, NOTE)
    assert capsys.readouterr() == ("", "about 7 min: 30 layers, [32] samples\n")


def test_durations() -> None:
    found = [duration_text(seconds) for seconds in (0.2, 89, 91, 420, 5399, 5401)]
    assert found == ["0 s", "89 s", "2 min", "7 min", "90 min", "1.5 h"]
