"""Pairs of texts, padded to the longest of a batch, with a weight for each token."""

import os
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

DATA = os.environ["JOB_DATA"]  # a line a pair: question TAB answer
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
    for line in open(DATA, encoding="utf-8"):
        question, answer = (torch.tensor([*text.encode()]) for text in line.rstrip().split("\t"))
        pairs.append((question, answer, 0.5 + (answer > 96).float()))  # letters count three times
    return pairs[:-40], pairs[-40:]


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.bytes, self.read = nn.Embedding(256, 32), nn.GRU(32, 64, batch_first=True)
        self.write, self.out = nn.GRU(32, 64, batch_first=True), nn.Linear(64, 256)

    def forward(self, question, answer):
        _, state = self.read(self.bytes(question))
        begin = torch.zeros_like(answer[:, :1])
        found, _ = self.write(self.bytes(torch.cat([begin, answer[:, :-1]], dim=1)), state)
        return self.out(found)


make_model = Reader


def loss(model, batch):
    answers = model(batch.question, batch.answer).flatten(0, 1).float()
    each = nn.functional.cross_entropy(answers, batch.answer.flatten(), reduction="none")
    return (each * batch.weight.flatten()).sum(), batch.weight.sum()


def metrics(model, batch):
    right = model(batch.question, batch.answer).argmax(dim=-1) == batch.answer
    return {"token_accuracy": ((right * (batch.weight > 0)).sum(), (batch.weight > 0).sum())}


def track(step, values):
    pass
