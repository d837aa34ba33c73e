"""From type hints to validation: what is taken, what is refused with which words, and what is left unchecked."""

from __future__ import annotations

import base64
import enum
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from infless_watchdog.forms import UploadedFile
from infless_watchdog.hints import Typed, answer_hint, item_hint, json_schema, validator
from infless_watchdog.isolation import ItemError

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]


class Colour(enum.Enum):
    """A user's enum."""

    RED = "red"
    BLUE = "blue"


class Named(TypedDict):
    """A user's TypedDict."""

    name: str


class Pair(NamedTuple):
    """A user's tuple."""

    a: int
    b: str = "x"


@dataclass
class Order:
    """A user's class."""

    colour: Colour
    sizes: list[Annotated[int, msgspec.Meta(ge=1)]]
    note: str | None = None


class Opaque:
    """A class that has no form in JSON."""


def refused(check: Callable[..., Any], value: Any) -> str:
    """The sentence of a 422."""
    with pytest.raises(ItemError) as caught:
        check(value)
    assert caught.value.status == 422
    return str(caught.value)


# from a function to a hint -------------------------------------------------------------------------------------------


def test_the_item_of_a_batch_is_what_its_list_holds() -> None:
    """Whatever the parameter is called."""

    def predict(orders: list[Order]) -> list[float]:
        raise NotImplementedError

    assert item_hint(predict, "batch") is Order
    assert answer_hint(predict, "batch") is float


def test_the_item_of_preprocess_is_its_parameter() -> None:
    """A list is a list there."""

    def preprocess(item: list[int]) -> np.ndarray:
        raise NotImplementedError

    assert item_hint(preprocess, "item") == list[int]
    assert answer_hint(preprocess, "item") is np.ndarray


def no_hints(batch):  # type: ignore[no-untyped-def]
    """As most are written."""
    raise NotImplementedError


def any_list(batch: list) -> list:  # type: ignore[type-arg]
    """Says nothing of the items."""
    raise NotImplementedError


def an_array(batch: np.ndarray) -> np.ndarray:
    """Takes a batch as one thing."""
    raise NotImplementedError


def nothing() -> None:
    """Has no parameter."""


@pytest.mark.parametrize("function", [no_hints, any_list, an_array, nothing, len, print, lambda batch: batch])
def test_what_says_nothing_of_items_takes_any(function: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """Without a word in the log."""
    assert item_hint(function, "batch") is Any
    assert not caplog.records


def test_a_sequence_is_a_batch_too() -> None:
    """For those who only read it."""

    def predict(batch: Sequence[int]) -> Sequence[str]:
        raise NotImplementedError

    assert (item_hint(predict, "batch"), answer_hint(predict, "batch")) == (int, str)


def missing(batch: list[Missing]) -> list[Missing]:
    """Its hint is there for type checkers alone."""
    raise NotImplementedError


class Changing:
    """A callable whose annotations fail when they are looked at, as Python 3.14's may."""

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        """Evaluated late."""
        raise NameError("Missing")

    def __call__(self, batch: Any) -> Any:
        """As predict is called."""


def opaque(batch: list[Opaque]) -> list[Opaque]:
    """Its hint means nothing to JSON."""
    raise NotImplementedError


def two_texts(batch: list[str | bytes]) -> list[str | bytes]:
    """JSON has one kind of text."""
    raise NotImplementedError


def test_hints_that_cannot_be_read_are_no_crash(caplog: pytest.LogCaptureFixture) -> None:
    """But the same word in the log."""
    assert item_hint(Changing(), "batch") is Any
    assert answer_hint(Changing(), "batch") is Any
    assert "not checked: NameError: Missing" in caplog.text


@pytest.mark.parametrize(("function", "words"), [(missing, "Missing"), (opaque, "Opaque"), (two_texts, "str-like")])
def test_a_hint_that_cannot_be_checked_is_logged_once(
    function: Callable[..., Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And the function is served all the same, its items unchecked."""
    with caplog.at_level(logging.WARNING):
        assert item_hint(function, "batch") is Any
        assert answer_hint(function, "batch") is Any
    (record,) = caplog.records
    assert function.__name__ in record.getMessage()
    assert words in record.getMessage()


def test_an_answer_in_pieces_is_described_as_anything() -> None:
    """Its pieces are not the answer."""

    def handle(event: Any, context: Any) -> Iterator[str]:
        raise NotImplementedError

    assert answer_hint(handle, "item") is Any


# checking ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "value", "item"),
    [
        (Any, object, object),
        (int, 3, 3),
        (float, 3, 3.0),
        (str | None, None, None),
        (Named, {"name": "a", "more": 1}, {"name": "a"}),
        (Pair, [1], Pair(1)),
        (Colour, "red", Colour.RED),
        (tuple[int, str], [1, "a"], (1, "a")),
        (dict[str, object], {"a": [1, "b"]}, {"a": [1, "b"]}),
        (int | list[int], [1], [1]),
        (bytes, base64.b64encode(b"\xff").decode(), b"\xff"),
    ],
)
def test_a_value_that_fits_is_of_the_hints_type(hint: Any, value: Any, item: Any) -> None:
    """Whole numbers are fine for a float; bytes are base64 in JSON."""
    found = validator(hint)(value)
    assert found == item
    assert type(found) is type(item)


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (int, "1", "Expected `int`, got `str`"),
        (int, True, "Expected `int`, got `bool`"),
        (int, 1.5, "Expected `int`, got `float`"),
        (bool, 1, "Expected `bool`, got `int`"),
        (str, 1, "Expected `str`, got `int`"),
        (list[int], [1, "a"], "Expected `int`, got `str` - at `$[1]`"),
        (Order, {"colour": "red"}, "missing required field `sizes`"),
        (Order, {"colour": "red", "sizes": [0]}, "Expected `int` >= 1 - at `$.sizes[0]`"),
        (Order, {"colour": "green", "sizes": []}, "at `$.colour`; allowed are 'blue', 'red'"),
        (list[Order], [{"colour": "green", "sizes": []}], "at `$[0].colour`; allowed are 'blue', 'red'"),
        (dict[str, Colour], {"a": "green"}, "allowed are 'blue', 'red'"),
        (Literal["a", "b"], "c", "allowed are 'a', 'b'"),
        (Colour | int, "green", "Invalid enum value 'green'"),
        (dict[str, tuple[Colour, int]], {"a": ["green", 1]}, "Invalid enum value 'green' - at `$[...][0]`"),
        (Annotated[list[int], msgspec.Meta(min_length=1)], [], "length >= 1"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_place(hint: Any, value: Any, words: str) -> None:
    """And with what is allowed there."""
    assert words in refused(validator(hint), value)


# numpy ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "value", "array"),
    [
        (np.ndarray, [[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
        (np.ndarray, [1.5], np.array([1.5])),
        (np.ndarray, [True], np.array([True])),
        (npt.NDArray[np.float32], [1, 2.5], np.array([1, 2.5], np.float32)),
        (npt.NDArray[np.float32], np.array([1], np.int16), np.array([1], np.float32)),
        (npt.NDArray[np.uint8], UploadedFile("", "", b"\x01\x02"), np.array([1, 2], np.uint8)),
        (npt.NDArray[Any], [1], np.array([1])),
        (npt.NDArray[np.floating[Any]], [1.5], np.array([1.5])),
        (npt.NDArray[np.object_], ["a"], np.array([b"a"], object)),
    ],
)
def test_lists_become_arrays(hint: Any, value: Any, array: np.ndarray) -> None:
    """Of the type that is hinted, else of the natural one."""
    np.testing.assert_array_equal(validator(hint)(value), array, strict=True)


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (np.ndarray, 3, "Expected an array of numbers, got `int`"),
        (np.ndarray, ["a"], "Expected an array of numbers"),
        (np.ndarray, [1, "a" * 100], "Expected an array of numbers"),
        (np.ndarray, [1, None], "Expected an array of numbers"),
        (np.ndarray, [2**80], "within 64 bits"),
        (np.ndarray, [[1], 2], "nested unevenly"),
        (np.ndarray, [[1], [2, 3]], "inhomogeneous"),
        (npt.NDArray[np.uint8], [300], "the array is not all UINT8"),
        (npt.NDArray[np.float32], np.array([1.5]), "Expected an array of FP32, got FP64"),
        (npt.NDArray[np.float32], b"abc", "3 bytes are no whole number of FP32"),
        (dict[str, npt.NDArray[np.int8]], {"a": ["x"]}, "at `$[...]`"),
    ],
)
def test_what_is_no_such_array_is_refused(hint: Any, value: Any, words: str) -> None:
    """Rather than bent into one."""
    assert words in refused(validator(hint), value)


# images --------------------------------------------------------------------------------------------------------------


def png() -> bytes:
    """A red image, 3 wide and 2 high."""
    pillow = pytest.importorskip("PIL.Image")
    octets = io.BytesIO()
    pillow.new("RGB", (3, 2), "red").save(octets, "PNG")
    return octets.getvalue()


def test_an_image_is_opened_wherever_it_comes_from() -> None:
    """A body, an uploaded file, base64 in JSON as browsers write it."""
    octets = png()
    image = pytest.importorskip("PIL.Image").Image
    check = validator(image)
    text = base64.b64encode(octets).decode()
    for value in (octets, UploadedFile("a.png", "image/png", octets), text, f"data:image/png;base64,{text}"):
        opened = check(value)
        assert (opened.size, opened.getpixel((0, 0))) == ((3, 2), (255, 0, 0))


def test_a_broken_image_is_refused() -> None:
    """No image, half an image, bad base64, something else."""
    octets = png()
    check = validator(pytest.importorskip("PIL.Image").Image)
    for value in (b"", b"x" * 100, octets[:50], "!", 3):
        assert "image" in refused(check, value)


@pytest.mark.filterwarnings("ignore::Warning")  # Pillow warns, and would go on
def test_an_image_that_is_too_large_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes may say that they are a billion pixels; Pillow's own limit holds."""
    octets = png()
    pillow = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(pillow, "MAX_IMAGE_PIXELS", 5)
    assert "pixels" in refused(validator(pillow.Image), octets)


# pydantic ------------------------------------------------------------------------------------------------------------


def test_a_model_of_pydantics_checks_itself() -> None:
    """Its own words, on one line, with the place."""
    pydantic = pytest.importorskip("pydantic")
    inner = pydantic.create_model("Inner", size=(int, ...))
    model = pydantic.create_model("Outer", inner=(inner, ...))
    assert validator(model)({"inner": {"size": 3}}).inner.size == 3
    sentence = refused(validator(list[model]), [{"inner": {"size": "x"}}])
    assert "inner.size: Input should be a valid integer" in sentence
    assert "$[0]" in sentence
    assert "\n" not in sentence
    assert Typed(model).from_parts({"inner": {"size": 3}}).inner.size == 3


def test_another_librarys_model_is_one_too() -> None:
    """By its methods: nothing of pydantic's is imported."""

    class Model:
        @classmethod
        def model_validate(cls, value: Any) -> Any:
            raise ValueError(f"not {value}")

        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return {"type": "object"}

    assert refused(validator(Model), 3) == "the item does not fit: not 3"


# parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "parts", "item"),
    [
        (dict[str, int], {"a": "1", "b": np.array([2])}, {"a": 1, "b": 2}),
        (dict[str, Any], {"a": "1"}, {"a": "1"}),
        (Annotated[Order, msgspec.Meta(title="o")] | None, {"colour": "red", "sizes": "1"}, Order(Colour.RED, [1])),
        (list[list[int]], {"x": np.array([[1, 2]])}, [[1, 2]]),
        (list[list[str]], {"x": np.array([[b"a"], [b"b"]], object)}, [["a"], ["b"]]),
        (tuple[str, str], {"x": ["a", "b"]}, ("a", "b")),
        (list[bytes], {"x": UploadedFile("", "", b"a")}, [b"a"]),
        (bytes, {"x": "é"}, "é".encode()),
        (int | str, {"x": "1"}, "1"),
    ],
)
def test_parts_are_fitted_to_the_hint(hint: Any, parts: dict[str, Any], item: Any) -> None:
    """Texts of a form become numbers, arrays lists or scalars, what is alone a list where one is wanted."""
    assert Typed(hint).from_parts(parts) == item


# schemas -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (Any, {}),
        (object, {"description": "anything"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (bytes, {"type": "string", "contentEncoding": "base64"}),
        (Colour, {"$ref": "#/$defs/Colour"}),
    ],
)
def test_a_hint_has_a_json_schema(hint: Any, schema: dict[str, Any]) -> None:
    """What it refers to is beside it."""
    found = json_schema(hint)
    assert {key: value for key, value in found.items() if key != "$defs"} == schema


def test_arrays_and_images_have_a_schema_too() -> None:
    """As what they are in JSON."""
    assert json_schema(npt.NDArray[np.float32])["type"] == "array"
    assert json_schema(pytest.importorskip("PIL.Image").Image)["contentMediaType"] == "image/*"
