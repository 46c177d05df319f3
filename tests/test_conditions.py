"""Label names <-> the condition that the network sees."""

import pytest
import torch

from maskimg.conditions import Condition, LabelFields, drop_condition, null_labels

FIELDS = LabelFields({"class": ("bird", "bug", "cat"), "style": ("flat", "round")})


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("bird", [0, 2]),
        ("cat", [2, 2]),
        ({"class": "bug"}, [1, 2]),
        ({"style": "round"}, [3, 1]),
        ({"style": "flat", "class": "cat"}, [2, 0]),
        ({"": "bug", "style": "flat"}, [1, 0]),
        ({"class": None, "style": ""}, [3, 2]),
        (None, [3, 2]),
        ("", [3, 2]),
        ({}, [3, 2]),
    ],
)
def test_a_label_becomes_one_number_per_field_and_the_null_value_where_nothing_is_asked(label, expected):
    condition = FIELDS.encode(label, 3)
    assert condition.dtype == torch.int64
    assert condition.tolist() == [expected] * 3


def test_a_condition_can_be_read_again():
    labels = [{"class": "bird", "style": "round"}, {"style": "flat"}, {}]
    condition = torch.cat([FIELDS.encode(label) for label in labels])
    assert FIELDS.decode(condition) == labels
    assert FIELDS.decode(None) == []
    assert FIELDS.sizes == (3, 2)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("birt", "there is no class `birt`; did you mean `bird`?"),
        ("Bug", "there is no class `Bug`; did you mean `bug`?"),
        ("zebra", "there is no class `zebra`; there is `bird`, `bug`, `cat`"),
        ({"style": "flet"}, "there is no style `flet`; did you mean `flat`?"),
        ({"colour": "red"}, "there is no label field `colour`; there is `class`, `style`"),
    ],
)
def test_an_unknown_label_is_answered_with_what_there_is(label, message):
    with pytest.raises(ValueError) as caught:
        FIELDS.encode(label)
    assert str(caught.value) == message


def test_of_many_labels_a_dozen_are_listed():
    fields = LabelFields({"digit": [f"number-{i}" for i in range(40)]})
    with pytest.raises(ValueError, match="`number-11` and 28 more$"):
        fields.encode("zebra")


def test_a_model_without_labels_takes_none():
    assert LabelFields().encode(None, 5) is None
    with pytest.raises(ValueError, match="trained without labels, so it cannot draw `cat`"):
        LabelFields().encode("cat")


def test_the_null_condition_is_one_past_the_last_name_of_each_field():
    assert null_labels(FIELDS.encode("bird", 2), FIELDS.sizes).tolist() == [[3, 2], [3, 2]]


def test_labels_are_dropped_never_or_always_or_as_often_as_asked():
    """10,000 rows; five standard deviations off would be 0.025, a chance of one in a million; the seed is fixed."""
    condition = torch.tensor([[1, 0]]).repeat(10_000, 1)
    null = torch.tensor([3, 2])
    assert torch.equal(_dropped(condition, 0.0), condition)
    assert (_dropped(condition, 1.0) == null).all()

    dropped = _dropped(condition, 0.2) == null
    assert abs(dropped.all(1).double().mean() - (0.2 + 0.8 * 0.2**2)) < 0.025
    assert abs(dropped[:, 0].double().mean() - (0.2 + 0.8 * 0.2)) < 0.025
    assert abs((dropped[:, 0] & ~dropped[:, 1]).double().mean() - 0.8 * 0.2 * 0.8) < 0.025


def _dropped(labels: torch.Tensor, probability: float) -> torch.Tensor:
    dropped = drop_condition(Condition(labels), (3, 2), probability, torch.Generator().manual_seed(0))
    assert dropped.labels is not None
    return dropped.labels
