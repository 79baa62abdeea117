"""A step of training never asks the device for a result: on a GPU the program would wait for all that was asked of it
before.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from training.augment import augment
from training.batches import batches, make_batch, material_of, pick
from training.checkpoint import new_state
from training.distributed import Group
from training.schedules import learning_rate
from training.settings import from_dict
from training.train import train_step

ATEN = torch.ops.aten
WAITING = {
    ATEN._local_scalar_dense,
    ATEN.item,
    ATEN.nonzero,
    ATEN.masked_select,
    ATEN._unique2,
    ATEN.equal,
    ATEN.repeat_interleave,
}
# A tensor made of Python's values, which are copied to the device.
FROM_PYTHON = {
    ATEN.lift_fresh,
    ATEN.lift_fresh_copy,
}


class NoWaiting(TorchDispatchMode):
    """Fails on every operation for which a GPU would be waited for."""

    def __torch_dispatch__(self, function, _, args=(), kwargs=None):
        packet = function.overloadpacket
        assert packet not in WAITING | FROM_PYTHON, function
        if packet in {ATEN.index, ATEN.index_put, ATEN.index_put_}:
            assert all(index is None or index.dtype not in {torch.bool, torch.uint8} for index in args[1]), function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
    ],
)
def test_what_waits_is_found(wait):
    with pytest.raises(AssertionError), NoWaiting():
        wait(torch.ones(3))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_a_step_waits_for_nothing(small_run, rank, share):
    run = small_run("run", {})
    settings = from_dict(run.settings.to_dict() | {"augment": {"stroke": share, "blur": share}})
    run = type(run)(settings, run.splits, run.folder, run.device, Group(rank, 2))
    state = new_state(settings, len(run.splits.train.classes), run.device)
    material = material_of(run, 255 - run.splits.train.images[None])
    for index in list(batches(run, 0))[:2]:  # the first makes the optimizer's momentum and copies the weights
        with NoWaiting():
            batch, places = make_batch(run, material, index, state.step)
            state.set_rate(learning_rate(settings.schedule, settings.optimizer.lr, state.step, run.steps))
            loss, _ = train_step(run, state, state.model, batch, material.targets[places].float())
        assert len(batch) == settings.schedule.batch_size // 2
        assert loss.isfinite()


@pytest.mark.parametrize(("field", "share"), [("stroke", 0.1), ("blur", 0.25), ("blur", 0.002), ("stroke", 1.0)])
def test_the_share_of_images_is_right_on_average(emnist, field, share):
    """In batches of 30, in which no share here but the last is a whole number of images."""
    images = emnist.images[:30].unsqueeze(1).float() / 255
    still = dict.fromkeys(("rotation", "shear", "scale", "shift", "elastic", "stroke", "blur"), 0.0)
    settings = from_dict({"augment": still | {field: share}}).augment
    torch.manual_seed(0)
    rounds = 600
    changed = sum(int((augment(images, settings) != images).flatten(1).any(1).sum()) for _ in range(rounds)) / (
        30 * rounds
    )
    assert changed == pytest.approx(share, abs=0.01 * share**0.5)


def test_a_copy_is_of_the_same_image(emnist):
    images = emnist.images[:50]
    copies = torch.stack([255 - images, images // 2])
    torch.manual_seed(0)
    index = torch.randperm(50)
    picked = pick(images, copies, index, 0.7)
    kinds = torch.stack([(picked == part[index]).flatten(1).all(1) for part in (images, *copies)])
    assert kinds.any(0).all()
    assert kinds.sum(1).tolist() == pytest.approx([15, 17.5, 17.5], abs=9)
