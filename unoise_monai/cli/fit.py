"""``unoise fit`` and ``unoise evaluate``: a bundle for the user's own network, and how good a bundle's maps are."""

import argparse
import sys
from pathlib import Path
from typing import Any

from unoise_monai.cli import Exit

# As the package names them, whose import takes seconds; a test compares the two.
OBJECTIVES = ("visible", "noise")
PARTS = ("training", "validation", "test", "all")

EPILOG = """\
MODEL is found out by itself:
  a MONAI bundle                unoise fit spleen_ct_segmentation Task09_Spleen spleen_unoise --trust-bundle
  nnU-Net's results             unoise fit .../nnUNetTrainer__nnUNetPlans__3d_fullres nnUNet_raw/Dataset004_X out
  TorchScript, torch.export     unoise fit model.ts scans out --like like.yaml
  a Python class or function    unoise fit my_package.nets:make scans out --weights best.pt --like like.yaml

like.yaml says what no file does (docs/own-model.md):
  labels: [background, spleen]
  spacing_mm: [1.5, 1.5, 2.0]
  orientation: RAS
  intensities: {window: [-57, 164], to: [0, 1]}
  channels: 1
  outputs: softmax
  patch_size: [96, 96, 96]

Stopped, it goes on when the same command is given again. Exit status 3: the map is no better than a random order of the
voxels."""


def add_fit(subparsers: Any) -> None:
    """The options of ``unoise fit``."""
    command = subparsers.add_parser(
        "fit",
        help="explain a network that you have",
        description="Check a trained network on your data, train a noise model for it, and write a bundle of both.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("model", metavar="MODEL", help="your network, see below")
    command.add_argument("data", metavar="DATA", type=Path, help="cases to train on: as INPUT of `unoise explain`")
    command.add_argument("out", metavar="OUT", type=Path, help="the new bundle's folder")
    command.add_argument("--check", action="store_true", help="check the network on the data, then stop")
    command.add_argument("--weights", type=Path, metavar="FILE", help="checkpoint, where MODEL has none of its own")
    command.add_argument("--fold", default="0", help="of nnU-Net (%(default)s)")
    command.add_argument("--like", type=Path, metavar="BUNDLE_OR_YAML", help="how MODEL wants its images")
    command.add_argument("--labels", metavar="model|FOLDER", help="the model's own segmentation, or other label maps")
    command.add_argument("--split", type=Path, metavar="JSON", help="which cases MODEL was trained on")
    command.add_argument("--objective", default="visible", choices=OBJECTIVES, help="of training (%(default)s)")
    command.add_argument("--minutes", type=float, default=30.0, help="that training takes at most (%(default)g)")
    command.add_argument("--min-dice", type=float, default=0.5, help="below, nothing is trained (%(default)g)")
    command.add_argument("--device", help="such as cuda:0 or cpu; by default a GPU where there is one")
    command.add_argument("--trust-bundle", action="store_true", help="run a bundle's configuration that is not known")
    command.set_defaults(run=run_fit)


def run_fit(args: argparse.Namespace) -> int:
    """Make a bundle of a trained network; see `Exit`."""
    from unoise_monai.fit import fit, load

    def tell(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    found = load(args.model, args.weights, args.like, args.fold, args.trust_bundle)
    fitted = fit(
        found,
        args.data,
        args.out,
        labels=args.labels,
        split=args.split,
        objective=args.objective,
        minutes=args.minutes,
        min_dice=args.min_dice,
        device=args.device,
        check_only=args.check,
        tell=tell,
    )
    if fitted is None:
        tell("All checks passed. Without --check, training begins.")
        return Exit.DONE
    if not fitted.believed:
        return Exit.SOME_FAILED
    tell(f"Next: unoise explain {args.out} SCANS RESULTS")
    return Exit.DONE


def add_evaluate(subparsers: Any) -> None:
    """The options of ``unoise evaluate``."""
    command = subparsers.add_parser(
        "evaluate",
        help="measure a bundle on labelled cases",
        description="Dice of a bundle's network, and what stays of it when only its important voxels are visible.",
    )
    command.add_argument("bundle", metavar="BUNDLE", help="name or folder")
    command.add_argument("data", metavar="DATA", type=Path, help="labelled cases: as INPUT of `unoise explain`")
    command.add_argument("output", metavar="OUTPUT", type=Path, help="folder for tables and pictures")
    command.add_argument("--part", default="all", choices=PARTS, help="of the bundle's own split (%(default)s)")
    command.add_argument("--weights", type=Path, metavar="FILE", help="instead of the bundle's")
    command.add_argument("--trust-bundle", action="store_true", help="run a bundle's configuration that is not known")
    command.set_defaults(run=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> int:
    """Run a bundle's ``evaluate.yaml``, and tell its table.

    Raises:
        UntrustedBundle: when the bundle is not trusted.
        FileNotFoundError: when it has no training configuration.
    """
    from unoise_monai.bundle import check_trust, find_bundle, run_configuration

    folder = find_bundle(args.bundle)
    if not args.trust_bundle:
        check_trust(folder)
    changes: dict[str, Any] = {
        "dataset_dir": str(args.data),
        "output_dir": str(args.output),
        "part": None if args.part == "all" else args.part,
    }
    if args.weights is not None:
        changes["weights"] = str(args.weights)
    run_configuration(folder, ("train", "evaluate"), changes)
    sys.stdout.write((args.output / "quantile.csv").read_text(encoding="utf-8"))
    return Exit.DONE
