"""How every program ends: well, with one line that says what to mend, or interrupted."""

import pytest

from minillm import command
from minillm.data.assets import AssetError
from minillm.train.loop import TrainingDiverged


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, AssetError, TrainingDiverged])
def test_what_the_user_can_mend_is_one_line(kind, capsys):
    def work(given):
        raise kind(f"{given}:\n  try 3")

    assert command.run(work, "steps=0") == 2
    assert capsys.readouterr() == ("", "error: steps=0: try 3\n")


def test_the_end_an_interruption_and_a_bug(capsys):
    done = []
    assert command.run(done.append, 3) == 0 and done == [3]

    def fail(error):
        raise error

    assert command.run(fail, KeyboardInterrupt()) == 130
    with pytest.raises(RuntimeError, match="a bug keeps its traceback"):
        command.run(fail, RuntimeError("a bug keeps its traceback"))
    assert capsys.readouterr() == ("", "")


def test_help_begins_with_the_text_as_it_is_written(capsys):
    with pytest.raises(SystemExit):
        command.make_parser("minillm.chat", "Talk.\n\n    like this").parse_args(["--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m minillm.chat") and "\nTalk.\n\n    like this\n" in out
