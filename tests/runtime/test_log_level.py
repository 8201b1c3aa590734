"""Which lines a program prints."""

import pytest

from minirlhf.runtime.distributed import say, shows
from minirlhf.runtime.log_level import log_level


@pytest.mark.parametrize(
    ("level", "printed"),
    [("quiet", ["quiet"]), ("normal", ["quiet", "normal"]), ("debug", ["quiet", "normal", "debug"])],
)
def test_a_level_prints_its_lines_and_those_below(level, printed, capsys):
    with log_level(level):
        for each in ("quiet", "normal", "debug"):
            say(each, each)
    assert capsys.readouterr().out.split() == printed


def test_the_level_ends_with_its_context_and_normal_is_the_default():
    with pytest.raises(ZeroDivisionError), log_level("quiet"):
        assert not shows()
        raise ZeroDivisionError
    assert shows() and not shows("debug")
