"""Times a whole volume through a 3D U-Net: one pass, exact tiles, MONAI's sliding window.

    python benchmarks/tiling.py --size 122 101 112 --depth 3 4

The weights are random: what is measured is time and how far each way is from the one pass in fp32. Writes
benchmarks/results/tiling.md and prints it.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import set_determinism
from torch import Tensor

from unoise_monai.inference.memory import autocast, measure_pass, resolve_precision
from unoise_monai.inference.tiling import TiledInferer
from unoise_monai.networks import UNet


def timed(run: Callable[[], Tensor], device: torch.device, repeats: int) -> tuple[Tensor, float]:
    """The output, and the least seconds of ``repeats`` runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        output = run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return output, min(seconds)


def whole_volume_gb(network: UNet, image: Tensor) -> float:
    """What one pass over ``image`` takes in fp32, in 1e9 bytes."""

    def predict(window: Tensor) -> Tensor:
        with autocast(image.device, "fp32"):
            return network(window)

    side = network.stride * -(-16 // network.stride)
    cost = measure_pass(network, predict, (1, 1, side, side, side), image.device, torch.float32)
    return cost.bytes_per_voxel * image[0, 0].numel() / 1e9


def table(size: tuple[int, ...], depth: int, channel_factor: int, share: float, repeats: int) -> list[str]:
    """The Markdown lines of one network's measurements."""
    set_determinism(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = UNet(spatial_dims=3, in_channels=1, out_channels=3, depth=depth, channel_factor=channel_factor)
    network = network.to(device).eval()
    image = torch.randn(1, 1, *size, device=device)
    gigabytes = whole_volume_gb(network, image)
    fast = "bf16" if resolve_precision(device) == torch.float32 else "auto"
    window = SlidingWindowInferer((96, 96, 96), 1, 0.5, "gaussian")
    ways: list[tuple[str, Inferer, int]] = [
        ("one pass, fp32", TiledInferer(1e6, "fp32"), repeats),
        (
            f"one pass, {str(resolve_precision(device, fast)).removeprefix('torch.')}, channels last",
            TiledInferer(1e6, fast),
            repeats,
        ),
        (f"exact tiles, fp32, {share * gigabytes:.2f} GB", TiledInferer(share * gigabytes, "fp32"), repeats),
        ("sliding window 96^3, overlap 0.5, gaussian, fp32", window, 1),
    ]
    lines = [
        f"{' x '.join(map(str, size))} voxels, depth {depth}, channel factor {channel_factor}, halo {network.halo}; "
        f"one pass takes {gigabytes:.2f} GB; {describe(device)}",
        "",
        "| way | passes | seconds | largest difference |",
        "|---|---|---|---|",
    ]
    passes: list[int] = []
    network.register_forward_hook(lambda *_: passes.append(1))
    reference: Tensor | None = None
    with torch.inference_mode():
        for name, inferer, runs in ways:
            try:
                inferer(image, network) if runs > 1 else None
                passes.clear()
                output, seconds = timed(partial(inferer, image, network), device, runs)
            except MemoryError as refusal:
                lines.append(f"| {name} | refused | | {refusal} |")
                continue
            reference = output if reference is None else reference
            difference = float((output - reference).abs().max())
            lines.append(f"| {name} | {len(passes) // runs} | {seconds:.2f} | {difference:.1e} |")
    scale = 0.0 if reference is None else float(reference.abs().max())
    return [*lines, "", f"The largest output of the one pass in fp32 is {scale:.2f}.", ""]


def describe(device: torch.device) -> str:
    """The hardware and the torch that a table was measured with."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(122, 101, 112), help="voxels of the volume")
    parser.add_argument("--depth", type=int, nargs="+", default=(3, 4), help="resolution levels, a table each")
    parser.add_argument("--channel-factor", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.5, help="exact tiles get this share of one pass's memory")
    parser.add_argument("--repeats", type=int, default=3, help="runs a way, the fastest counts")
    arguments = parser.parse_args()
    lines = [f"`{' '.join(['python', 'benchmarks/tiling.py', *sys.argv[1:]])}`", ""]
    for depth in arguments.depth:
        lines += table(tuple(arguments.size), depth, arguments.channel_factor, arguments.share, arguments.repeats)
    result = Path(__file__).resolve().parent / "results" / "tiling.md"
    result.parent.mkdir(exist_ok=True)
    result.write_text("\n".join(lines), encoding="utf-8")
    sys.stdout.write(result.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
