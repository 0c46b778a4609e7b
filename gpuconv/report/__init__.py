"""Reports: a run as one HTML file, its learning curves as a picture."""

from gpuconv.report.figures import available, hint, plot_curves
from gpuconv.report.findings import Findings
from gpuconv.report.page import write, write_findings

__all__ = ["Findings", "available", "hint", "plot_curves", "write", "write_findings"]
