"""Numerical operations, each a triple of reference, kernel and test."""

from kssm.ops.kssm_scan import ScanParameters, kssm_scan, kssm_step_
from kssm.ops.linear_scan import linear_scan

__all__ = ["ScanParameters", "kssm_scan", "kssm_step_", "linear_scan"]
