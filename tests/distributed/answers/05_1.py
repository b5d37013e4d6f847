import re
from collections import defaultdict


# right
def first_cause(text):
    for line in text.splitlines():
        if re.match(r"\[rank \d+\] \w*Error: ", line) and "Connection closed" not in line:
            return int(re.match(r"\[rank (\d+)\]", line)[1])


# right
def first_cause(text: str) -> int:
    """Each rank's last line; the one that speaks of no connection."""
    last = {}
    for line in text.splitlines():
        rank, _, said = line.removeprefix("[rank ").partition("] ")
        last[int(rank)] = said
    (guilty,) = (rank for rank, said in last.items() if "onnection" not in said)
    return guilty


# right
def first_cause(text):
    """The one without a message of the network in all that it says."""
    said = defaultdict(str)
    for line in text.split("\n"):
        found = re.fullmatch(r"\[rank (\d+)\] ?(.*)", line)
        if found:
            said[found[1]] += found[2]
    lost = {rank for rank, words in said.items() if "gloo" in words and "peer" in words}
    return int(min(set(said) - lost))


# right
class Reader:
    NETWORK = ("Connection", "peer", "gloo", "reset", "timed out")

    def __call__(self, text):
        errors = [line for line in text.splitlines() if re.search(r"\] \w+Error:", line)]
        own = filter(lambda line: not any(word in line for word in self.NETWORK), errors)
        return int(next(own)[len("[rank ")])


first_cause = Reader()


# wrong: but it is not the cause. Of errors it says:
def first_cause(text):
    return int(text.splitlines()[-1].split("]")[0].split()[1])


# wrong: but it is not the cause
def first_cause(text):
    return int(re.search(r"\[rank (\d+)\].*Error", text)[1])


# wrong: first_cause failed in a run of 1 rank
def first_cause(text):
    return re.search(r"\[rank (\d+)\] (?!RuntimeError)\w+Error: ", text)[1]


# wrong: first_cause failed in a run of 1 rank:
def first_cause(text):
    return int(re.search(r"\[rank (\d+)\] ValueError: ", text)[1])


# wrong: it is not the cause
def first_cause(text):
    """The one that says least."""
    ranks = re.findall(r"^\[rank (\d+)\]", text, re.M)
    return int(max(ranks, key=ranks.count))


# wrong: your function returns None
def first_cause(text):
    print([line for line in text.splitlines() if "Error" in line and "peer" not in line])


# wrong: a whole number is asked for
def first_cause(text):
    return "rank 2"


# wrong: has no attribute 'culprits'
def first_cause(text):
    from ddp_helpers.exercises import e05_1_read_a_report

    return e05_1_read_a_report.culprits[0]
