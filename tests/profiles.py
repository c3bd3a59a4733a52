"""What a profile is held against: numpy, over the same values."""

import numpy as np
import pytest


def assert_is_numpys(profile, values):
    """Hold one column's profile against numpy: counts and ends to the last bit, the rest to its rounding."""
    apart = float(np.abs(values).max()) or 1.0
    assert (profile.rows, profile.least, profile.most) == (len(values), values.min(), values.max())
    assert profile.mean == pytest.approx(values.mean(), abs=1e-13 * apart)
    assert profile.deviation / apart == pytest.approx((values / apart).std(), abs=1e-13)
    assert list(profile.edges) == sorted(set(profile.edges))
    bins = np.searchsorted(profile.edges, values, side="right")
    assert profile.counts == tuple(np.bincount(bins, minlength=len(profile.edges) + 1))
