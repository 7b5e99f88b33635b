"""docs/backup.md says how long everything is kept, as the rooms' settings have it."""

from __future__ import annotations

import re

import pytest

from tests.house.house import ROOMS
from tests.house.test_deploy import settings_of
from tests.suite.running import HOUSE

PAGE = (HOUSE / "docs" / "backup.md").read_text()
SETTINGS = {
    name.upper(): field.default
    for room in ROOMS
    for name, field in settings_of(room).model_fields.items()
    if name.endswith("_retention_days")
}


@pytest.mark.parametrize("setting", sorted(SETTINGS))
def test_a_retention_stands_on_the_page_with_its_default(setting: str) -> None:
    rows = [line for line in PAGE.splitlines() if f"`{setting}`" in line]

    assert [re.split(r" *\| *", row)[3] for row in rows] == [str(SETTINGS[setting])]


def test_the_page_names_no_retention_that_is_none() -> None:
    assert set(re.findall(r"`([A-Z_]+_RETENTION_DAYS)`", PAGE)) == SETTINGS.keys()
