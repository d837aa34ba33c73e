"""What an operator is: the same for every batch size and every model, and how much work it does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from infless_profiler.around import CALL, TRANSFER, around
from infless_profiler.operators import (
    COLD_BYTES,
    Call,
    ModelGraph,
    Operator,
    Point,
    Tensor,
    features,
    moved_bytes,
    multiply_adds,
    state,
    variant,
    weight_bytes,
)
from infless_profiler.sessions import Device

CPU = Device(kind="cpu", name="p", runtime="r 1")
GPU = Device(kind="cuda", name="g", runtime="r 1")


def tensor(*dims: int | str, dtype: str = "float32", constant: bool = False) -> Tensor:
    """`b` is the batch, `2b` two for each item."""
    lengths = tuple((dim, 0) if isinstance(dim, int) else (0, int(dim[:-1] or 1)) for dim in dims)
    return Tensor(dtype=dtype, dims=lengths, constant=constant)


def operator(kind: str, takes: list[Tensor | None], gives: list[Tensor], **attributes: object) -> Operator:
    """Of the standard operator set."""
    return Operator(
        domain="", type=kind, version=17, attributes=attributes, inputs=tuple(takes), outputs=tuple(gives)
    )  # fmt: skip


def matmul(wide: int = 64, high: int = 16) -> Operator:
    """Rows times a weight."""
    return operator("MatMul", [tensor("b", wide), tensor(wide, high, constant=True)], [tensor("b", high)])


CONV = operator(
    "Conv", [tensor("b", 3, 8, 8), tensor(16, 3, 3, 3, constant=True)], [tensor("b", 16, 8, 8)], kernel_shape=[3, 3]
)


class TestWhatItIs:
    """Signatures, words, and the way into the tables and back."""

    def test_lengths_are_straight_lines_over_the_batch(self) -> None:
        """A fixed part, and one for each item."""
        one = Tensor(dtype="float16", dims=((1, 2), (0, 1), (5, 0)))
        assert (one.shape(1), one.shape(4)) == ((3, 1, 5), (9, 4, 5))
        assert (one.elements(4), one.size_bytes(4)) == (180, 360)

    def test_a_type_that_nobody_knows_counts_four_bytes(self) -> None:
        """A new type of a new runtime does not stop a profile."""
        assert tensor(10, dtype="float4e2m1").size_bytes(1) == 40

    @pytest.mark.parametrize(
        "other",
        [
            replace(matmul(), version=13),
            replace(matmul(), domain="com.microsoft"),
            replace(matmul(), type="Gemm"),
            replace(matmul(), attributes={"alpha": 2.0}),
            matmul(65),
            matmul(high=17),
            replace(matmul(), inputs=(tensor("b", 64), tensor(64, 16))),
            replace(matmul(), inputs=(tensor("b", 64, dtype="float16"), tensor(64, 16, constant=True))),
            replace(matmul(), inputs=(*matmul().inputs, None)),
            replace(matmul(), outputs=()),
        ],
    )
    def test_everything_that_decides_its_time_is_in_the_signature(self, other: Operator) -> None:
        """What differs in one thing is another operator."""
        assert other.signature != matmul().signature
        assert other != matmul()

    def test_equal_operators_are_one(self) -> None:
        """In sets and as keys, whatever the order of their attributes; and unlike anything else."""
        one, two = (operator("Conv", [], [], **pads) for pads in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
        assert len({one, two}) == 1
        assert one.signature == two.signature
        assert one != one.signature

    def test_json_and_back(self) -> None:
        """Optional inputs that are left out stay left out."""
        one = operator("Resize", [tensor("2b", 3), None, tensor(4, constant=True)], [tensor("b")], mode="nearest")
        back = Operator.from_json(one.to_json())
        assert back == one
        assert back.inputs[1] is None
        assert back.inputs == one.inputs

    @pytest.mark.parametrize("data", [{}, {"domain": ""}, {**matmul().to_json(), "inputs": [[1]]}, []])
    def test_what_is_no_operator_raises(self, data: object) -> None:
        """One of three errors, which the tables know."""
        with pytest.raises((KeyError, TypeError, ValueError)):
            Operator.from_json(data)  # type: ignore[arg-type]

    def test_words_for_people(self) -> None:
        """Family and shapes; a weight says so."""
        assert str(matmul()) == "MatMul([1b,64], w[64,16])"
        assert str(operator("Add", [tensor("2b"), None, Tensor(dtype="int8", dims=((3, 1),))], [])) == (
            "Add([2b], -, [3+1b])"
        )
        assert str(operator("Relu", [Tensor(dtype="int8", dims=((0, 0),))], [])) == "Relu([0])"
        assert replace(CONV, domain="com.microsoft").family == "com.microsoft:Conv"

    def test_variants_run_different_code(self) -> None:
        """Broadcasting, a weight in place of a result, another type; but not another size."""
        same = operator("Add", [tensor("b", 4), tensor("b", 4)], [tensor("b", 4)])
        others = [
            operator("Add", [tensor("b", 4), tensor(1)], [tensor("b", 4)]),
            operator("Add", [tensor("b", 4), tensor("b", 4, constant=True)], [tensor("b", 4)]),
            operator("Add", [tensor("b", 4, dtype="int8"), tensor("b", 4, dtype="int8")], [tensor("b", 4)]),
        ]
        assert len({variant(one) for one in (same, *others)}) == 4
        assert variant(same) == variant(operator("Add", [tensor("b", 9), tensor("b", 9)], [tensor("b", 9)]))


class TestWork:
    """Arithmetic and traffic, by hand."""

    @pytest.mark.parametrize(
        ("one", "expected"),
        [
            (matmul(), 4 * 64 * 16),
            (CONV, 4 * 16 * 64 * 3 * 9),
            (operator("Gemm", [tensor(64, "b"), tensor(64, 16)], [tensor("b", 16)], transA=1), 4 * 64 * 16),
            (operator("Gemm", [tensor("b", 64), tensor(64, 16)], [tensor("b", 16)], transA=0), 4 * 64 * 16),
            (
                operator("ConvTranspose", [tensor("b", 8, 5), tensor(8, 4, 3, constant=True)], [tensor("b", 4, 7)]),
                4 * 8 * 5 * 4 * 3,
            ),
            (
                operator("LSTM", [tensor(10, "b", 8), tensor(1, 16, 8), tensor(1, 16, 4)], [tensor(10, 1, "b", 4)]),
                10 * 4 * (16 * 8 + 16 * 4),
            ),
            (operator("MaxPool", [tensor("b", 8, 8)], [tensor("b", 4, 4)], kernel_shape=[3, 3]), 4 * 16 * 9),
            (operator("ReduceMean", [tensor("b", 100)], [tensor("b", 1)]), 400),
            (operator("Gather", [tensor(1000, 8), tensor("b")], [tensor("b", 8)]), 32),
            (operator("Relu", [tensor("b", 10)], [tensor("b", 10)]), 40),
            (
                operator("Attention", [tensor("b", 7, 8), tensor(8, 24, constant=True)], [tensor("b", 7, 8)]),
                4 * 56 * 24,
            ),
            (operator("Constant", [], [tensor(3)]), 3),
            (operator("Nothing", [], []), 1),
            (operator("MatMul", [None], [tensor("b")]), 4),
        ],
    )
    def test_arithmetic(self, one: Operator, expected: float) -> None:
        """Of a batch of four."""
        assert multiply_adds(one, 4) == expected

    def test_traffic_counts_weights_once(self) -> None:
        """They do not grow with the batch."""
        weights = 64 * 16 * 4
        assert weight_bytes(matmul()) == weights
        assert moved_bytes(matmul(), 3, weights=False) == 3 * (64 + 16) * 4
        assert moved_bytes(matmul(), 3) == moved_bytes(matmul(), 3, weights=False) + weights

    def test_only_many_weights_are_ever_cold(self) -> None:
        """An operator with few is looked up as warm."""
        cold = Point(1, 1, cold=True)
        wide = COLD_BYTES // 4
        assert state(matmul(wide, 1), cold).cold
        assert not state(matmul(wide - 1, 1), cold).cold
        assert not state(matmul(wide, 1), Point(1, 1)).cold

    def test_features_grow_with_the_batch(self) -> None:
        """As many for every operator, and finite where there is nothing to count."""
        one, two = features(CONV, 1), features(CONV, 2)
        assert two[0] == pytest.approx(one[0] + 1, abs=1e-3)
        assert one[5] == pytest.approx(math.log2(9))
        empty = features(operator("Nothing", [], []), 1)
        assert len(empty) == len(one)
        assert all(map(math.isfinite, empty))


class TestModels:
    """Many calls of few operators."""

    GRAPH = ModelGraph(
        name="m", digest="d", parameter_bytes=0,
        calls=(Call(operator=matmul()), Call(operator=CONV, needs=(0,)), Call(operator=matmul(), needs=(1,))),
    )  # fmt: skip

    def test_equal_calls_are_counted(self) -> None:
        """In order of their first call."""
        assert list(self.GRAPH.operators.values()) == [matmul(), CONV]
        assert list(self.GRAPH.counts.values()) == [2, 1]

    def test_memory_is_the_largest_call_and_traffic_is_all(self) -> None:
        """Weights are traffic; activations are not weights."""
        assert self.GRAPH.activation_bytes(2) == moved_bytes(CONV, 2, weights=False)
        assert self.GRAPH.traffic_bytes(2) == 2 * moved_bytes(matmul(), 2) + moved_bytes(CONV, 2)
        empty = replace(self.GRAPH, calls=())
        assert (empty.activation_bytes(1), empty.traffic_bytes(1), empty.counts) == (0, 0, {})

    def test_a_point_names_its_worker(self) -> None:
        """Cores and share; batch and caches are another thing."""
        assert Point(8, 2, 50, cold=True).place == (2, 50)


class TestAround:
    """What an execution takes beside its operators."""

    TAKES, GIVES = (tensor("b", 4), tensor("b", 5)), (tensor("b", 6),)

    def test_on_a_processor_answers_are_copied_for_the_caller(self) -> None:
        """And the call itself takes time, by its number of inputs and outputs."""
        found, _ = around(self.TAKES, self.GIVES, CPU)
        assert [one.type for one in found] == [CALL, TRANSFER]
        assert found[0].attributes == {"inputs": 2, "outputs": 1}
        assert (found[1].attributes, found[1].inputs) == ({"to": "caller"}, self.GIVES)

    def test_on_a_gpu_inputs_go_there_and_outputs_come_back(self) -> None:
        """One copy for each."""
        found, _ = around(self.TAKES, self.GIVES, GPU)
        assert [one.type for one in found] == [CALL, TRANSFER, TRANSFER, TRANSFER]
        assert [one.attributes["to"] for one in found[1:]] == ["device", "device", "host"]
        assert [one.inputs[0] for one in found[1:]] == [*self.TAKES, *self.GIVES]

    def test_the_empty_model_has_as_many_inputs_and_outputs(self) -> None:
        """Of one number each; a model without inputs is called all the same."""
        _, case = around(self.TAKES, (), CPU)
        assert (len(case.feeds), len(case.nodes), len(case.gives)) == (2, 2, 1)
        found, case = around((), self.GIVES * 3, CPU)
        assert [one.type for one in found] == [CALL, TRANSFER, TRANSFER, TRANSFER]  # equal copies count each
        assert (len(case.feeds), len(case.nodes), len(case.gives)) == (1, 3, 3)
