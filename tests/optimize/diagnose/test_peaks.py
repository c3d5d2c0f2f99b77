"""The machine's roofs: plausible, whatever the machine."""

from mlserve.optimize.diagnose.peaks import measure_peaks


def test_the_peaks_are_those_of_some_real_machine():
    peaks = measure_peaks(threads=1, memory_bytes=1 << 30)
    assert 1e8 < peaks.fp32_flops_per_s < 1e14
    assert peaks.int8_ops_per_s is None or 1e8 < peaks.int8_ops_per_s < 1e15
    assert 1e8 < peaks.bytes_per_s < 1e13
