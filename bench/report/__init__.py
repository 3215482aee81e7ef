"""The report: tables in the paper's manner, figures, and one HTML page, all from ``records.jsonl``."""

from bench.report.build import FORMATS, build

__all__ = ["FORMATS", "build"]
