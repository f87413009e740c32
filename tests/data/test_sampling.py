import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modeling_urfm.data.reading import Source, UnreadableFile
from modeling_urfm.data.sampling import sample_frames


def loop(frames: int, values=None, broken=()) -> Source:
    """A loop whose frame i is grey of values[i]."""
    values = np.zeros(frames) if values is None else values

    def frame(index: int) -> np.ndarray:
        if index in broken:
            raise UnreadableFile("loop", "damaged", "undecodable")
        return np.full((70, 80, 3), values[index], np.uint8)

    return Source("loop", frames, frame, "dicom", None, True, None, None)


@given(st.integers(1, 400), st.integers(1, 40), st.sampled_from(["even", "change"]), st.integers(0, 9))
def test_as_many_as_asked_for_each_once_in_order(frames, limit, how, seed):
    values = np.random.default_rng(seed).integers(0, 256, frames)
    picked = sample_frames(loop(frames, values), limit, how)
    assert len(picked) == min(frames, limit) == len(set(picked))
    assert picked == sorted(picked) and 0 <= picked[0] and picked[-1] < frames


def test_even_ones_are_evenly_spread():
    assert sample_frames(loop(100), 4) == [12, 37, 62, 87]
    assert sample_frames(loop(5), 5) == [0, 1, 2, 3, 4]


def test_where_nothing_changes_few_are_taken():
    values = np.r_[np.zeros(90), np.arange(10) * 20]  # a still stretch, then a sweep
    picked = sample_frames(loop(100, values), 8, "change")
    assert sum(index >= 89 for index in picked) >= 7
    assert sample_frames(loop(100), 8, "change") == sample_frames(loop(100), 8, "even")


def test_frames_that_cannot_be_read_do_not_stop_it():
    assert len(sample_frames(loop(50, np.arange(50), broken=range(10, 20)), 8, "change")) == 8
