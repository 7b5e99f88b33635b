"""A catalogue that is written wrongly is refused with every place named; nothing is guessed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.subscriptions.catalogue import FILE, load_catalog
from services.subscriptions.errors import CatalogInvalid

Document = dict[str, Any]


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[str], str]:
    """What is said of a file with this text."""

    def say(text: str) -> str:
        path = tmp_path / "catalog.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(CatalogInvalid) as refusal:
            load_catalog(path)
        return refusal.value.message

    return say


def shipped() -> Document:
    document: Document = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize("value", [-5, 1999.5, True, "1999", None, 10**20])
def test_a_price_is_a_whole_number_of_rupees(value: Any, refused: Callable[[str], str]) -> None:
    document = shipped()
    document["plans"]["pro"]["monthly_rupees"] = value

    said = refused(yaml.safe_dump(document))

    assert f"plans.pro.monthly_rupees is {value!r}" in said


@pytest.mark.parametrize("value", [-1, 1.5, "many", 2**63, False])
def test_a_limit_is_a_whole_number_or_unlimited(value: Any, refused: Callable[[str], str]) -> None:
    document = shipped()
    document["plans"]["pro"]["limits"]["blog.posts"] = value

    said = refused(yaml.safe_dump(document))

    assert said.count("plans.pro.limits.blog.posts is neither a whole number") == 1


@pytest.mark.parametrize(
    ("section", "code", "name", "value"),
    [
        ("plans", "pro", "trial_days", -1),
        ("plans", "pro", "credit_cadence", "weekly"),
        ("credit_packs", "small", "total_rupees", 0),
        ("addons", "seat", "credits", 0),
        ("addons", "seat", "period_days", 0),
        ("credit_costs", "blog.publish", "credits", -1),
    ],
)
def test_every_value_has_bounds(
    section: str, code: str, name: str, value: Any, refused: Callable[[str], str]
) -> None:
    document = shipped()
    document[section][code][name] = value

    assert f"{section}.{code}.{name} is {value!r}" in refused(yaml.safe_dump(document))


def test_every_mistake_is_named_at_once(refused: Callable[[str], str]) -> None:
    document = shipped()
    document["plans"]["pro"]["montly_rupees"] = document["plans"]["pro"].pop("monthly_rupees")
    document["addons"]["Sitz"] = document["addons"].pop("seat")
    del document["credit_costs"]

    said = refused(yaml.safe_dump(document))

    assert "plans.pro.monthly_rupees is missing" in said
    assert "plans.pro.montly_rupees is not known: is it misspelt?" in said
    assert "addons.Sitz" in said
    assert "credit_costs is missing" in said


def test_a_name_that_is_written_twice_is_refused(refused: Callable[[str], str]) -> None:
    assert "plans is written twice" in refused(FILE.read_text(encoding="utf-8") + "\nplans: {}\n")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "plans: ["])
def test_what_is_no_catalogue_is_refused(text: str, refused: Callable[[str], str]) -> None:
    assert refused(text).startswith("catalog.yaml")
