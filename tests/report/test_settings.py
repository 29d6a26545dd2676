"""Results are told apart by weights and files, not by devices, times or places."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import nn
from unoise_monai.runs.comparison import file_identity, weights_sha256


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2)).to(dtype)


def test_equal_weights_have_one_digest_and_any_change_another() -> None:
    digest = weights_sha256(network())
    assert len(digest) == 64
    assert weights_sha256(network()) == digest
    weight, buffer = network(), network()
    with torch.no_grad():
        weight[0].weight[1, 0, 2, 0, 1] += 1e-6
        buffer[1].running_mean[0] = 0.5
    assert len({digest, weights_sha256(weight), weights_sha256(buffer), weights_sha256(network(torch.bfloat16))}) == 4


def test_the_layout_in_memory_does_not_matter_and_names_and_shapes_do() -> None:
    layout = network().to(memory_format=torch.channels_last_3d)
    assert weights_sha256(layout) == weights_sha256(network())
    flat, square = nn.Linear(4, 1, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        flat.weight.fill_(1)
        square.weight.fill_(1)
    assert weights_sha256(flat) != weights_sha256(square)
    assert weights_sha256(flat) != weights_sha256(nn.ModuleDict({"layer": flat}))


def test_a_file_is_its_name_and_size_wherever_and_whenever(tmp_path: Path) -> None:
    file = tmp_path / "case.nii.gz"
    file.write_bytes(b"12345")
    assert file_identity(file) == {"name": "case.nii.gz", "bytes": 5}
    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    shutil.copy(file, elsewhere)
    os.utime(elsewhere / file.name, (0, 0))
    assert file_identity(str(elsewhere / file.name)) == file_identity(file)
    file.write_bytes(b"123456")
    assert file_identity(file)["bytes"] == 6


def test_of_a_folder_all_its_files_count(tmp_path: Path) -> None:
    series = tmp_path / "series"
    (series / "deeper").mkdir(parents=True)
    for slice_number in range(3):
        (series / f"{slice_number}.dcm").write_bytes(b"x" * 10)
    assert file_identity(series) == {"name": "series", "bytes": 30}


def test_a_missing_file_has_no_size(tmp_path: Path) -> None:
    assert file_identity(tmp_path / "nobody.nii.gz") == {"name": "nobody.nii.gz", "bytes": None}


def test_the_network_comes_back_untouched() -> None:
    before = network()
    weights_sha256(before)
    for name, value in before.state_dict().items():
        torch.testing.assert_close(value, network().state_dict()[name], rtol=0, atol=0)
