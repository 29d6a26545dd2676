"""DICOM series as a scanner's export holds them, with a patient's name in every header."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK
from nibabel.eulerangles import euler2mat

TURN = euler2mat(0.3, 0.2, -0.1)
SPACING_MM = (0.9, 1.1)
PATIENT, PATIENT_ID, DATE = "Schmidt^Hannelore", "PID-4711", "19470311"
UID = "1.2.826.0.1.3680043.2.1125.1"


def slices(count: int = 6) -> np.ndarray:
    return np.random.default_rng(3).normal(200, 50, (count, 10, 12)).astype(np.int16)


def without_picture(kind: bytes) -> bytes:
    """A DICOM file of a class without pictures, such as a report."""
    return bytes(128) + b"DICM\2\0\2\0UI" + len(kind).to_bytes(2, "little") + kind + bytes(400)


def write_series(
    folder: Path,
    voxels: np.ndarray | None = None,
    step_mm: Sequence[float] | None = None,
    uid: str = UID,
    heights_mm: Sequence[float] | None = None,
    names: str = "{:03}.dcm",
    tags: dict[str, str] | None = None,
) -> list[Path]:
    """Write the slices ``(Z, Y, X)``, each ``step_mm`` from the last (2 mm up the normal), or at ``heights_mm``."""
    voxels = slices() if voxels is None else voxels
    folder.mkdir(parents=True, exist_ok=True)
    step = 2.0 * TURN[:, 2] if step_mm is None else np.array(step_mm)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    paths = []
    for number, plane in enumerate(voxels):
        image = SimpleITK.GetImageFromArray(plane[None], isVector=plane.ndim == 3)
        origin = np.array([10.0, -20.0, 30.0])
        origin = origin + (number * step if heights_mm is None else heights_mm[number] * TURN[:, 2])
        image.SetSpacing((*SPACING_MM, 2.0))
        image.SetOrigin(origin.tolist())
        image.SetDirection(TURN.ravel().tolist())
        header = {
            "0008|0060": "MR",
            "0008|0020": DATE,
            "0010|0010": PATIENT,
            "0010|0020": PATIENT_ID,
            "0010|0030": DATE,
            "0020|000d": f"{UID}.9",
            "0020|000e": uid,
            "0008|0018": f"{uid}.3.{number}",
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(f"{value:.6f}" for value in origin),
            "0020|0037": "\\".join(f"{cosine:.8f}" for cosine in TURN.T[:2].ravel()),
            **(tags or {}),
        }
        for tag, value in header.items():
            image.SetMetaData(tag, value)
        paths.append(folder / names.format(number))
        writer.SetFileName(str(paths[-1]))
        writer.Execute(image)
    return paths
