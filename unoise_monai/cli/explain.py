"""``unoise explain``: every volume of an input, explained."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from unoise_monai.bundle import LoadedBundle, find_bundle, load_bundle
from unoise_monai.cli.codes import Exit
from unoise_monai.cli.explain_options import add_explain
from unoise_monai.data.cases import CohortCase, read_key
from unoise_monai.data.finding import find_cohort
from unoise_monai.inference.precision import resolve_precision
from unoise_monai.runs.ray_engine import RayEngine, Work
from unoise_monai.runs.run import Summary, explain_cohort, part_of
from unoise_monai.runs.settings import OtherSettings, Settings, find_device, software


def add(commands: Any) -> None:
    """The command and what it does."""
    add_explain(commands).set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Explain; see `Exit`."""
    if chosen.workers < 0:
        raise ValueError(f"--workers must be at least 0, got {chosen.workers}")
    if Path(chosen.input).resolve() == chosen.output.resolve():
        raise ValueError(f"OUTPUT must be another folder than INPUT, got {chosen.output} for both")
    key = read_key(chosen.key or chosen.output.with_name(f"{chosen.output.name}.key")) if chosen.anonymise else None
    if chosen.part is not None:
        part_of([], chosen.part)
    cases = find_cohort(chosen.input, chosen.labels, chosen.organs, key)
    if chosen.dry_run:
        return _list(part_of(cases, chosen.part), chosen.json)
    # Workers of a cluster find their own device; here the bundle is asked for its settings only.
    device = find_device(chosen.device if chosen.engine == "local" else "cpu")
    place = find_bundle(chosen.bundle)
    bundle = load_bundle(place, device, chosen.weights, chosen.trust_bundle)
    settings = settings_of(chosen, bundle, device)
    engine = None if chosen.engine == "local" else ray_engine(chosen, place, settings)
    try:
        summary = explain_cohort(
            cases,
            bundle,
            settings,
            chosen.output,
            device,
            command=command_line(chosen),
            part=chosen.part,
            overwrite=chosen.overwrite,
            workers=chosen.workers,
            timeout=chosen.timeout,
            memory_gb=chosen.memory_gb,
            quiet=chosen.quiet,
            engine=engine,
        )
    except OtherSettings:
        raise
    except ValueError as error:
        # All that was asked for has been checked: what is wrong now is wrong here.
        raise RuntimeError(f"unexpected: {error}") from error
    _tell(summary, chosen)
    return Exit.SOME_FAILED if summary.failed else Exit.DONE


def settings_of(chosen: argparse.Namespace, bundle: LoadedBundle, device: torch.device) -> Settings:
    """What the files hang on.

    Raises:
        ValueError: when an option is unknown.
    """
    return Settings(
        bundle=bundle.name,
        bundle_version=bundle.version,
        weights_sha256=bundle.weights_sha256,
        config_sha256=bundle.config_sha256,
        software=software(),
        number_format=str(resolve_precision(device, chosen.precision)) if chosen.engine == "local" else "auto",
        quantity=chosen.quantity,
        methods=tuple(filter(None, chosen.methods.split(","))),
        images=chosen.images,
        fast=chosen.fast,
        precision=chosen.precision,
        anonymised=chosen.anonymise,
    )


def ray_engine(chosen: argparse.Namespace, bundle: Path, settings: Settings) -> RayEngine:
    """Runs the cases on a Ray cluster, whose workers see the same files."""
    work = Work(
        bundle=bundle.resolve(),
        weights=None if chosen.weights is None else chosen.weights.resolve(),
        trusted=chosen.trust_bundle,
        settings=settings,
        output=chosen.output.resolve(),
        device=chosen.device,
        memory_gb=chosen.memory_gb,
        timeout=chosen.timeout,
    )
    return RayEngine(work, chosen.address, chosen.gpus)


def command_line(chosen: argparse.Namespace) -> str:
    """The command for ``run.json``: paths, which may name patients, are left out."""
    words = [f"--{name.replace('_', '-')}" for name in ("fast", "anonymise", "overwrite") if getattr(chosen, name)]
    words += [] if chosen.images else ["--no-images"]
    words += [f"--{name} PATH" for name in ("labels", "organs", "weights") if getattr(chosen, name)]
    words += [f"--{name} {getattr(chosen, name)}" for name in ("quantity", "precision", "device", "engine")]
    words += [f"--methods {chosen.methods}"] if chosen.methods else []
    return " ".join(["unoise explain BUNDLE INPUT OUTPUT", *words])


def _tell(summary: Summary, chosen: argparse.Namespace) -> None:
    if chosen.json:
        sys.stdout.write(json.dumps({**asdict(summary), "output": str(chosen.output)}) + "\n")
    elif not chosen.quiet:
        told = f"{summary.done} done, {summary.kept} were there, {summary.failed} failed, of {summary.cases} cases"
        failures = f"; see {chosen.output / 'failures.csv'}" if summary.failed else ""
        sys.stderr.write(f"{told}{failures}\n")


def _list(cases: Sequence[CohortCase], as_json: bool) -> int:
    """To standard output alone: these are the only lines that say which file is which case."""
    rows = [
        {
            "case": case.name,
            "files": [str(path) for path in case.files],
            "problem": case.problem,
            "label": None if case.label is None else str(case.label),
            "organs": None if case.organs is None else str(case.organs),
        }
        for case in cases
    ]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    else:
        for row in rows:
            more = f" and {len(row['files']) - 1} more" if len(row["files"]) > 1 else ""  # type: ignore[arg-type]
            what = row["problem"] or f"{row['files'][0]}{more}"  # type: ignore[index]
            sys.stdout.write(f"{row['case']}\t{what}\n")
    return Exit.DONE
