"""One rank of the training, from its data to its last step. Reads top to bottom."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from instep_trainer.checkpoint.keeper import Keeper
from instep_trainer.errors import CannotRun
from instep_trainer.phases import finish_step, phase, recorder
from instep_trainer.place import Place
from instep_trainer.train.config import TrainConfig
from instep_trainer.train.data import Corpus, read_corpus
from instep_trainer.train.model import Gpt
from instep_trainer.train.passes import discard_passes, evaluate, mean_over_ranks, training_batch
from instep_trainer.train.report import Report
from instep_trainer.train.state import reseed, training_state


def train(config: TrainConfig, place: Place, *, boundary: Callable[[str], None] = lambda name: None) -> None:
    """Train to `config.steps`, from wherever the run's kept state is. `boundary` hears of every sub-write of a slot."""
    recorder().annotate()
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(1)
    corpus = read_corpus(config.data, bytes_max=config.data_bytes_max, length=config.model.sequence_length)
    device = choose_device(config.device, place.local_rank)
    torch.manual_seed(config.seed)
    model = Gpt(config.model).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    state = training_state(model, optimizer)
    keeper = Keeper(
        state,
        place,
        disk_folder=config.checkpoints_path if config.checkpoint_every_disk else None,
        keep_last=config.keep_last,
        boundary=boundary,
    )
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    _train_in_group(config, place, corpus=corpus, device=device, model=model, optimizer=optimizer, keeper=keeper)
    # The DDP object must be gone before its group: its destructor waits, holding the GIL, for a gloo thread that needs
    # it.
    gc.collect()
    dist.destroy_process_group()
    keeper.close()


def _train_in_group(
    config: TrainConfig,
    place: Place,
    *,
    corpus: Corpus,
    device: torch.device,
    model: Gpt,
    optimizer: torch.optim.Optimizer,
    keeper: Keeper,
) -> None:
    metrics = dist.new_group(group_desc="metrics")
    replica = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    discard_passes(replica, config, device)
    agreement, kept = keeper.resume(device)
    fingerprint = config.fingerprint(place.world_size, corpus.digest)
    report = Report(config, place, fingerprint)
    report.resumed(agreement, kept)
    for step in range(agreement.entry.step + 1, config.steps + 1):
        reseed(config.seed, step, place.rank)
        with phase("data"):
            tokens, targets = training_batch(corpus, config, step, place.rank, device=device)
        with phase("forward"):
            recorder().fault_point("forward")
            loss = replica(tokens, targets)
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
        mean = None if recorder().fault_point("metrics") else mean_over_ranks(loss, metrics)
        report.step(step, mean)
        with phase("checkpoint"):
            extras = {
                "data_position": step,
                "seed": config.seed,
                "world_size": place.world_size,
                "fingerprint": fingerprint,
                "loss": None if mean is None else mean.hex(),
            }
            keeper.keep(step, extras)
            if config.checkpoint_every_disk and (step % config.checkpoint_every_disk == 0 or step == config.steps):
                keeper.save(step, extras)
        finish_step(step, tokens=tokens.numel(), tokens_squared=tokens.shape[0] * tokens.shape[1] ** 2)
        if config.evaluate_every and step % config.evaluate_every == 0:
            with phase("evaluation"):
                held_out = evaluate(model, corpus, config, place.rank, device=device, metrics=metrics)
            report.evaluation(step, held_out)
    report.close()


def choose_device(wish: str, local_rank: int) -> torch.device:
    """Give the device of this rank; raise CannotRun when cuda is asked for and not there."""
    is_there = local_rank < torch.cuda.device_count()
    if wish == "cuda" and not is_there:
        raise CannotRun(
            f"--device is cuda, and there is no GPU for local rank {local_rank}: start fewer ranks on "
            "this node, or use cpu."
        )
    if wish == "cpu" or not is_there:
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
