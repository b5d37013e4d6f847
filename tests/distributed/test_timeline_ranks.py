"""Timelines of real ranks with gloo."""

import time

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from ddp_helpers import launch, process_group
from ddp_helpers.timeline import overlap, record_timeline
from ddp_helpers.timeline.records import BACKWARD, DATA, EXPOSED, FORWARD, OPTIMIZER

pytestmark = pytest.mark.usefixtures("no_process_left")


class Pause(torch.autograd.Function):
    """A backward that takes its time, whatever else the machine does."""

    @staticmethod
    def forward(ctx, inputs):
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(0.05)
        return gradient


class PauseInBackward(nn.Module):
    def forward(self, inputs):
        return Pause.apply(inputs)


def train(bucket_cap_mb, sync=True):
    with process_group() as pg:
        torch.manual_seed(pg.rank)
        layers = [nn.Linear(256, 256) for _ in range(4)]
        # backward comes to it when it has the gradients of three layers
        model = nn.Sequential(layers[0], PauseInBackward(), *layers[1:])
        ddp = DistributedDataParallel(model, bucket_cap_mb=bucket_cap_mb)
        ddp.require_backward_grad_sync = sync
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
        data = TensorDataset(torch.randn(8 * 32, 256), torch.randn(8 * 32, 256))
        with record_timeline(steps=2) as timeline:
            for inputs, labels in DataLoader(data, 32):
                optimizer.zero_grad()
                nn.functional.mse_loss(ddp(inputs), labels).backward()
                optimizer.step()
                timeline.step()
        return timeline.result()


def test_each_bucket_is_seen_with_its_bytes():
    many = launch(train, 2, args=(0.2,), timeout=100, echo=False)
    one = launch(train, 2, args=(25,), timeout=100, echo=False)
    parameters = 4 * (256 * 256 + 256)
    for result, buckets in ((many, 4), (one, 1)):
        assert [timeline.rank for timeline in result.values] == [0, 1]
        for timeline in result.values:
            assert len(timeline.steps) == 2
            for step in timeline.steps:
                assert len(step.all_reduces) == buckets
                assert sum(call.size for call in step.all_reduces) == 4 * parameters
                assert all(call.seconds > 0 for call in step.all_reduces)
            seconds = timeline.seconds()
            assert all(seconds[k] > 0 for k in (FORWARD, BACKWARD, EXPOSED, OPTIMIZER, DATA))
        assert "USDT" not in result[0].output
    # one bucket is full when backward has computed all; of four, three go out before the pause
    for timeline in one.values:
        assert all(call.start_ns > pause_ends(s) for s in timeline.steps for call in s.all_reduces)
    for timeline in many.values:
        assert all(step.all_reduces[0].start_ns < pause_ends(step) for step in timeline.steps)
    assert overlap(many.values) > overlap(one.values)


def pause_ends(step):
    return max(step.work[BACKWARD], key=lambda interval: interval[1] - interval[0])[1]


def test_without_sync_nothing_is_sent():
    timelines = launch(train, 2, args=(25, False), timeout=100, echo=False).values
    assert not any(step.collectives for timeline in timelines for step in timeline.steps)
    assert overlap(timelines) is None
