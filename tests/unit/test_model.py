"""model.py: shapes, exactness, counts."""

import pytest
import torch
from torch import nn

from ddp_helpers.model import MLP, SmallCNN, count_parameters


@pytest.mark.parametrize("model", [SmallCNN(), MLP()], ids=["SmallCNN", "MLP"])
def test_images_become_logits(model):
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    assert model(torch.rand(0, 1, 28, 28)).shape == (0, 10)


@pytest.mark.parametrize("model", [SmallCNN(), MLP()], ids=["SmallCNN", "MLP"])
def test_a_sample_does_not_depend_on_its_batch(model):
    """What the gradient proofs stand on: no BatchNorm, no dropout, also in training mode."""
    model = model.double().train()
    images = torch.rand(6, 1, 28, 28, dtype=torch.float64)
    alone = torch.cat([model(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=0, atol=1e-12)
    assert not list(model.buffers())


@pytest.mark.parametrize("shape", [(28, 28), (4, 28, 28), (4, 3, 28, 28), (4, 1, 32, 32)])
def test_wrong_image_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"SmallCNN expects \(N, 1, 28, 28\)"):
        SmallCNN()(torch.rand(shape))


def test_mlp_takes_other_sizes():
    assert MLP(6, 5, 4)(torch.rand(2, 6)).shape == (2, 4)


def test_count_parameters_counts_what_training_can_change():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert count_parameters(model) == (3 * 4 + 4) + (4 * 2 + 2)
    model[0].requires_grad_(False)
    assert count_parameters(model) == 4 * 2 + 2
    convolutions = (25 * 8 + 8) + (8 * 25 * 32 + 32)
    assert count_parameters(SmallCNN()) == convolutions + (32 * 49 * 64 + 64) + (64 * 10 + 10)
