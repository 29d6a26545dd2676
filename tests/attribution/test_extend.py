"""The page that says how to write a method has one that works as it stands there."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from small import picture, region, unet
from torch import nn

from unoise_monai.attribution import base
from unoise_monai.attribution.base import METHODS, NEEDS, Attributor, Score, make_attributor, method_names, register

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extend" / "method.md"
NAME = "contrast_x_gradient"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's code block as a module that Python finds; what it registers is forgotten afterwards."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    (tmp_path / "contrast.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(base._CLASSES)
    yield "contrast"
    sys.modules.pop("contrast", None)
    base._CLASSES.clear()
    base._CLASSES.update(before)


@pytest.mark.parametrize("route", ["python", "bundle"])
def test_the_method_of_the_page(route: str, module: str) -> None:
    assert NAME not in method_names()
    if route == "python":
        importlib.import_module(module)
    else:
        ConfigParser({"imports": [f"$import {module}"], "network": "$1"}).get_parsed_content("network")
    assert method_names()[-1] == NAME
    torch.manual_seed(0)
    linear, image, target = nn.Conv2d(1, 2, 3, padding=1), picture(8, 6), region(8, 6)
    expected = make_attributor("integrated_gradients", linear, baseline="blur", sign="signed")(image, target)
    found = make_attributor(NAME, linear, sign="signed")(image, target)
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor())
    assert found.meta["attribution"] == [{"method": NAME, "sign": "signed"}]
    smooth = make_attributor("smooth_grad", linear, method=NAME, sigma=0.0)(image, target)
    torch.testing.assert_close(smooth.as_tensor(), found.as_tensor().abs())
    whole = make_attributor(NAME, unet(2), baseline="zero")(picture(151, 11), region(151, 11))
    assert float(whole.max()) > 0


def test_a_module_that_is_imported_again_is_no_other_method(module: str) -> None:
    first = importlib.import_module(module).ContrastXGradient
    again = importlib.reload(sys.modules[module]).ContrastXGradient
    assert first is not again is METHODS[NAME]


def method_of(**attributes: object) -> type[Attributor]:
    def maps(self: Attributor, images: torch.Tensor, score: Score) -> torch.Tensor:
        return images

    return type("Mine", (Attributor,), {"maps": maps, **attributes})


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "name of Mine must be lower-case words with underscores, got ''"),
        ({"name": "My method"}, "name of Mine must be lower-case words with underscores, got 'My method'"),
        ({"name": "saliency"}, "name of Mine must be unused, got 'saliency', which unoise_monai.attribution.gradient"),
        ({"name": "mine", "needs": ("sleep",)}, f"needs of Mine must be one of {', '.join(map(repr, NEEDS))}, got"),
    ],
)
def test_what_cannot_be_registered(attributes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        register(method_of(**attributes))
    assert "mine" not in METHODS
    assert METHODS["saliency"].__name__ == "Saliency"
