"""The text of a folder and the batches drawn from it."""

import os

from hypothesis import given
from hypothesis import strategies as st
from instep_trainer.train.data import Corpus, read_corpus


def test_text_files_are_read_in_the_order_of_their_names_up_to_the_limit(tmp_path):
    (tmp_path / "b.txt").write_text("B" * 100)
    (tmp_path / "a.py").write_text("A" * 100)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d.txt").write_text("D" * 1000)
    (tmp_path / "aa.so").write_bytes(b"\x7fELF\0")
    (tmp_path / ".hidden").write_text("H")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "p.txt").write_text("P")
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    corpus = read_corpus(tmp_path, bytes_max=500, length=8)
    assert corpus.text == b"A" * 100 + b"B" * 100 + b"D" * 300
    assert corpus == read_corpus(tmp_path, bytes_max=500, length=8)


@given(st.integers(40, 5000), st.integers(0, 2**31 - 1), st.integers(0, 10**6), st.integers(0, 63))
def test_a_batch_depends_on_seed_step_and_rank_alone_and_stays_inside_its_part(size, seed, step, rank):
    corpus = Corpus(bytes(size), size - 20, 0)
    offsets = corpus.offsets(seed, step, rank, count=4, length=8)
    assert offsets == corpus.offsets(seed, step, rank, count=4, length=8)
    assert all(offset >= 0 and offset + 8 < corpus.training_bytes for offset in offsets)
    held_out = corpus.held_out_offsets(step, rank, count=4, length=8)
    assert all(corpus.training_bytes <= offset and offset + 8 < size for offset in held_out)


def test_ranks_and_steps_see_different_text():
    corpus = Corpus(bytes(10**6), 950_000, 0)
    drawn = {tuple(corpus.offsets(1, step, rank, count=4, length=8)) for step in range(10) for rank in range(4)}
    assert len(drawn) == 40
