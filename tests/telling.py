"""What commands print."""

from __future__ import annotations

import pytest

from fxcat.cli.main import main


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """What a command prints."""
    capsys.readouterr()
    found = main(list(arguments))
    shown = capsys.readouterr()
    assert found == code, shown.out + shown.err
    return shown.out + shown.err
