"""The lab: a whole landscape in network namespaces on one machine, for the demo, the tests and the benchmarks.

Not part of the distribution. `lab.addresses` has the map.
"""

from lab.impair import Impairment, Link
from lab.lab import Lab
from lab.processes import LabError, Process, wait_until

__all__ = ["Impairment", "Lab", "LabError", "Link", "Process", "wait_until"]
