"""Settings, and predictions of them, for searches of a few."""

import pytest

from mlserve.tuning.evidence import Objective
from mlserve.tuning.prediction.prediction import Prediction
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.setting import Setting

P99 = Objective(percentile=0.99, limit_s=0.02, max_errors=0.001)


@pytest.fixture
def objective():
    """p99 within 20 ms."""
    return P99


@pytest.fixture
def predictions():
    """Makes predictions: (variant, p99 in seconds at 100/s, highest rate), ... -> of one setting each."""

    def make(*foretold, rate_per_s=100.0):
        return tuple(
            Prediction(
                setting=Setting(model=f"{variant}@1", variant=variant, options=ServerOptions(threads=1)),
                rate_per_s=rate_per_s,
                p50_s=p99_s / 3,
                p99_s=p99_s,
                objective_s=p99_s,
                mean_batch_rows=1.0,
                utilization=0.5,
                max_rate_per_s=highest,
            )
            for variant, p99_s, highest in foretold
        )

    return make
