"""Fine-tuning: weights from a file, a new last layer, and the rest frozen.

The file holds a state dict, as best.pt does or a download. Layers that are frozen get no gradient,
so DDP does not wait for them and needs no find_unused_parameters; do it before DDP wraps the
model. Give the optimizer only what learns, or weight decay shrinks what is frozen.

To train all layers, leave the freezing out and give the old ones a tenth of the rate: two groups
of parameters, each with its own "lr", which the schedule scales alike.
"""

CHANGES = (
    (
        """\
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 7 * 7, 10))
""",
        """\
    model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 7 * 7, 10))
    saved = torch.load(PRETRAINED, map_location="cpu", weights_only=True)
    model.load_state_dict(saved["model"])
    model.requires_grad_(False)
    model[-1] = nn.Linear(32 * 7 * 7, 10)  # new, and so it learns
    return model
""",
    ),
    (
        "BETTER = (",
        """\
PRETRAINED = "pretrained.pt"
BETTER = (""",
    ),
    (
        """\
            self.model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True
        )
""",
        """\
            [each for each in self.model.parameters() if each.requires_grad],
            lr=args.lr,
            weight_decay=args.weight_decay,
            fused=True,
        )
""",
    ),
)
