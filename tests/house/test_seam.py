"""A payment provider is one module: nothing else in the ingress knows its name."""

import re

from services.webhooks.rules.providers import PROVIDERS
from tests.house.house import modules, within

# Each names them once: the register, and the settings of the default address.
MAY = ("services.webhooks.rules.providers", "services.webhooks.config")


def test_only_its_module_knows_a_provider() -> None:
    names = re.compile("|".join(map(re.escape, PROVIDERS)), re.IGNORECASE)

    found = [
        f"{module.place}:{number} {line.strip()}"
        for module in modules("services/webhooks")
        if not within(module.name, *MAY)
        for number, line in enumerate(module.path.read_text().splitlines(), 1)
        if names.search(line)
    ]

    assert PROVIDERS
    assert not found, "\n".join(found)


def test_a_providers_module_imports_no_other() -> None:
    places = {f"services.webhooks.rules.providers.{name}" for name in PROVIDERS}

    found = [
        f"{module.place}:{line} {imported}"
        for module in modules("services/webhooks/rules/providers")
        if module.name in places
        for imported, line in module.imports()
        if within(imported, *(places - {module.name}))
    ]

    assert {module.name for module in modules("services/webhooks/rules/providers")} >= places
    assert not found, "\n".join(found)
