"""EMA: evaluate and keep a slow average of the weights.

After each step the average moves a thousandth of the way towards the weights. It is often better
than the weights themselves, above all before the learning rate has fallen; diffusion models and
self-supervised ones are hardly trained without it. In a run of a few hundred steps 0.999 is too
slow: take 0.99.

Every rank averages for itself: the weights are the same on all, so no message is needed. best.pt
then holds the average. It takes the memory of one more model.
"""

CHANGES = (
    (
        "        self.parallel = DistributedDataParallel(",
        """\
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=average, use_buffers=True
        )
        if saved["at"]:
            self.average.load_state_dict(saved["average"])
        self.parallel = DistributedDataParallel(""",
    ),
    (
        """\
        self.optimizer.step()
        self.optimizer.zero_grad()
""",
        """\
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.model)
""",
    ),
    (
        '{**states, "at": self.at}',
        '{**states, "average": self.average.state_dict(), "at": self.at}',
    ),
    (
        '"best.pt", {"model": self.model.state_dict(), "at": at})',
        '"best.pt", {"model": self.average.module.state_dict(), "at": at})',
    ),
    (
        """\
        for buffer in self.model.buffers():  # BatchNorm's statistics: rank 0's are the saved ones
            dist.broadcast(buffer, 0)
        self.model.eval()
""",
        """\
        model = self.average.module
        for buffer in model.buffers():  # BatchNorm's statistics: rank 0's are the saved ones
            dist.broadcast(buffer, 0)
        model.eval()
""",
    ),
    (
        '{"held_out_loss": self.loss_of(batch, self.model), **metrics(self.model, batch)}',
        '{"held_out_loss": self.loss_of(batch, model), **metrics(model, batch)}',
    ),
)
