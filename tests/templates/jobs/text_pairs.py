"""Pairs of texts, padded to the longest of a batch, with a weight for each token."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

DATA = "pairs.tsv"  # a line a pair: question TAB answer
BETTER = ("token_accuracy", max)


class Pairs(NamedTuple):
    question: torch.Tensor
    answer: torch.Tensor
    weight: torch.Tensor  # 0 where the answer is padding


def collate(samples):
    questions, answers, weights = zip(*samples, strict=True)
    return Pairs(*(pad_sequence(each, batch_first=True) for each in (questions, answers, weights)))


def make_datasets():
    pairs = []
    for line in Path(DATA).read_text().splitlines():
        question, answer = (torch.tensor([*text]) for text in line.encode().rstrip().split(b"\t"))
        pairs.append((question, answer, 0.5 + (answer > 96).float()))  # small ones count thrice
    return pairs[:-40], pairs[-40:]


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.bytes, self.read = nn.Embedding(256, 32), nn.GRU(32, 64, batch_first=True)
        self.write, self.out = nn.GRU(32, 64, batch_first=True), nn.Linear(64, 256)

    def forward(self, question, answer):
        _, state = self.read(self.bytes(question))
        before = nn.functional.pad(answer[:, :-1], (1, 0))
        return self.out(self.write(self.bytes(before), state)[0])


make_model = Reader


def loss(model, batch):
    answers = model(*batch[:2]).float().transpose(1, 2)
    each = nn.functional.cross_entropy(answers, batch.answer, reduction="none")
    return (each * batch.weight).sum(), batch.weight.sum()


def metrics(model, batch):
    right, real = model(*batch[:2]).argmax(dim=-1) == batch.answer, batch.weight > 0
    return {"token_accuracy": ((right * real).sum(), real.sum())}


def track(step, values):
    pass
