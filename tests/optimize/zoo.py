"""Small models of every common kind; tests copy this file beside the weights and name its functions."""

from dataclasses import dataclass

import torch
from torch import nn


class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )

    def forward(self, image):
        return self.layers(image)


class Tokens(nn.Module):
    """A transformer encoder that takes at most 20 tokens of a vocabulary of 50."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.position = nn.Parameter(torch.randn(20, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens) + self.position[: tokens.shape[1]]).mean(1))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).float()
        states = self.embed(input_ids)
        return {"logits": self.head((states * mask).sum(1) / mask.sum(1)), "states": states}


class FixedLength(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 4)
        self.head = nn.Linear(80, 3)

    def forward(self, tokens):
        return self.head(self.embed(tokens).flatten(1))


class Series(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(7, 16, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, series):
        states, _ = self.layer(series)
        return self.head(states[:, -1])


class SeriesFirst(nn.Module):
    """Time before rows: nothing in the file says so."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(7, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, series):
        states, _ = self.layer(series)
        return self.head(states[-1])


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(6, 8)

    def forward(self, left, right):
        return self.left(left) + self.right(right)


class Undecided(nn.Module):
    """Whether the answer is doubled or negated depends on the values: tracing keeps one of the two."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) * 2 if float(x.mean()) > 0 else -self.layer(x)


class Causal(nn.Module):
    """A language model, its mask as torch's own tutorial makes it; time before rows inside, rows first outside."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
        self.head = nn.Linear(16, 50)

    def forward(self, tokens):
        length = tokens.shape[1]
        mask = torch.triu(torch.full((length, length), float("-inf")), 1)
        return self.head(self.encoder(self.embed(tokens), mask=mask))


@dataclass
class Both:
    mean: torch.Tensor
    spread: object


class Returning(nn.Module):
    """Gives two results in the form that `pack` makes of them."""

    def __init__(self, pack):
        super().__init__()
        self.layer, self.pack = nn.Linear(4, 2), pack

    def forward(self, x):
        return self.pack(self.layer(x), self.layer(-x))


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.EmbeddingBag(60, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens):
        return self.head(self.words(tokens))


def causal():
    return Causal()


def bag():
    return Bag()


def fields():
    return Returning(Both)


def dictionary():
    return Returning(lambda mean, spread: {"mean": mean, "spread": spread})


def nested():
    return Returning(lambda mean, spread: (mean, (spread, mean)))


def named_by_text():
    return Returning(lambda mean, _: (mean, "linear"))


def complex_numbers():
    return Returning(lambda mean, _: torch.fft.fft(mean))


def double():
    return mlp().double()


def half():
    return digits().half()


def asking():
    input("really? ")
    return mlp()


def mlp():
    return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 2))


def digits():
    return Digits()


def tokens():
    return Tokens()


def masked():
    return Masked()


def fixed_length():
    return FixedLength()


def series():
    return Series()


def series_first():
    return SeriesFirst()


def pair():
    return Pair()


def undecided():
    return Undecided()


def pair_example():
    return {"left": torch.zeros(2, 4), "right": torch.zeros(2, 6)}


def no_tensor():
    return 7
