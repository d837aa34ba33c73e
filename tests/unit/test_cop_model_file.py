"""A model's file and its inputs, before anything is run: shapes, samples, weights beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from benchmarks.models import mlp
from onnx import TensorProto, helper

from infless_core.errors import InvalidInput
from infless_profiler.isolate import Feed
from infless_profiler.model_file import exported, input_feeds, parse_shapes, read_model, read_samples
from infless_profiler.operators import Tensor

B = (0, 1)


def save(path: Path, *inputs: tuple[str, int, list[Any]]) -> Path:
    """A model that hands its inputs on."""
    takes = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    gives = [helper.make_tensor_value_info(f"{name}_out", kind, shape) for name, kind, shape in inputs]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _, _ in inputs]
    graph = helper.make_graph(nodes, "g", takes, gives)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A place for a model."""
    return tmp_path / "net.onnx"


class TestShapes:
    """`--shape`."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("x=3,48,192", (None, 3, 48, 192)),
            ("x=2,b,128", (2, None, 128)),
            ("x=b", (None,)),
            (" x = 7 , b ", (7, None)),
            ("x=1", (None, 1)),
        ],
    )
    def test_of_one_item_or_with_the_batch(self, text: str, expected: tuple[int | None, ...]) -> None:
        """Without a `b` the batch goes in front."""
        assert parse_shapes((text,)) == {"x": expected}

    def test_names_may_hold_signs(self) -> None:
        """The last one counts."""
        assert parse_shapes(("a=b=3", "input:0=4")) == {"a=b": (None, 3), "input:0": (None, 4)}

    @pytest.mark.parametrize("text", ["", "x", "x=", "=3", "x=3,", "x=a", "x=-1", "x=1.5", "x=3x4", "x=b,b", "x=3,0"])
    def test_nonsense(self, text: str) -> None:
        """One sentence that repeats it."""
        with pytest.raises(InvalidInput, match="--shape: ") as caught:
            parse_shapes((text,))
        assert repr(text) in str(caught.value)


class TestSamples:
    """`--sample`."""

    def test_by_input(self, tmp_path: Path) -> None:
        """An array for each."""
        np.savez(tmp_path / "s.npz", x=np.ones((1, 3)), y=np.zeros(2, np.int64))
        found = read_samples(tmp_path / "s.npz")
        assert {name: (array.shape, array.dtype.name) for name, array in found.items()} == {
            "x": ((1, 3), "float64"),
            "y": ((2,), "int64"),
        }

    @pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "flipped", "npy", "objects", "folder"])
    def test_what_is_no_such_file(self, tmp_path: Path, damage: str) -> None:
        """A sentence, whatever numpy raises."""
        path = tmp_path / "s.npz"
        np.savez(path, x=np.ones(300))
        content = path.read_bytes()
        match damage:
            case "missing":
                path.unlink()
            case "empty" | "text":
                path.write_bytes(b"" if damage == "empty" else b"x=1,2,3\n")
            case "cut":
                path.write_bytes(content[: len(content) // 2])
            case "flipped":
                path.write_bytes(content[:300] + bytes(100) + content[400:])
            case "npy":
                np.save(tmp_path / "s.npy", np.ones(3))
                (tmp_path / "s.npy").rename(path)
            case "objects":
                np.savez(path, x=np.array([{}], object))
            case "folder":
                path.unlink()
                path.mkdir()
        with pytest.raises(InvalidInput, match=r"--sample: .*s\.npz is not an \.npz file of numpy arrays: ."):
            read_samples(path)


class TestReading:
    """What a model is called, and when it is another one."""

    def test_its_name_is_the_file_s_or_the_folder_s(self, path: Path) -> None:
        """Or what the user says."""
        save(path, ("x", TensorProto.FLOAT, ["n", 3]))
        save(path.parent / "model.onnx", ("x", TensorProto.FLOAT, ["n", 3]))
        assert read_model(path).name == "net"
        assert read_model(path.parent / "model.onnx").name == path.parent.name
        assert read_model(path, name="mine").name == "mine"

    def test_the_digest_is_of_content_and_sizes(self, path: Path) -> None:
        """Not of the name, nor of the values of a sample."""
        save(path, ("x", TensorProto.FLOAT, ["n", "q"]))
        plain = read_model(path)
        assert read_model(path.rename(path.with_name("other.onnx"))).digest == plain.digest
        path = path.with_name("other.onnx")
        shapes = [{"x": (None, 4)}, {"x": (None, 5)}, {}]
        samples = [np.ones((1, 6)), np.zeros((1, 6))]
        digests = [read_model(path, one).digest for one in shapes]
        digests += [read_model(path, samples={"x": one}).digest for one in samples]
        assert len({*digests}) == 4
        assert digests[2] == plain.digest
        save(path, ("x", TensorProto.FLOAT, ["n", "r"]))
        assert read_model(path).digest != plain.digest

    def test_weights_beside_it_count(self, path: Path) -> None:
        """In size and in digest; missing or cut off they are named."""
        onnx.save(mlp((8, 4)), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        whole, beside = read_model(path), path.with_name("weights.bin")
        assert whole.size_bytes == path.stat().st_size + 8 * 4 * 4
        content = beside.read_bytes()
        beside.write_bytes(content[:-1] + b"\0")
        assert read_model(path).digest != whole.digest
        beside.write_bytes(content[:-1])
        with pytest.raises(InvalidInput, match=r"its weights in weights\.bin are cut off: 127 bytes, 128 are needed"):
            read_model(path)
        beside.unlink()
        with pytest.raises(InvalidInput, match=r"its weights are in weights\.bin, which is not beside it"):
            read_model(path)

    def test_a_damaged_place_of_weights(self, path: Path) -> None:
        """A length that is no number."""
        onnx.save(mlp((8, 4)), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        model = onnx.load(path, load_external_data=False)
        next(one for one in model.graph.initializer[0].external_data if one.key == "length").value = "many"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(InvalidInput, match="where the weights of w0 lie is damaged"):
            read_model(path)

    @pytest.mark.parametrize("name", ["net.onnx", "net.json", "net.textproto"])
    @pytest.mark.parametrize("content", [b"", b"{}", b"\x89PNG\r\n\x1a\n" + b"\0" * 99, b"\x08\x07", b"text\n" * 40])
    def test_what_is_no_model(self, tmp_path: Path, name: str, content: bytes) -> None:
        """Whatever its name says."""
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInput, match=rf"{name}: this is not an ONNX model, or the file is cut off"):
            read_model(tmp_path / name)

    def test_where_nothing_is(self, path: Path) -> None:
        """Nor is a folder a model."""
        for one in (path, path.parent):
            with pytest.raises(InvalidInput, match="there is no such file"):
                read_model(one)

    def test_only_torch_programs_are_exported(self, path: Path, tmp_path: Path) -> None:
        """Anything else is taken as it is."""
        with exported(path, tmp_path) as found:
            assert found == path


class TestInputs:
    """What each input is given."""

    FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64

    def test_an_open_first_axis_is_the_batch(self, path: Path) -> None:
        """Named, without a name, or -1 as some exporters write it."""
        for first in ("n", None, -1):
            save(path, ("x", self.FLOAT, [first, 3]))
            feeds, batch_max = input_feeds(read_model(path))
            assert (feeds["x"].tensor.dims, batch_max) == ((B, (3, 0)), None)

    def test_every_axis_of_the_batch_s_name_is_the_batch(self, path: Path) -> None:
        """Also in the middle of another input."""
        save(path, ("x", self.FLOAT, ["n", 3]), ("state", self.FLOAT, [2, "n", 4]))
        feeds, _ = input_feeds(read_model(path))
        assert feeds["state"].tensor.dims == ((2, 0), B, (4, 0))

    def test_a_model_without_an_open_axis_takes_batches_of_one(self, path: Path) -> None:
        """More would be another model."""
        save(path, ("x", self.FLOAT, [1, 3]))
        assert input_feeds(read_model(path))[1] == 1
        assert input_feeds(read_model(path, {"x": (None, 3)}))[1] == 1

    def test_other_open_axes_get_their_size_from_a_shape_or_a_sample(self, path: Path) -> None:
        """With a shape for one input and a sample for another."""
        save(path, ("x", self.FLOAT, ["n", "width"]), ("ids", self.INT, ["n", "steps"]))
        file = read_model(path, {"x": (None, 64)}, {"ids": np.array([[5, 6, 7]])})
        feeds, _ = input_feeds(file)
        assert feeds["x"].tensor.dims == (B, (64, 0))
        assert feeds["ids"].tensor.dims == (B, (3, 0))
        assert feeds["ids"].array(2).tolist() == [[5, 6, 7], [5, 6, 7]]

    def test_the_batch_may_be_anywhere(self, path: Path) -> None:
        """The shape says where."""
        save(path, ("x", self.FLOAT, [2, "q", 4]))
        feeds, batch_max = input_feeds(read_model(path, {"x": (2, None, 4)}))
        assert (feeds["x"].tensor.dims, batch_max) == (((2, 0), B, (4, 0)), None)

    def test_weights_that_are_listed_as_inputs_are_none(self, path: Path) -> None:
        """Old exporters list them."""
        model = mlp((8, 4))
        model.graph.input.append(helper.make_tensor_value_info("w0", self.FLOAT, [8, 4]))
        onnx.save(model, path)
        assert [*input_feeds(read_model(path))[0]] == ["x"]

    @pytest.mark.parametrize(
        ("shape", "shapes", "samples", "words"),
        [
            (["n", "q"], {}, {}, r"axis 1 \(q\) of input x is open; give its size, for example --shape x=64,"),
            (["n", None, 3], {}, {}, r"axis 1 of input x is open; .* --shape x=64,3, or"),
            (["n", 3], {"y": (None, 3)}, {}, "--shape: net has no input 'y'; its inputs are x"),
            (["n", 3], {}, {"z": np.ones(1)}, "--sample: net has no input 'z'; its inputs are x"),
            (["n", 3], {"x": (None, 3, 4)}, {}, "--shape: input x of net has 2 axes, 3 with the batch are given"),
            (["n", 3], {"x": (None, 4)}, {}, "axis 1 of input x of net is fixed at 3, not 4"),
            (["n", 3], {"x": (1, None)}, {}, "axis 1 of input x of net is fixed at 3, not b"),
            ([2, 3], {"x": (None, 3)}, {}, "axis 0 of input x of net is fixed at 2, not b"),
            (["n", 3], {}, {"x": np.ones(3)}, "--sample: input x of net has 2 axes, the sample has 1; it holds one item"),
            (["n", 3], {}, {"x": np.ones((1, 4))}, "axis 1 of input x of net is fixed at 3, not 4"),
            (["n", "q"], {}, {"x": np.ones((1, 0))}, "axis 1 of input x has length 0; there is nothing to time"),
            (["n", 0], {}, {}, "axis 1 of input x has length 0; there is nothing to time"),
            (["n", "q"], {"x": (None, 10**15)}, {}, r"input x needs .* of memory for three items, and .* are free"),
            (["n", "q"], {"x": (None, 10**30)}, {}, r"input x needs .* of memory for three items, and .* are free"),
        ],
    )  # fmt: skip
    def test_what_does_not_fit(
        self, path: Path, shape: list[Any], shapes: dict[str, Any], samples: dict[str, Any], words: str
    ) -> None:
        """One sentence that names input and axis."""
        save(path, ("x", self.FLOAT, shape))
        with pytest.raises(InvalidInput, match=words):
            input_feeds(read_model(path, shapes, samples))

    def test_a_sample_of_another_kind(self, path: Path) -> None:
        """Words where numbers are wanted."""
        save(path, ("ids", self.INT, ["n", 2]))
        with pytest.raises(InvalidInput, match="--sample: input ids of net is int64: invalid literal"):
            input_feeds(read_model(path, samples={"ids": np.array([["a", "b"]])}))

    def test_an_input_of_texts(self, path: Path) -> None:
        """Nobody knows which."""
        save(path, ("words", TensorProto.STRING, ["n", 2]))
        with pytest.raises(InvalidInput, match="input words holds texts; profile the function that uses it instead"):
            input_feeds(read_model(path))

    def test_an_input_that_is_no_tensor(self, path: Path) -> None:
        """A sequence cannot be drawn."""
        info = helper.make_tensor_sequence_value_info("x", self.FLOAT, None)
        graph = helper.make_graph([helper.make_node("SequenceLength", ["x"], ["y"])], "g", [info], [])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
        with pytest.raises(InvalidInput, match="input x is no tensor; profile the function that uses it instead"):
            input_feeds(read_model(path))


class TestFeeds:
    """Arrays for a batch."""

    def test_numbers_are_drawn_where_no_function_finds_them_hard(self) -> None:
        """Between 0.1 and 1, in the input's own type."""
        array = Feed(tensor=Tensor(dtype="float16", dims=(B, (100, 0))), values=None).array(3)
        assert (array.shape, array.dtype) == ((3, 100), np.float16)
        assert 0.09 <= array.min() < array.max() <= 1

    def test_values_are_repeated_for_every_item(self) -> None:
        """Whole numbers decide what is done."""
        feed = Feed(tensor=Tensor(dtype="int64", dims=(B, (2, 0))), values=np.array([[4, 5]]))
        assert feed.array(3).tolist() == [[4, 5]] * 3

    def test_lengths_grow_with_the_batch(self) -> None:
        """As they were seen to."""
        feed = Feed(
            tensor=Tensor(dtype="int64", dims=((3, 0),)), values=np.array([1, 7, 4]), slope=np.array([1, 0, 2])
        )  # fmt: skip
        assert feed.array(5).tolist() == [5, 7, 12]
