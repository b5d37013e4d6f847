"""Inference on all ranks: each answers its share, rank 0 writes all in order.

`--predict answers.pt` loads best.pt instead of training. Every sample is answered once, on one
rank, and none waits for another before the end; so the last batch may be small and nothing is
padded. DDP is not needed: no gradient is averaged. For text, put the loop that generates in place
of model(x): ranks may need different numbers of steps, as long as none calls a collective inside.
"""

CHANGES = (
    (
        """\
    return parser.parse_args()
""",
        """\
    add("--predict", type=Path, help="write the best model's answers there, and end")
    return parser.parse_args()
""",
    ),
    (
        """\
    def run(self) -> int:
""",
        '''\
    @torch.no_grad()
    def predict(self, file: Path) -> int:
        """The answers for the held-out set, in its order."""
        best = torch.load(self.folder.path / "best.pt", weights_only=True)
        self.model.load_state_dict(best["model"])
        self.model.eval()
        mine = [self.model(x.to(self.device)).cpu() for x, _ in self.held_out]
        told = [None] * self.ranks if self.rank == 0 else None
        dist.gather_object(mine and torch.cat(mine), told)
        if self.rank == 0:
            answers = {}  # sample i is the one number i // ranks of rank i % ranks
            for rank, each in enumerate(told):
                answers |= {rank + i * self.ranks: one for i, one in enumerate(each)}
            torch.save(torch.stack([answers[i] for i in range(len(answers))]), file)
        return 0

    def run(self) -> int:
''',
    ),
    (
        """\
        code = Training(args, device).run()
""",
        """\
        training = Training(args, device)
        code = training.predict(args.predict) if args.predict else training.run()
""",
    ),
)
