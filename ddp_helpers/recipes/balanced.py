"""Class-balanced sampling: rare classes as often as common ones.

A WeightedRandomSampler does not know of ranks, and each rank that draws for itself draws the same
samples or others at random. Here all ranks draw one order for the epoch, from the same seed, and
deal it out as before: with replacement, so some samples come twice and some not at all.

An alternative that loses no sample is a weight for each class in the loss; then divide by the sum
of the weights.
"""

CHANGES = (
    (
        """\
        order = torch.randperm(self.samples, generator=draws).tolist()
""",
        """\
        order = torch.multinomial(
            self.weights, self.samples, replacement=True, generator=draws
        ).tolist()
""",
    ),
    (
        """\
        self.loader = self.load(train_set, self.batches)
""",
        """\
        self.batches.weights = 1.0 / train_set.y.bincount()[train_set.y.long()]
        self.loader = self.load(train_set, self.batches)
""",
    ),
)
