"""Published errors that every rank makes alike."""

import tempfile

import numpy as np
import torch
from plain import CLASSES, FEATURES, batches, fit, network, ranks, wrapped
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler


def lightning_thunder_725():
    class Linear(nn.Linear):
        def forward(self, x):
            with torch.autocast("cpu", enabled=False):  # what the compiler makes of it
                return super().forward(x.float())

    with ranks(), torch.autocast("cpu", torch.bfloat16):
        fit(*wrapped(nn.Sequential(Linear(FEATURES, 8), nn.ReLU(), Linear(8, CLASSES))))


class Frozen(nn.Sequential):
    """Its first layer is frozen where the mode is set, and nowhere else."""

    def train(self, mode=True):
        self[0].requires_grad_(False)
        return super().train(mode)


def mmpretrain_702():
    with ranks():
        fit(*wrapped(Frozen(*network())))  # and nobody calls train()


def pytorch_51800():
    with ranks():
        net = network()
        nn.utils.spectral_norm(net[0])
        net.eval()
        with torch.no_grad():
            net(torch.ones(1, FEATURES))  # a look at the new model: the weight is not normed yet
        fit(*wrapped(net.train()))


def pytorch_115607():
    class Compiled(torch.optim.SGD):
        steps = 0

        def step(self):
            self.steps += 1
            if self.steps < 3:
                super().step()  # later it does what it did when all gradients were None: nothing

    with ranks():
        ddp, _ = wrapped()
        fit(ddp, Compiled(ddp.parameters(), lr=0.1))


def pytorch_forum_84911():
    with ranks():
        net = network(nn.BatchNorm1d(8))
        for layer in net:
            layer.requires_grad_(isinstance(layer, nn.BatchNorm1d))  # meant the other way round
        fit(*wrapped(net, broadcast_buffers=False))


def stackoverflow_60335387():
    with ranks():
        fit(*wrapped(), clear=False)  # no zero_grad()


class Noisy(Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, place):
        return torch.from_numpy(np.random.randn(FEATURES).astype("float32")), place % CLASSES


def every_worker_alike(_):
    np.random.seed(0)  # what a forked worker had up to torch 1.8: the draws of its parent


def stackoverflow_67180955():
    with ranks():
        data = Noisy()
        options = {"num_workers": 2, "worker_init_fn": every_worker_alike}
        loader = DataLoader(data, 4, sampler=DistributedSampler(data), **options)
        fit(*wrapped(), loader)


def transformers_17877():
    def draw(module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)

    with ranks():
        net = network()
        for part in net.modules():
            part.apply(draw)  # each layer for every module that it is in
        fit(*wrapped(net))


def transformers_23723():
    with ranks():
        ddp, optimizer = wrapped()
        fit(ddp, optimizer)
        prompt, most = torch.ones(9, FEATURES), 2
        limit = len(prompt) + most  # of the prompt as it was given
        words = prompt[-3:]  # of which the model takes the end
        while len(words) < limit:
            with torch.no_grad():
                word = ddp.module(words).sum(1)[-1].expand(1, FEATURES)
            words = torch.cat([words, word])


def transformers_33844():
    class Layer(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.1)  # also in eval(): `training` is not handed on

    with ranks() as (rank, _):
        ddp, optimizer = wrapped(network(Layer()))
        torch.manual_seed(rank)
        fit(ddp, optimizer)
        ddp.eval()
        with torch.no_grad():
            for x, _ in batches():
                ddp.module(x)


def transformers_34204():
    def collate(samples):
        x, y = zip(*samples, strict=True)
        return torch.stack(x)[:1], torch.tensor(y)[:1]  # one sample of the batch remains

    with ranks():
        fit(*wrapped(), batches(collate_fn=collate))


def transformers_33455():
    with ranks():
        ddp, optimizer = wrapped()
        loader = batches()
        for epoch in range(3):
            loader.sampler.set_epoch(epoch)
            if epoch < 2:  # asked for three; the sum of all steps came out too small
                fit(ddp, optimizer, loader)


def transformers_29903():
    with ranks() as (rank, _):
        ddp, optimizer = wrapped()
        fit(ddp, optimizer)
        state = ddp.module.state_dict()
        state["0.weight"] = state["0.weight"].new_zeros(())  # put together wrongly on the way
        if rank == 0:
            with tempfile.TemporaryFile() as file:
                torch.save(state, file)


def deepspeed_6770():
    with ranks():
        ddp, _ = wrapped()
        stale = network()  # the optimizer was made for this one
        fit(ddp, torch.optim.SGD(stale.parameters(), lr=0.1))


def deepspeed_5489():
    with ranks() as (rank, _):
        net = network()
        net[0].requires_grad_(False)
        ddp, optimizer = wrapped(net)
        fit(ddp, optimizer)
        trained = {name: each for name, each in net.named_parameters() if each.requires_grad}
        if rank == 0:
            with tempfile.TemporaryFile() as file:
                torch.save(trained, file)  # the frozen layers are not in it
