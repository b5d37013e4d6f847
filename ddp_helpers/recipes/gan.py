"""A GAN: two networks that work against each other, in one step.

Two models in two DDPs need two backwards in the right order, and DDP is easily confused. In one
module it stays one forward and one backward: the generator is judged by the discriminator with
its weights held fixed, the discriminator judges what the generator made with that held fixed. Both
learn in the same step; the two gradients touch different weights.

The held-out loss says little about a GAN: look at pictures, or compute FID now and then.
"""

CHANGES = (
    (
        'BETTER = ("accuracy", max)',
        'BETTER = ("real_told_from_made", min)',
    ),
    (
        """\
def make_model() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 7 * 7, 10))
""",
        """\
class Both(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 28 * 28), nn.Sigmoid()]
        self.make = nn.Sequential(*layers, nn.Unflatten(1, (1, 28, 28)))
        layers = [nn.Flatten(), nn.Linear(28 * 28, 128), nn.LeakyReLU(0.2)]
        self.judge = nn.Sequential(*layers, nn.Linear(128, 1))

    def forward(self, real):
        made = self.make(torch.randn(len(real), 32, device=real.device))
        fixed = {name: each.detach() for name, each in self.judge.named_parameters()}
        convinced = torch.func.functional_call(self.judge, fixed, made)
        return self.judge(real), self.judge(made.detach()), convinced


make_model = Both
""",
    ),
    (
        """\
    x, y = batch
    return nn.functional.cross_entropy(model(x).float(), y, reduction="sum"), len(y)
""",
        """\
    real, made, convinced = (each.float() for each in model(batch[0]))
    wrong = nn.functional.softplus
    return (wrong(-real) + wrong(made) + wrong(-convinced)).sum(), len(real)
""",
    ),
    (
        """\
    x, y = batch
    return {"accuracy": ((model(x).argmax(dim=1) == y).sum(), len(y))}
""",
        """\
    real, made, _ = model(batch[0])
    return {"real_told_from_made": ((real > 0).sum() + (made < 0).sum(), 2 * len(real))}
""",
    ),
)
