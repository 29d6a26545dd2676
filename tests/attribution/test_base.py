"""What all attributions share: the call shape, signs, items, geometry, baselines, and nothing changed."""

import math
import re
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from small import AFFINE, unet
from torch import Tensor, nn

from unoise_monai.attribution import METHODS, Difference, Region, SoftDice, base, foreground_sum
from unoise_monai.attribution.base import Attributor, Call, Score, baseline, baselines
from unoise_monai.inference.tiling import VolumeNetwork


class Gradient(Attributor):
    """The plain gradient, by hand."""

    name = "gradient"
    default_sign = "signed"

    def maps(self, images: Tensor, score: Score) -> Tensor:
        score.notes["score"] = float(score(images).detach())
        return torch.autograd.grad(score(images).sum(), images)[0]


class Checked(Attributor):
    """Refuses what is not made for it."""

    name = "checked"

    def check(self, image: Tensor, volume: VolumeNetwork) -> dict[str, Any]:
        return {"stride": volume.stride}

    def maps(self, images: Tensor, score: Score) -> Tensor:
        return images * score.notes["stride"]


def target_of(network: nn.Module, image: Tensor) -> Any:
    with torch.no_grad():
        return foreground_sum(network.eval()(image))


def test_a_map_for_each_item_of_the_image_s_own_size() -> None:
    network, image = unet(3, channels=2), torch.randn(2, 2, 6, 8, 4)
    target = target_of(network, image)
    maps = Gradient(network)(image, target)
    copy = image.clone().requires_grad_()
    (expected,) = torch.autograd.grad(target(network(copy)).sum(), copy)
    torch.testing.assert_close(maps.as_tensor(), expected.sum(dim=1, keepdim=True))
    assert [note["method"] for note in maps.meta["attribution"]] == ["gradient", "gradient"]
    scores = [note["score"] for note in maps.meta["attribution"]]
    assert scores == pytest.approx(target(network(image)).tolist())


def test_signs_are_taken_of_each_channel() -> None:
    values = torch.tensor([[[[1.0, -2.0]], [[-3.0, -4.0]]]])
    assert base.signed(values, "signed").flatten().tolist() == [-2, -6]
    assert base.signed(values, "absolute").flatten().tolist() == [4, 6]
    assert base.signed(values, "positive").flatten().tolist() == [1, 0]
    network, image = unet(2), torch.randn(1, 1, 8, 8)
    maps = {sign: Gradient(network, sign=sign)(image, target_of(network, image)) for sign in ("absolute", "positive")}
    assert float(maps["absolute"].min()) >= 0
    assert maps["absolute"].meta["attribution"][0]["sign"] == "absolute"
    assert not torch.equal(maps["absolute"].as_tensor(), maps["positive"].as_tensor())


def test_geometry_goes_with_the_map() -> None:
    network = unet(3)
    image = MetaTensor(torch.randn(1, 1, 6, 8, 4), affine=AFFINE, meta={"filename_or_obj": "scan.nii.gz"})
    result = Gradient(network)(image, target_of(network, image.as_tensor()))
    torch.testing.assert_close(result.affine, image.affine)
    assert result.meta["filename_or_obj"] == "scan.nii.gz"
    assert "attribution" not in image.meta
    assert type(image.as_tensor()) is Tensor


def test_a_target_of_another_number_of_items_is_refused() -> None:
    network, image = unet(2), torch.randn(2, 1, 8, 8)
    three = Region(torch.ones(3, 1, 8, 8), 1)
    with pytest.raises(ValueError, match="target must be of one item or of the image's 2, got one of 3"):
        Gradient(network)(image, three)
    assert Gradient(network)(image, three.item(0)).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    "name", ["", "integrated_gradients", "guided_backprop", "grad_cam", "layer_integrated_gradients"]
)
@pytest.mark.parametrize("kind", ["region", "foreground", "dice", "difference"])
def test_inference_mode_around_it_changes_nothing(name: str, kind: str) -> None:
    def explain() -> Tensor:
        logits = network.eval()(image)
        mask = logits[:, 1:2].sigmoid()
        target = {
            "region": Region(mask, 1),
            "foreground": foreground_sum(logits),
            "dice": SoftDice(logits.argmax(dim=1, keepdim=True), 1),
            "difference": Difference(Region(mask, 1), Region(1 - mask, 2)),
        }[kind]
        return METHODS.get(name, Gradient)(network)(image.clone(), target).as_tensor()

    network, image = unet(2), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = explain()
    with torch.inference_mode():
        found = explain()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_passes_back_are_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    network, image, seen = unet(2), torch.randn(1, 1, 8, 8), []
    network.head.register_full_backward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    Gradient(network)(image, target_of(network, image))
    # One more is that of the measured pass.
    assert seen
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32


def test_a_check_goes_before_the_maps() -> None:
    network, image = unet(2), torch.rand(2, 1, 8, 8)
    maps = Checked(network)(image, first_class)
    torch.testing.assert_close(maps.as_tensor(), 2 * image)
    assert [note["stride"] for note in maps.meta["attribution"]] == [2, 2]


@pytest.mark.parametrize(("memory_gb", "note"), [(None, None), (1, "not kept")])
def test_a_map_notes_where_memory_is_not_kept(memory_gb: float | None, note: str | None) -> None:
    network, image = nn.Conv2d(1, 2, 3, padding=1), torch.randn(1, 1, 8, 8)
    maps = Gradient(network, memory_gb=memory_gb)(image, first_class)
    assert maps.meta["attribution"][0].get("memory_gb") == note
    assert "memory_gb" not in Gradient(unet(2), memory_gb=memory_gb)(image, first_class).meta["attribution"][0]


def first_class(logits: Tensor) -> Tensor:
    return logits[:, 1].flatten(1).sum(dim=1)


def test_refusals_in_the_call() -> None:
    network = unet(2)
    with pytest.raises(ValueError, match="image must hold finite values only, got 1 NaN"):
        Gradient(network)(torch.full((1, 1, 1, 1), torch.nan), lambda logits: logits.sum())
    with pytest.raises(ValueError, match=r"target must give one scalar an item, \(1,\), got \(\)"):
        Gradient(network)(torch.zeros(1, 1, 8, 8), lambda logits: logits.sum())


def test_watching_a_pass() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
            return factor * x

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Scaled()

        def forward(self, x: Tensor) -> Tensor:
            return self.part(self.part(x, factor=3.0))

    network, x, seen = Twice(), torch.ones(2), list[Any]()
    modules = dict(network.named_modules())
    with base.watching(modules, seen.append, lambda path, module: seen.append((path, module))):
        result = network(x)
    assert [each.path if isinstance(each, Call) else each for each in seen] == [
        *(("", network), ("part", network.part), "part", ("part", network.part), "part", "")
    ]
    first, second, whole = (each for each in seen if isinstance(each, Call))
    assert first.inputs[0] is x
    assert (first.module, first.options, second.options) == (network.part, {"factor": 3.0}, {})
    assert second.inputs[0] is first.output
    assert whole.output is result
    with base.watching({"": network.part}, lambda call: call.output + 1):
        assert network(x).tolist() == [5, 5]
    outputs, result = base.outputs_of(network.part, lambda: network(x))
    assert [each.tolist() for each in outputs] == [[3, 3], [3, 3]]
    with pytest.raises(RuntimeError, match="half way"), base.watching(modules, seen.append):
        raise RuntimeError("half way")
    for module in modules.values():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def images_of(*size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([1.0, 10.0]).view(2, 1, *[1] * len(size))
    shift = torch.tensor([3.0, -2.0]).view(1, 2, *[1] * len(size))
    return scale * torch.randn(2, 2, *size, generator=generator) + shift


IMAGES = images_of(4, 3)


@pytest.mark.parametrize("kind", base.BASELINES)
@pytest.mark.parametrize("size", [(9, 7), (5, 6, 7)])
def test_of_the_image_s_shape_and_of_each_item_alone(kind: str, size: tuple[int, ...]) -> None:
    x = images_of(*size).requires_grad_()
    result = baseline(x, kind)
    assert result.shape == x.shape
    assert not result.requires_grad
    torch.testing.assert_close(baseline(x[1:], kind), result[1:])
    of_meta = baseline(MetaTensor(x.detach()), kind)
    assert type(of_meta) is Tensor
    torch.testing.assert_close(of_meta, result)


def test_statistics_of_each_item_and_channel() -> None:
    x = images_of(60, 50)
    assert not baseline(x, "zero").any()
    noise = baseline(x, "noise")
    for item in range(2):
        for channel in range(2):
            values = x[item, channel]
            assert baseline(x, "mean")[item, channel].unique().tolist() == pytest.approx([float(values.mean())])
            assert baseline(x, "minimum")[item, channel].unique().tolist() == [float(values.min())]
            drawn = noise[item, channel]
            assert float(drawn.mean()) == pytest.approx(float(values.mean()), abs=5 * float(values.std()) / 3000**0.5)
            assert float(drawn.std()) == pytest.approx(float(values.std()), rel=0.1)


def test_the_blur_is_the_mean_of_the_voxels_inside() -> None:
    x = images_of(13, 11)
    sigma, axes = 1.5, [torch.arange(13.0), torch.arange(11.0)]
    # MONAI's filter integrates the Gaussian over each voxel, within four sigma.
    weights = []
    for at in axes:
        away = at[:, None] - at[None]
        edge = [torch.erf((away + half) / (sigma * math.sqrt(2))) for half in (0.5, -0.5)]
        weights.append((edge[0] - edge[1]) * (away.abs() <= 6))
    expected = torch.einsum("ij,bcjk,lk->bcil", weights[0] / weights[0].sum(1, True), x, weights[1])
    expected = expected / weights[1].sum(dim=1)
    torch.testing.assert_close(baseline(x, "blur", sigma=sigma), expected, rtol=1e-3, atol=1e-3)
    flat = torch.full((1, 1, 20, 20), 7.0)
    torch.testing.assert_close(baseline(flat, "blur"), flat)


def test_numbers_and_images_of_one_s_own() -> None:
    x = IMAGES
    assert baseline(x, -1.5).unique().tolist() == [-1.5]
    mine = MetaTensor(torch.randn(1, 2, 4, 3, dtype=torch.float64))
    result = baseline(x, mine)
    assert type(result) is Tensor
    torch.testing.assert_close(result, mine.as_tensor().float().expand(2, -1, -1, -1))
    mine = torch.ones(x.shape)
    baseline(x, mine).zero_()
    assert mine.all()


def test_noise_comes_from_the_seed_alone() -> None:
    x = IMAGES
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = baseline(x, "noise", seed=3)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, baseline(x, "noise", seed=3))
    assert not torch.equal(first, baseline(x, "noise", seed=4))
    assert not torch.equal(baseline(x, "noise", seed=None), baseline(x, "noise", seed=None))


def test_a_distribution() -> None:
    x = IMAGES
    zero, first, second = baselines(x, ("zero", "noise", "noise"), seed=0)
    assert not zero.any()
    assert not torch.equal(first, second)
    assert torch.equal(first, baseline(x, "noise", seed=1))
    stack = torch.randn(3, 2, 4, 3)
    kinds = base.check_baselines(stack)
    assert len(kinds) == 3
    torch.testing.assert_close(torch.stack(baselines(x, kinds)), stack[:, None].expand(3, 2, 2, 4, 3))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: baseline(IMAGES, "black"), "must be one of 'zero', 'mean', 'minimum', 'blur', 'noise', got 'black'"),
        (lambda: baseline(IMAGES, "blur", sigma=0.0), "sigma must be a finite number above 0, got 0.0"),
        (lambda: base.check_baseline(math.nan), "baseline must hold finite values only, got 1 NaN or infinite of 1"),
        (lambda: baseline(IMAGES, torch.zeros(1, 1, 3, 4)), "must expand to the image (2, 2, 4, 3), got (1, 1, 3, 4)"),
        (lambda: base.check_baselines(()), "baselines must be one or more of 'zero', 'mean'"),
        (lambda: base.check_baselines("zero"), "or more of 'zero', 'mean', 'minimum', 'blur', 'noise', got 'zero'"),
        (lambda: base.check_baselines(("zero", "grey")), "baseline must be one of"),
    ],
)
def test_refusals(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        call()
