r"""Memory of an update with a large vocabulary: [N, T, V] in float32 never exists."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_an_update_with_151936_words_stays_under_1_gb():
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "memory_worker.py"), "64"], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    peak = float(done.stdout.split()[-1])  # MB
    whole = 16 * 256 * 151_936 * 4 / 2**20  # the logits in one piece: 2374 MB
    assert whole > 2300 and 0 < peak < 1000
