"""The report quotes what the metrics measured, under the names of the task's classes."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
from ignite.metrics import Average
from monai.data import DataLoader, Dataset, MetaTensor, list_data_collate
from monai.engines import SupervisedEvaluator
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from PIL import Image
from torch import Tensor, nn

from unoise_monai.handlers import training
from unoise_monai.handlers.training import VisibilityReport, quoted
from unoise_monai.metrics import VisibilityCurve, VisibleDice
from unoise_monai.render import PAPER_THRESHOLDS, decile_pictures, to_canonical

AFFINE = from_matvec(euler2mat(0.5, -0.3, 0.2) @ np.diag([0.9, 1.2, -2.0]), [41.3, -20.7, 33.1])
SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
THRESHOLDS = (0.5, 0.9, 1.0)
CLASSES = ("background", "anterior", "posterior")


class Bands(nn.Module):
    """Segments by intensity: 0 background, 1 anterior, 2 posterior."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-((x - value) ** 2) for value in (0.0, 1.0, 2.0)], dim=1)


class Explained(nn.Module):
    """`Bands`, and the intensity as importance: what is not background counts."""

    def __init__(self) -> None:
        super().__init__()
        self.utility = Bands()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.utility(x), x / 2], dim=1)


def item(number: int, posterior: bool = True) -> dict[str, MetaTensor]:
    label = torch.zeros(1, 10, 8, 5)
    label[:, 2:6, 2:6, 1:3] = 1
    if posterior:
        label[:, 2:6, 2:6, 3:4] = 2
    meta = {"filename_or_obj": f"/data/imagesTr/case_{number}.nii.gz"}
    affine = torch.from_numpy(AFFINE)
    return {key: MetaTensor(label.clone(), affine=affine, meta=dict(meta)) for key in ("image", "label")}


def evaluate(
    folder: Path, items: Sequence[dict], pictures: int = 2, batch_size: int = 1, mip: bool = False
) -> SupervisedEvaluator:
    network = Explained()

    def triple(output: dict) -> tuple[Tensor, Tensor, Tensor]:
        return output["image"], output["pred"][:, -1:], output["label"]

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(list(items)), batch_size=batch_size),
        network=network,
        key_val_metric={"mean": Average(output_transform=lambda output: float(output["pred"].mean()))},
        additional_metrics={
            "quantile": VisibleDice(network.utility, SHARES, output_transform=triple),
            "threshold": VisibleDice(network.utility, THRESHOLDS, order="threshold", output_transform=triple),
        },
        val_handlers=[VisibilityReport(folder, ["quantile", "threshold"], CLASSES, pictures, mip)],
        decollate=False,
    )
    evaluator.run()
    return evaluator


def table(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_tables_and_figures(tmp_path: Path) -> None:
    evaluator = evaluate(tmp_path, [item(1), item(2)])
    assert {path.name for path in tmp_path.iterdir()} == {
        *("quantile.csv", "threshold.csv", "visibility.png", "evaluation.json"),
        *(f"case_{number}_{picture}.png" for number in (1, 2) for picture in ("deciles", "thresholds")),
    }
    quantile = table(tmp_path / "quantile.csv")
    assert list(quantile[0]) == ["level", "share_visible", "dice_mean", "dice_anterior", "dice_posterior"]
    assert [row["level"] for row in quantile] == list(SHARES)
    np.testing.assert_allclose([row["share_visible"] for row in quantile], SHARES, atol=2e-3)
    # 48 of the 400 voxels are foreground, 16 of them posterior, which are the most important.
    assert quantile[0]["dice_mean"] == 0
    assert quantile[1]["dice_posterior"] == 1
    assert quantile[1]["dice_anterior"] == pytest.approx(2 * 24 / (24 + 32), abs=1e-5)
    assert all(row["dice_mean"] == 1 for row in quantile[2:])
    threshold = table(tmp_path / "threshold.csv")
    assert [row["level"] for row in threshold] == list(THRESHOLDS)
    np.testing.assert_allclose([row["share_visible"] for row in threshold], [0.12, 0.12, 1.0], atol=1e-6)

    summary = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    curve = evaluator.state.metrics["quantile"]
    assert set(summary) == {"quantile", "threshold"}
    assert summary["quantile"] == {
        "dice_at_10%": pytest.approx((1 + 48 / 56) / 2, abs=1e-4),
        "dice_at_20%": 1,
        "dice_at_30%": 1,
        "dice_at_50%": 1,
        "area": pytest.approx(curve.area, abs=1e-4),
        "dice_all_visible_anterior": 1,
        "dice_all_visible_posterior": 1,
    }


def test_pictures_are_pictures(tmp_path: Path) -> None:
    evaluate(tmp_path, [item(1)])
    for name in ("visibility.png", "case_1_deciles.png", "case_1_thresholds.png"):
        image = matplotlib.image.imread(tmp_path / name)
        assert image.ndim == 3
        assert min(image.shape[:2]) > 50
        assert image[..., :3].std() > 0.01


@pytest.mark.parametrize("mip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_are_of_a_slice_or_of_the_projection(tmp_path: Path, mip: bool, dtype: torch.dtype) -> None:
    """Noise of one voxel, so that projections differ from slices, of a left-handed oblique volume."""
    volume = item(1)["image"]
    volume += torch.rand(volume.shape, generator=torch.Generator().manual_seed(0)) / 4
    batch = list_data_collate([{"image": volume.to(dtype)}])["image"]
    report = VisibilityReport(tmp_path, [], CLASSES, pictures=1, mip=mip)
    report.draw(SimpleNamespace(state=SimpleNamespace(output={"image": batch, "pred": batch / 4})))
    image, spacing_mm = to_canonical(batch[0, 0].float().numpy(), AFFINE)
    importance = (batch / 4)[0, 0].float().numpy()
    importance, _ = to_canonical(importance, AFFINE)
    for name, thresholds in (("deciles", None), ("thresholds", PAPER_THRESHOLDS)):
        expected = decile_pictures(image, importance, spacing_mm, thresholds=thresholds, mip=mip)
        drawn = np.asarray(Image.open(tmp_path / f"case_1_{name}.png"))
        np.testing.assert_array_equal(drawn, expected)
        other = decile_pictures(image, importance, spacing_mm, thresholds=thresholds, mip=not mip)
        assert other.shape != drawn.shape or (other != drawn).any()


@pytest.mark.parametrize(
    ("pictures", "batch_size", "expected"), [(0, 1, 0), (1, 2, 1), (2, 1, 2), (3, 2, 3), (9, 2, 3)]
)
def test_as_many_volumes_as_asked_for_get_pictures(
    tmp_path: Path, pictures: int, batch_size: int, expected: int
) -> None:
    evaluate(tmp_path, [item(1), item(2), item(3)], pictures, batch_size)
    names = sorted(path.name for path in tmp_path.glob("*_deciles.png"))
    assert names == [f"case_{number}_deciles.png" for number in range(1, expected + 1)]


def test_a_second_run_draws_again(tmp_path: Path) -> None:
    evaluator = evaluate(tmp_path, [item(1), item(2)], pictures=1)
    (tmp_path / "case_1_deciles.png").unlink()
    evaluator.run()
    assert sorted(path.name for path in tmp_path.glob("*_deciles.png")) == ["case_1_deciles.png"]


def test_a_class_that_no_volume_has_is_null(tmp_path: Path) -> None:
    evaluate(tmp_path, [item(1, posterior=False)], pictures=0)

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    summary = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert summary["quantile"]["dice_all_visible_posterior"] is None
    assert summary["quantile"]["dice_all_visible_anterior"] == 1


def test_figures_between_the_levels() -> None:
    share = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    curve = VisibilityCurve(share, share, torch.tensor([[0.0], [0.8], [0.9]], dtype=torch.float64))
    assert quoted(curve, ["organ"]) == {
        "dice_at_10%": 0.2,
        "dice_at_20%": 0.4,
        "dice_at_30%": 0.6,
        "dice_at_50%": 0.8167,
        "area": 0.67,
        "dice_all_visible_organ": 0.9,
    }


def test_small_shares_are_quoted_where_they_were_measured() -> None:
    share = torch.tensor([0.0, 0.02, 0.6, 1.0], dtype=torch.float64)
    curve = VisibilityCurve(share, share, torch.tensor([[0.0], [0.7], [0.9], [0.9]], dtype=torch.float64))
    found = quoted(curve, ["vessel"])
    assert found["dice_at_2%"] == 0.7
    assert not {"dice_at_1%", "dice_at_5%"} & set(found)


def test_small_structures_get_pictures_of_small_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict] = []
    real = training.decile_pictures
    monkeypatch.setattr(training, "decile_pictures", lambda *a, **k: drawn.append(k) or real(*a, **k))
    report = VisibilityReport(tmp_path, [], CLASSES, picture_shares=(0.01, 0.02))
    batch = list_data_collate([item(1)])
    report.draw(SimpleNamespace(state=SimpleNamespace(output={"image": batch["image"], "pred": batch["label"] / 2})))
    assert drawn[0]["shares"] == (0.01, 0.02)
    with pytest.raises(ValueError, match="picture_shares must be above 0 and at most 1, got 0"):
        VisibilityReport(tmp_path, [], CLASSES, picture_shares=(0.01, 0))
    with pytest.raises(ValueError, match="pictures must be at least 0, got -1"):
        VisibilityReport(tmp_path, [], CLASSES, pictures=-1)


def test_a_cohort_without_foreground_writes_its_tables_and_no_plot(tmp_path: Path) -> None:
    empty = item(1)
    empty["label"] = empty["label"] * 0
    evaluate(tmp_path, [empty], pictures=0)
    assert not (tmp_path / "visibility.png").exists()
    summary = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert summary["quantile"]["area"] is None
    assert summary["quantile"]["dice_all_visible_anterior"] is None
    assert len(table(tmp_path / "quantile.csv")) == len(SHARES)
