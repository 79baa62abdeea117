"""Training in several processes, one a device, as torchrun starts them: who each is, what each does, what all agree on.

Every process holds the data and the network whole, and works on its part of each batch; gradients are averaged over all
(DistributedDataParallel; Li et al. 2020). Batch norm takes its statistics from the part that a process has, as Goyal et al.
2017 do (section 2.3), on every device; process 0's running ones are kept.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.settings import SettingsError

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}  # by the device; what is agreed on stays on the CPU
TIMEOUT = timedelta(minutes=30)  # the longest that one waits for another: the first on a machine may make the degraded copies
# Gloo's thread may hold what it has reduced for a little longer, and needs Python's lock to let it go: a process that ends meanwhile is
# aborted (seen in one of twenty).
MINE_ALONE = 2  # references: one of a name, one of the call that counts them
AGREE_STEPS = 10  # between two agreements: each makes the processes wait for one another


class PeerLost(Exception):
    """Another process of the run ended, or never came."""


@dataclass(frozen=True)
class Group:
    """The processes of a run, as one of them sees them; the default is a process alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine

    @property
    def leads(self) -> bool:
        """Whether it is this process that validates, saves, reports and exports."""
        return self.rank == 0

    def part(self, batch_size: int) -> slice:
        """This process's images of a batch. Raises SettingsError if a batch cannot be split evenly."""
        if batch_size % self.size:
            raise SettingsError(f"schedule.batch_size {batch_size} cannot be split over {self.size} processes; take a multiple of {self.size}")
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def device(self, device: torch.device) -> torch.device:
        """The GPU of this process, where `device` is one. Raises SettingsError if there are fewer GPUs than processes."""
        if self.size == 1 or device.type != "cuda":
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise SettingsError(f"{torch.cuda.device_count()} GPUs for more processes; lower --nproc-per-node, or train with --device cpu")
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def share_gradients(self, model: nn.Module) -> nn.Module:
        """The model, whose backward pass averages the gradients over all processes."""
        return model if self.size == 1 else DistributedDataParallel(model)

    def agree(self, flag: bool, step: int) -> bool:
        """Whether any process said so; asked by all after the same step, and answered every AGREE_STEPS steps."""
        if self.size == 1:
            return flag
        return step % AGREE_STEPS == 0 and self._reduce(float(flag), dist.ReduceOp.MAX) > 0

    def mean(self, value: Tensor) -> float:
        """The mean of a number () over all processes."""
        return float(value) if self.size == 1 else self._reduce(float(value), dist.ReduceOp.SUM) / self.size

    def from_first(self, value: float) -> float:
        """The number that the first process has."""
        return value if self.size == 1 else self._reduce(value if self.leads else 0.0, dist.ReduceOp.SUM)

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            self._reduce(0.0, dist.ReduceOp.SUM)

    @contextlib.contextmanager
    def first_on_machine(self) -> Iterator[None]:
        """The body runs in the first process of each machine, then in its others: what the first leaves on disk they find."""
        if self.local_rank > 0:
            self.wait()
        yield
        if self.local_rank == 0:
            self.wait()

    def _reduce(self, value: float, operation: dist.ReduceOp.RedOpType) -> float:
        number = torch.tensor(value, dtype=torch.float64)  # on the CPU, where nothing waits for a GPU
        dist.all_reduce(number, operation)
        while sys.getrefcount(number) > MINE_ALONE:
            time.sleep(0)
        return float(number)


ALONE = Group()


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[Group]:
    """The group that torchrun's variables tell of, while the body runs.

    Raises PeerLost when a process of it ends before the others, SettingsError for variables that tell of no group.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    try:
        try:
            dist.init_process_group(BACKENDS[device.type], timeout=TIMEOUT)
        except ValueError as error:
            raise SettingsError(f"WORLD_SIZE is set: {error}; torchrun sets all that several processes need") from error
        yield Group(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    except RuntimeError as error:
        if not _tells_of_a_peer(error):
            raise
        raise PeerLost(
            f"another process ended, or does not answer ({str(error).splitlines()[0]}); --resume goes on from the last checkpoint"
        ) from error
    dist.destroy_process_group()


def _tells_of_a_peer(error: Exception) -> bool:
    """Gloo's errors have no type of their own; each names the file of its source."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)
