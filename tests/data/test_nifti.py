"""What the project writes opens where it should, whole."""

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK

from unoise_monai.data.nifti import write_nifti


def test_a_volume_keeps_its_place_and_says_what_it_is(tmp_path: Path, affine: np.ndarray) -> None:
    voxels = np.random.default_rng(0).integers(0, 9, (7, 6, 5)).astype(np.uint8)
    path = tmp_path / "new" / "label.nii.gz"
    write_nifti(path, voxels, affine, "semi-automatic")
    volume = nib.load(path)
    np.testing.assert_array_equal(np.asarray(volume.dataobj), voxels)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    np.testing.assert_allclose(volume.get_qform(), affine, atol=1e-5)
    header = volume.header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"
    assert header["descrip"].item() == b"semi-automatic"
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).T, voxels)
    assert [each.name for each in path.parent.iterdir()] == ["label.nii.gz"]
