"""Names that paper/ imports until it imports them from train.py."""

from train import MACHINE_FLAGS as MACHINE  # noqa: F401
from train import RESUMABLE_FLAGS as RESUMABLE  # noqa: F401
from train import Flags, run_name  # noqa: F401
from train import upstream_flags as upstream_run  # noqa: F401

PYTHIA_STEPS, PYTHIA_BATCH, WEIGHT_DECAY, VALUES = 143_000, 1024 * 2048, 0.1, None
TEXTS = {"upstream": "stdlib", "downstream": "torch"}
