"""Synthetic scans whose causes are known."""

from unoise_monai.phantoms.abdomen import Phantom, Truth, abdomen_phantom
from unoise_monai.phantoms.cohort import write_phantom_cohort
from unoise_monai.phantoms.vessels import vessel_phantom

__all__ = ["Phantom", "Truth", "abdomen_phantom", "vessel_phantom", "write_phantom_cohort"]
