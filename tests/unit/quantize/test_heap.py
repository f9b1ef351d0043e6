"""Memory that is freed is used again, and not taken from the kernel anew."""

import subprocess
import sys

CODE = """
import resource
import numpy as np
from worker.models.heap import keep_freed_memory
keep_freed_memory()
keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(8 << 20, np.uint8)
before = faults()
for _ in range(20):
    np.ones(8 << 20, np.uint8)
print(faults() - before)
"""


def test_slabs_are_not_cleared_by_the_kernel_each_time() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 2048  # one of the twenty, at most; otherwise each costs 2048 pages
