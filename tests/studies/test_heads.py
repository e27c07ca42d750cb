"""`studies.heads`: the heads' figures are those of the papers where papers print them."""

import pytest

from studies.heads import main, table


def test_the_published_network_has_the_published_size() -> None:
    rows = table().set_index(["network", "task"])
    points = rows.loc[("resnet50", "keypoints")]
    assert points.params_M == pytest.approx(34.0, abs=0.05)
    assert rows.loc[("resnet50", "classification")].head_params_M == pytest.approx(2.05, abs=0.01)


def test_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "deeplab" in capsys.readouterr().out
