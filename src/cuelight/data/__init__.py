"""Reading a user's own data: any usual source in, train, validation and test rows of one shape out.

splits = cuelight.data.read("reviews.csv", shots=16, seed=1)
print("\\n".join(splits.report.lines()))
"""

from cuelight.data.builtin import builtin_names
from cuelight.data.read import Splits, read
from cuelight.data.report import Choice, Report, SplitReport
from cuelight.data.sample import sample_shots
from cuelight.data.spec import DataSpec

__all__ = ["Choice", "DataSpec", "Report", "SplitReport", "Splits", "builtin_names", "read", "sample_shots"]
