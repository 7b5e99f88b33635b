"""GST's names for taxpayers and states: which GSTIN can exist, and what its state is called."""

import re

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# State, PAN, which registration of that PAN in the state, Z, check digit.
_FORM = re.compile(r"[0-9]{2}[A-Z]{5}[0-9]{4}[A-Z][1-9A-Z]Z[0-9A-Z]", re.ASCII)
ABROAD = "96"
STATES = {
    "01": "Jammu and Kashmir",
    "02": "Himachal Pradesh",
    "03": "Punjab",
    "04": "Chandigarh",
    "05": "Uttarakhand",
    "06": "Haryana",
    "07": "Delhi",
    "08": "Rajasthan",
    "09": "Uttar Pradesh",
    "10": "Bihar",
    "11": "Sikkim",
    "12": "Arunachal Pradesh",
    "13": "Nagaland",
    "14": "Manipur",
    "15": "Mizoram",
    "16": "Tripura",
    "17": "Meghalaya",
    "18": "Assam",
    "19": "West Bengal",
    "20": "Jharkhand",
    "21": "Odisha",
    "22": "Chhattisgarh",
    "23": "Madhya Pradesh",
    "24": "Gujarat",
    "26": "Dadra and Nagar Haveli and Daman and Diu",
    "27": "Maharashtra",
    "29": "Karnataka",
    "30": "Goa",
    "31": "Lakshadweep",
    "32": "Kerala",
    "33": "Tamil Nadu",
    "34": "Puducherry",
    "35": "Andaman and Nicobar Islands",
    "36": "Telangana",
    "37": "Andhra Pradesh",
    "38": "Ladakh",
    "97": "Other Territory",
}
# Numbers given out before states were merged or divided are still somebody's.
_FORMER = frozenset({"25", "28"})


def check_digit(first_fourteen: str) -> str:
    """The fifteenth character: every second value doubled, digits summed in base 36."""
    total = 0
    for place, character in enumerate(first_fourteen):
        high, low = divmod(ALPHABET.index(character) * (1 + place % 2), 36)
        total += high + low
    return ALPHABET[-total % 36]


def flaw(gstin: str) -> str | None:
    """What makes it impossible, in a few words; None for a GSTIN that can exist."""
    if not _FORM.fullmatch(gstin):
        return "is not 15 characters of the form 27AAPFU0939F1ZV"
    if gstin[:2] not in STATES and gstin[:2] not in _FORMER:
        return f"begins with {gstin[:2]}, which is no state"
    if check_digit(gstin[:14]) != gstin[14]:
        return "has a wrong check digit: compare it with the certificate of registration"
    return None


def state_of(gstin: str) -> str:
    """The state in which it is registered, by the code that the state has today."""
    return {"25": "26", "28": "37"}.get(gstin[:2], gstin[:2])


def state_name(code: str) -> str:
    """`27` is Maharashtra."""
    return "Outside India" if code == ABROAD else STATES.get(code, "")
