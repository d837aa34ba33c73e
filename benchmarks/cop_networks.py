"""The networks that torch makes for the profiler's benchmark, and their way into an ONNX file.

Batch normalisation is folded into the convolutions, as in any model that is served. Weights are drawn so that numbers
neither vanish nor overflow on their way: how fast a processor multiplies can depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import onnx
import torch
from onnxscript.optimizer import optimize
from torch import nn

_OPSET = 18
"""The exporter's own: another one would take a conversion."""
_IR_VERSION = 8
"""Of the file's format: old enough for every onnxruntime that the project allows."""
_FOLDED_BYTES = 1 << 28
"""The exporter leaves weights over some KiB to be rearranged at each run; up to this size it is done here."""


def export(network: nn.Module, inputs: Mapping[str, torch.Tensor], output: str, path: Path) -> None:
    """Write a network to an ONNX file whose first axis is open.

    Args:
        network: What is written, with the weights that it has.
        inputs: In the order of the network's arguments, by the name that each gets; at least two items in each.
        output: The name of its only output.
        path: Where the file goes.
    """
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        network.eval(),
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=[output],
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    optimize(program.model, input_size_limit=_FOLDED_BYTES, output_size_limit=_FOLDED_BYTES)
    model = program.model_proto
    model.ir_version = _IR_VERSION
    _forget_origin(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _forget_origin(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they name paths of the machine, and the older format has no place for them."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def seeded(network: nn.Module, seed: int = 0) -> nn.Module:
    """A network with drawn weights, always the same ones."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear):
                assert part.bias is not None
                gain = 1.0 if isinstance(part, _Convolution) and part.act is None else 2.0
                part.weight.normal_(0, (gain / part.weight[0].numel()) ** 0.5, generator=draw)
                part.bias.normal_(0, 0.05, generator=draw)
            elif isinstance(part, nn.Embedding):
                part.weight.normal_(0, 1, generator=draw)
            elif isinstance(part, nn.LSTM):
                for weight in part.parameters():
                    weight.uniform_(-(part.hidden_size**-0.5), part.hidden_size**-0.5, generator=draw)
    return network


class _Convolution(nn.Conv2d):
    """With its folded normalisation and what follows it; pictures keep their size, but for the stride."""

    def __init__(
        self, wide: int, high: int, size: int = 1, stride: int = 1, groups: int = 1, act: nn.Module | None = None
    ) -> None:
        super().__init__(wide, high, size, stride, padding=size // 2, groups=groups)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y if self.act is None else self.act(y)


class _Bottleneck(nn.Module):
    """ResNet's block: narrow, filter, widen, and add what came in."""

    def __init__(self, wide: int, middle: int, stride: int) -> None:
        super().__init__()
        high = 4 * middle
        self.path = nn.Sequential(
            _Convolution(wide, middle, act=nn.ReLU()),
            _Convolution(middle, middle, 3, stride, act=nn.ReLU()),
            _Convolution(middle, high),
        )
        self.short = nn.Identity() if wide == high else _Convolution(wide, high, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.path(x) + self.short(x))


def resnet_50() -> nn.Module:
    """ResNet-50 (its version 1.5, with the stride in the 3x3 filters) for pictures of 224x224."""
    parts: list[nn.Module] = [_Convolution(3, 64, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    wide = 64
    for middle, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for place in range(blocks):
            parts.append(_Bottleneck(wide, middle, 1 if place else stride))
            wide = 4 * middle
    return nn.Sequential(*parts, *_classifier(wide, 1000))


class _Inverted(nn.Module):
    """MobileNetV2's block: widen, filter each channel, narrow, and add what came in where the sizes agree."""

    def __init__(self, wide: int, high: int, times: int, stride: int) -> None:
        super().__init__()
        middle = wide * times
        self.path = nn.Sequential(
            *([_Convolution(wide, middle, act=nn.ReLU6())] if times > 1 else []),
            _Convolution(middle, middle, 3, stride, groups=middle, act=nn.ReLU6()),
            _Convolution(middle, high),
        )
        self.adds = stride == 1 and wide == high

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.path(x) if self.adds else self.path(x)


def mobilenet() -> nn.Module:
    """MobileNetV2 at width 1.0 for pictures of 224x224."""
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    parts: list[nn.Module] = [_Convolution(3, 32, 3, 2, act=nn.ReLU6())]
    wide = 32
    for times, high, blocks, stride in rows:
        for place in range(blocks):
            parts.append(_Inverted(wide, high, times, 1 if place else stride))
            wide = high
    return nn.Sequential(*parts, _Convolution(wide, 1280, act=nn.ReLU6()), *_classifier(1280, 1000))


def _classifier(wide: int, classes: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, classes)


def _separable(wide: int, high: int, stride: int) -> nn.Module:
    """MobileNetV1's block: filter each channel, then mix them."""
    return nn.Sequential(
        _Convolution(wide, wide, 3, stride, groups=wide, act=nn.ReLU6()), _Convolution(wide, high, act=nn.ReLU6())
    )


class SingleShot(nn.Module):
    """SSD on MobileNetV1 for pictures of 300x300: of each of 1917 boxes its 91 classes' scores and its 4 offsets."""

    CLASSES = 91

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(  # 19x19, 512 channels
            _Convolution(3, 32, 3, 2, act=nn.ReLU6()),
            *(_separable(*row) for row in ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1))),
            _separable(256, 512, 2),
            *(_separable(512, 512, 1) for _ in range(5)),
        )
        self.coarse = nn.Sequential(_separable(512, 1024, 2), _separable(1024, 1024, 1))
        self.extras = nn.ModuleList(
            nn.Sequential(_Convolution(wide, middle, act=nn.ReLU6()), _Convolution(middle, high, 3, 2, act=nn.ReLU6()))
            for wide, middle, high in ((1024, 256, 512), (512, 128, 256), (256, 128, 256), (256, 64, 128))
        )
        levels = ((512, 19, 3), (1024, 10, 6), (512, 5, 6), (256, 3, 6), (256, 2, 6), (128, 1, 6))
        self.boxes = [side * side * boxes for _, side, boxes in levels]
        self.scores = nn.ModuleList(_Convolution(wide, boxes * self.CLASSES) for wide, _, boxes in levels)
        self.offsets = nn.ModuleList(_Convolution(wide, boxes * 4) for wide, _, boxes in levels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All boxes of a batch."""
        maps = [self.fine(x)]
        for level in (self.coarse, *self.extras):
            maps.append(level(maps[-1]))
        scores = [self._rows(*one, self.CLASSES) for one in zip(self.scores, maps, self.boxes, strict=True)]
        offsets = [self._rows(*one, 4) for one in zip(self.offsets, maps, self.boxes, strict=True)]
        return torch.cat([torch.sigmoid(torch.cat(scores, 1)), torch.cat(offsets, 1)], 2)

    @staticmethod
    def _rows(head: nn.Module, x: torch.Tensor, boxes: int, numbers: int) -> torch.Tensor:
        return head(x).permute(0, 2, 3, 1).reshape(-1, boxes, numbers)


class Recurrent(nn.Module):
    """An LSTM of 512 over 20 words; its last state is one of 2365 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5000, 256)
        self.lstm = nn.LSTM(256, 512, batch_first=True)
        self.classes = nn.Linear(512, 2365)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Scores of a batch of sentences."""
        _, (state, _) = self.lstm(self.words(ids))
        return self.classes(state[0])


class TextFilters(nn.Module):
    """TextCNN: filters over 3, 4 and 5 of 128 words, the strongest answer of each, 69 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5000, 128)
        self.filters = nn.ModuleList(nn.Conv1d(128, 256, size) for size in (3, 4, 5))
        self.classes = nn.Linear(3 * 256, 69)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Scores of a batch of texts."""
        x = self.words(ids).transpose(1, 2)
        return self.classes(torch.cat([torch.relu(one(x)).amax(2) for one in self.filters], 1))


class TwoTowers(nn.Module):
    """DSSM: how near a query and a document are, each 2389 letter n-grams wide."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.document = self._tower(), self._tower()

    @staticmethod
    def _tower() -> nn.Module:
        return nn.Sequential(
            nn.Linear(2389, 1024), nn.Tanh(), nn.Linear(1024, 512), nn.Tanh(), nn.Linear(512, 128), nn.Tanh()
        )

    def forward(self, query: torch.Tensor, document: torch.Tensor) -> torch.Tensor:
        """The cosine of each pair of a batch."""
        return (_unit(self.query(query)) * _unit(self.document(document))).sum(1, keepdim=True)


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)


class _Layer(nn.Module):
    """One layer of BERT: attention, then two dense layers; the sum is normalised after each."""

    HEADS = 12

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.mixed = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.mixed_norm, self.narrow_norm = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))
        self.gelu = nn.GELU()

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        words, width = x.shape[1:]
        each = width // self.HEADS
        query, key, value = (
            part(x).reshape(-1, words, self.HEADS, each).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) / each**0.5 + hidden, 3)
        seen = (weights @ value).transpose(1, 2).reshape(-1, words, width)
        x = self.mixed_norm(x + self.mixed(seen))
        return self.narrow_norm(x + self.narrow(self.gelu(self.wide(x))))


class SentenceEncoder(nn.Module):
    """BERT as all-MiniLM-L6-v2 uses it: the mean of its words' vectors, of length 1."""

    _NAMES: ClassVar = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "mixed": "attention.output.dense",
        "mixed_norm": "attention.output.LayerNorm",
        "wide": "intermediate.dense",
        "narrow": "output.dense",
        "narrow_norm": "output.LayerNorm",
    }
    """Of a layer's parts, here and in the published weights."""

    def __init__(self, weights: Mapping[str, torch.Tensor], words: int) -> None:
        """From published weights, for texts of so many words."""
        super().__init__()
        known, width = weights["embeddings.word_embeddings.weight"].shape
        self.words = nn.Embedding(known, width)
        self.places = nn.Parameter(torch.empty(words, width))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(_Layer(width, 4 * width) for _ in range(6))
        # Every text is of the first kind: its vector is added to all places once and for all.
        mine = {
            "words.weight": weights["embeddings.word_embeddings.weight"],
            "places": weights["embeddings.position_embeddings.weight"][:words]
            + weights["embeddings.token_type_embeddings.weight"][0],
        }
        parts = [("norm", "embeddings.LayerNorm")]
        for place in range(len(self.layers)):
            parts += [(f"layers.{place}.{my}", f"encoder.layer.{place}.{its}") for my, its in self._NAMES.items()]
        mine |= {f"{my}.{kind}": weights[f"{its}.{kind}"] for my, its in parts for kind in ("weight", "bias")}
        self.load_state_dict(mine)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The vectors of a batch of texts."""
        seen = attention_mask.to(torch.float32)
        hidden = ((1 - seen) * -1e9)[:, None, None, :]
        x = self.norm(self.words(input_ids) + self.places)
        for layer in self.layers:
            x = layer(x, hidden)
        seen = seen[:, :, None]
        return _unit((x * seen).sum(1) / seen.sum(1).clamp(min=1e-9))
