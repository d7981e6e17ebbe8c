"""Progress bars."""

import pytest

from q2s_tf.cli import track


@pytest.mark.parametrize("total", [None, 2, 5, 9])
def test_a_bar_ends_at_the_true_total(total: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter(range(5)), "reading", total)) == [0, 1, 2, 3, 4]
    assert "5/5" in capsys.readouterr().err
