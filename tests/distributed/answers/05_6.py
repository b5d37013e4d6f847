import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol


# right
def sum_metrics(metrics):
    sums = {}
    for name in sorted(metrics):
        total = torch.tensor(metrics[name])
        dist.all_reduce(total)
        sums[name] = total.item()
    return sums


# right
def sum_metrics(metrics):
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, metrics)
    return {name: sum(each[name] for each in everywhere) for name in metrics}


# right
def sum_metrics(metrics):
    """Tensors as values."""
    names, values = zip(*sorted(metrics.items()), strict=True)
    flat = torch.tensor(values)
    dist.all_reduce(flat)
    return dict(zip(names, flat, strict=True))


# right
def sum_metrics(metrics):
    """The order of rank 0."""
    box = [list(metrics)]
    dist.broadcast_object_list(box, src=0)
    sums = {}
    for name in box[0]:
        sums[name] = torch.tensor(metrics[name], dtype=torch.float64)
        dist.all_reduce(sums[name])
    return {name: float(value) for name, value in sums.items()}


# right
class Sums(dict):
    def __missing__(self, name):
        return 0.0


def sum_metrics(metrics):
    everywhere = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, metrics)
    sums = Sums()
    for each in everywhere:
        for name, value in each.items():
            sums[name] += value
    return sums


# wrong: loss is
def sum_metrics(metrics):
    flat = torch.tensor(list(metrics.values()))
    dist.all_reduce(flat)
    return dict(zip(metrics, flat.tolist(), strict=True))


# wrong: on rank
def sum_metrics(metrics):
    """By value: no order for all."""
    sums = {}
    for name, value in sorted(metrics.items(), key=lambda item: item[1]):
        total = torch.tensor(value)
        dist.all_reduce(total)
        sums[name] = total.item()
    return sums


# wrong: 2 times too small
def sum_metrics(metrics):
    sums = {}
    for name in sorted(metrics):
        total = torch.tensor(metrics[name])
        dist.all_reduce(total)
        sums[name] = total.item() / dist.get_world_size()
    return sums


# wrong: returned None, expected a dict
def sum_metrics(metrics):
    for name in sorted(metrics):
        total = torch.tensor(metrics[name])
        dist.all_reduce(total)
        metrics[name] = total.item()


# wrong: expected a dict with
def sum_metrics(metrics):
    flat = torch.tensor([metrics[name] for name in sorted(metrics)])
    dist.all_reduce(flat)
    return flat


# wrong: expected a dict with ['accuracy', 'loss', 'samples']
def sum_metrics(metrics):
    sums = {}
    for name in ("loss", "accuracy"):
        total = torch.tensor(metrics[name])
        dist.all_reduce(total)
        sums[name] = total.item()
    return sums


# wrong: is None, expected a number
def sum_metrics(metrics):
    return {name: None for name in metrics}


# wrong: exchanges nothing with the others
def sum_metrics(metrics):
    """Looks into the check."""
    import inspect

    for frame in inspect.stack():
        if "everywhere" in frame.frame.f_locals:
            everywhere = frame.frame.f_locals["everywhere"]
            return {name: sum(each[name] for each in everywhere) for name in metrics}


# right
def sum_metrics(metrics):
    return {
        k: funcol.all_reduce(torch.tensor(float(v)), "sum", dist.group.WORLD).item()
        for k, v in sorted(metrics.items())
    }


# wrong: on rank 0 of 3
def sum_metrics(metrics):
    out = {}
    for k in sorted(metrics, key=lambda k: k[0]):
        t = torch.tensor(float(metrics[k]))
        dist.all_reduce(t)
        out[k] = t.item()
    return out
