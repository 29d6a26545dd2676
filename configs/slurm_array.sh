#!/usr/bin/env bash
# A cohort as a SLURM array: sbatch configs/slurm_array.sh BUNDLE INPUT OUTPUT
# Each task does every eighth case into the same output. Submitted again, it does what is missing.
#SBATCH --job-name=unoise
#SBATCH --array=1-8
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=04:00:00
# SIGTERM a minute before the time is up: what is half-written is put away.
#SBATCH --signal=B:TERM@60
set -euo pipefail

source .venv/bin/activate
# Eight whatever part of the array is submitted, such as the tasks that failed: sbatch --array=3,5 ...
exec unoise explain "$1" "$2" "$3" --part "$SLURM_ARRAY_TASK_ID/8" --workers 2
