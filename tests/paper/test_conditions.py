"""Label names <-> the condition that the network sees."""

import pytest
import torch

from maskimg.conditions import Condition, Context, LabelFields, drop_condition, null_labels
from maskimg.noise import Chance

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
        ("zebra", "there is no class `zebra`; choose from `bird`, `bug`, `cat`"),
        ({"style": "flet"}, "there is no style `flet`; did you mean `flat`?"),
        ({"colour": "red"}, "there is no label field `colour`: choose from `class`, `style`"),
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
    """10,000 rows; five standard deviations off would be 0.02, a chance of one in a million; the seed is fixed."""
    condition = torch.tensor([[1, 0]]).repeat(10_000, 1)
    null = torch.tensor([3, 2])
    assert torch.equal(_dropped(condition, 0.0), condition)
    assert (_dropped(condition, 1.0) == null).all()

    dropped = _dropped(condition, 0.2) == null
    alone = 0.1 / 0.9
    assert abs(dropped.all(1).double().mean() - (0.1 + 0.9 * alone**2)) < 0.02
    assert abs((dropped[:, 0] & ~dropped[:, 1]).double().mean() - 0.9 * alone * (1 - alone)) < 0.02


@pytest.mark.parametrize("words", [0, 1, 2])
@pytest.mark.parametrize("fields", [0, 1, 3])
@pytest.mark.parametrize("source", [torch.Generator().manual_seed(1), Chance(seed=1, step=2, size=200_000)])
def test_each_part_of_a_condition_is_lost_as_often_as_asked(fields, words, source):
    """A single label field was lost in 19 % of the pictures where 10 % were asked for.

    200,000 rows: 0.003 is four and a half standard deviations, a chance of one in 10^5; the seeds are fixed.
    """
    b, parts = 200_000, fields + words
    labels = torch.zeros(b, fields, dtype=torch.int64) if fields else None
    contexts = {f"words {i}": Context(torch.zeros(b, 1), torch.ones(b, 1, dtype=torch.bool)) for i in range(words)}
    dropped = drop_condition(Condition(labels, contexts=contexts), (1,) * fields, 0.1, source)
    lost = [] if dropped.labels is None else [column == 1 for column in dropped.labels.unbind(1)]
    lost += [~context.present[:, 0] for context in dropped.contexts.values()]
    assert len(lost) == parts
    for part in lost:
        assert abs(part.double().mean() - 0.1) < 0.003
    if parts:
        together = 0.1 if parts == 1 else 0.05 + 0.95 * (0.05 / 0.95) ** parts
        assert abs(torch.stack(lost).all(0).double().mean() - together) < 0.003


def _dropped(labels: torch.Tensor, probability: float) -> torch.Tensor:
    dropped = drop_condition(Condition(labels), (3, 2), probability, torch.Generator().manual_seed(0))
    assert dropped.labels is not None
    return dropped.labels
