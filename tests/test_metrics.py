r"""What a step reports, by hand."""

import math

from plumbing.metrics import Update, average_kl


def test_the_average_kl_leaves_a_skipped_update_out():
    update = Update(num_tokens=4)
    update.kl_ref = 2.0  # 0.5 nats per token
    assert math.isclose(average_kl(1.0, update), 0.9 * 1.0 + 0.1 * 0.5)
    broken = Update(num_tokens=4)
    broken.kl_ref, broken.skipped = math.nan, True
    assert average_kl(1.0, broken) == 1.0
    assert average_kl(1.0, Update(num_tokens=0)) == 0.9  # a minibatch without a token
