"""The noise that is drawn against what was recorded on GPUs."""

import numpy as np
import pytest
from instep_diagnosis.simulation.jitter import GPU_SIGMA, recorded

from tests.diagnosis.whatif.recorded import NAMES, paths
from tests.diagnosis.whatif.recorded import recorded as needs_traces


def lasts(x_TR):
    """Correlation of one step with the next, outliers limited."""
    limit = 6.0 * np.median(np.abs(x_TR))
    x_TR = np.clip(x_TR - np.median(x_TR, axis=0), -limit, limit)
    return float((x_TR[1:] * x_TR[:-1]).mean() / x_TR.var())


def gpu_noise(name):
    """Logarithm of each rank's compute of a step, less its level and what its peers share, [T, R]."""
    table = pytest.importorskip("pyarrow.parquet").read_table(paths(name)[0]).to_pydict()
    is_work = np.array(["compute" in kind for kind in table["optype"]])
    places = [np.unique(np.array(table[key])[is_work], return_inverse=True) for key in ("step", "stage", "dp_rank")]
    work_TSR = np.zeros([len(values) for values, _ in places])
    np.add.at(work_TSR, tuple(found for _, found in places), np.array(table["duration"], dtype=float)[is_work])
    own_TSR, peers = np.log(work_TSR), work_TSR.shape[2]
    own_TSR = own_TSR - own_TSR.mean(axis=2, keepdims=True)
    own_TSR = own_TSR - np.median(own_TSR, axis=0)
    return own_TSR.reshape(len(own_TSR), -1) * np.sqrt(peers / (peers - 1))


@needs_traces
@pytest.mark.parametrize("name", NAMES)
def test_gpus_are_no_less_even_than_the_noise_of_paced_jobs_and_theirs_does_not_last(name):
    noise_TR = gpu_noise(name)
    assert 0.5 * GPU_SIGMA < noise_TR.std() < GPU_SIGMA
    assert abs(lasts(noise_TR)) < 0.2


def test_what_waiting_ranks_share_is_no_part_of_the_recorded_noise():
    """Else the machine's slow changes, drawn anew for each rank, would be changes of single ranks."""
    paced_TR = recorded("paced")
    assert paced_TR.shape[1] >= 4
    assert np.abs(np.median(np.median(paced_TR, axis=1))) < 0.2 * paced_TR.std()
    assert abs(lasts(paced_TR)) < 0.2
