"""What `catalog.yaml` may say: every value has its kind and bounds, and a misspelt name is refused, not ignored."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

Code = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,64}$")]
Path = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,64}\.[a-z0-9_]{1,64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
# Far above whatever is sold, and far below what the tables and the provider hold.
Rupees = Annotated[int, Field(ge=0, le=100_000_000)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Some = Annotated[int, Field(ge=1, le=10**12)]
Days = Annotated[int, Field(ge=0, le=366)]


class _Entry(BaseModel):
    # Strict: 1999.5 and true are no rupees, although Python would count with them.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LimitEntry(_Entry):
    """A thing that is counted."""

    name: Name
    unit: Name
    kind: Literal["hard", "soft"] = "hard"
    grace_seconds: Count = 0


class ServiceEntry(_Entry):
    """A service and what it counts."""

    name: Name
    limits: dict[Code, LimitEntry]


class PlanEntry(_Entry):
    """A plan; prices are whole rupees before tax."""

    name: Name
    monthly_rupees: Rupees
    yearly_rupees: Rupees
    base_credits: Count
    credit_cadence: Literal["per_cycle", "monthly"] = "per_cycle"
    trial_days: Days = 0
    trial_credits: Count = 0
    limits: dict[Path, Count | Literal["unlimited"]]


class PackEntry(_Entry):
    """Credits for money, tax included."""

    name: Name
    credits: Some
    total_rupees: Annotated[int, Field(ge=1, le=100_000_000)]


class AddonEntry(_Entry):
    """More of a limit, for credits."""

    name: Name
    limit: Path
    quantity: Some
    credits: Some
    period_days: Annotated[int, Field(ge=1, le=366)]


class CostEntry(_Entry):
    """What an action costs."""

    credits: Count
    description: Name


class CatalogFile(_Entry):
    """The whole file."""

    services: dict[Code, ServiceEntry]
    plans: dict[Code, PlanEntry]
    credit_packs: dict[Code, PackEntry]
    addons: dict[Code, AddonEntry]
    credit_costs: dict[Annotated[str, StringConstraints(pattern=r"^[a-z0-9_.]{1,128}$")], CostEntry]


def read(document: Mapping[str, Any]) -> CatalogFile:
    """The file as values of the right kinds; ValueError names every place that is wrong, and how."""
    try:
        return CatalogFile.model_validate(document)
    except ValidationError as error:
        raise ValueError("catalog.yaml: " + "; ".join(dict.fromkeys(_sentences(error)))) from None


def _sentences(error: ValidationError) -> Iterator[str]:
    for flaw in error.errors(include_url=False):
        where = [str(step) for step in flaw["loc"]]
        if len(where) > 4 and where[0] == "plans" and where[2] == "limits":
            # Each kind that a limit may have complains by itself.
            yield f"{'.'.join(where[:4])} is neither a whole number from 0 to {10**12} nor `unlimited`"
        else:
            yield f"{'.'.join(where) or 'the file'} {_words(flaw)}"


def _words(flaw: ErrorDetails) -> str:
    given = flaw["input"]
    match flaw["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return "is not known: is it misspelt?"
        case "int_type" | "int_from_float":
            return f"is {given!r}, but must be a whole number"
        case "model_type" | "dict_type":
            return "must be a mapping of names to values"
        case _:
            words = flaw["msg"].removeprefix("Input should ").removeprefix("String should ")
            return f"is {given!r}, but should {words}"
