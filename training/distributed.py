"""Training in several processes, one a device, as torchrun starts them: who each is, what each does, what all agree on.

Every process holds the data and the network whole, and works on its part of each batch; gradients are averaged over all
(DistributedDataParallel; Li et al. 2020). Batch norm takes its statistics from the part that a process has, as Goyal et
al. 2017 do (section 2.3), on every device; process 0's running ones are kept.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.settings import SettingsError

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}  # by the device; what is agreed on stays on the CPU
# The longest that one waits for another: the first on a machine may make the degraded copies.
TIMEOUT = timedelta(minutes=30)
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
            raise SettingsError(
                f"schedule.batch_size {batch_size} cannot be split over {self.size} processes; take a multiple of"
                f" {self.size}"
            )
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def device(self, device: torch.device) -> torch.device:
        """The GPU of this process, where `device` is one. Raises SettingsError if there are fewer GPUs than
        processes.
        """
        if self.size == 1 or device.type != "cuda":
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise SettingsError(
                f"{torch.cuda.device_count()} GPUs for more processes; lower --nproc-per-node, or train with"
                " --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def share_gradients(self, model: nn.Module) -> nn.Module:
        """The model, whose backward pass averages the gradients over all processes."""
        return model if self.size == 1 else DistributedDataParallel(model)

    def agree(self, flag: bool, step: int) -> bool:
        """Whether any process said so; asked by all after the same step, and answered every AGREE_STEPS steps."""
        if self.size == 1:
            return flag
        return step % AGREE_STEPS == 0 and self._agree_on(float(flag), max) > 0

    def mean(self, value: Tensor) -> float:
        """The mean of a number () over all processes."""
        return float(value) if self.size == 1 else self._agree_on(float(value), sum) / self.size

    def from_first(self, value: float) -> float:
        """The number that the first process has."""
        return value if self.size == 1 else self._agree_on(value, lambda values: values[0])

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            self._agree_on(0.0, sum)

    @contextlib.contextmanager
    def first_on_machine(self) -> Iterator[None]:
        """The body runs in the first process of each machine, then in its others: what the first leaves on disk they
        find.
        """
        if self.local_rank > 0:
            self.wait()
        yield
        if self.local_rank == 0:
            self.wait()

    def _agree_on(self, value: float, combine: Callable[[list[float]], float]) -> float:
        """What `combine` makes of the values of all processes, by rank: the first one asks the others and tells them.

        By send and recv, for which gloo has no thread. Of a collective operation such as all_reduce its thread may hold
        the tensor a little longer than the call, and needs Python's lock to let it go: a process that ends meanwhile is
        aborted.
        """
        number = torch.tensor(value, dtype=torch.float64)  # on the CPU, where nothing waits for a GPU
        if not self.leads:
            dist.send(number, 0)
            dist.recv(number, 0)
            return float(number)
        values = [value]
        for rank in range(1, self.size):
            dist.recv(number, rank)
            values.append(float(number))
        agreed = combine(values)
        for rank in range(1, self.size):
            dist.send(torch.tensor(agreed, dtype=torch.float64), rank)
        return agreed


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
            f"another process ended, or does not answer ({str(error).splitlines()[0]}); --resume goes on from the last"
            " checkpoint"
        ) from error
    dist.destroy_process_group()


def _tells_of_a_peer(error: Exception) -> bool:
    """Gloo's errors have no type of their own; each names the file of its source."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)
