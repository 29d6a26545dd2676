import numpy as np

from unoise_monai.phantoms.abdomen import Solid, Tissue, random_abdomen, random_hounsfield
from unoise_monai.phantoms.shapes import Ellipsoid, Tube


def tubes(solids: list[Solid], kind: Tissue) -> list[Tube]:
    return [shape for tissue, shape in solids if tissue == kind and isinstance(shape, Tube)]


def test_target_and_loops_are_of_one_family_and_loops_keep_away() -> None:
    lengths: dict[Tissue, list[float]] = {Tissue.TARGET: [], Tissue.BOWEL: []}
    calibres: dict[Tissue, list[float]] = {Tissue.TARGET: [], Tissue.BOWEL: []}
    for seed in range(20):
        solids = random_abdomen(np.random.default_rng(seed))
        loops = tubes(solids, Tissue.BOWEL)
        assert 4 <= len(loops) <= 7
        for kind in lengths:
            for tube in tubes(solids, kind):
                lengths[kind].append(float(np.linalg.norm(np.diff(tube.points, axis=0), axis=1).sum()))
                calibres[kind].append(float(tube.radii.mean()))
        for kind in (Tissue.TARGET, Tissue.SPLENIC_VEIN, Tissue.AORTA):
            assert min(loop.gap(tubes(solids, kind)[0]) for loop in loops) > 6
    for values in (lengths, calibres):
        np.testing.assert_allclose(np.mean(values[Tissue.TARGET]), np.mean(values[Tissue.BOWEL]), rtol=0.03)


def test_liver_is_right_spleen_left_and_spine_at_the_back() -> None:
    centres = {
        kind: shape.centre
        for kind, shape in random_abdomen(np.random.default_rng(0))
        if isinstance(shape, Ellipsoid) and not shape.outside
    }
    assert centres[Tissue.LIVER][0] > 0 > centres[Tissue.SPLEEN][0]
    assert centres[Tissue.BONE][1] < 0 < centres[Tissue.STOMACH_FLUID][1]


def test_target_and_bowel_share_one_intensity_in_every_patient() -> None:
    means = [random_hounsfield(np.random.default_rng(seed)) for seed in range(3)]
    for values in means:
        assert values[Tissue.TARGET] == values[Tissue.BOWEL]
        assert values[Tissue.AIR] == Tissue.AIR.hounsfield
    assert not np.array_equal(means[0], means[1])
