"""Card data and secrets as they look from outside: what no room stores, logs or passes on.

Sources: PCI DSS 4.0.1, 3.3.1 (what may never be kept after authorisation) and ISO/IEC 7812 (lengths, check digit).
"""

import re

# By name, whatever they hold. Compared without case, `_`, `-` and blanks.
_FORBIDDEN_NAMES = frozenset({
    "cardnumber", "accountnumber", "primaryaccountnumber", "pan", "cvv", "cvv2", "cvc", "cvc2", "csc",
    "securitycode", "pinblock", "cardpin", "track1", "track2", "trackdata", "track1data", "track2data",
    "magstripe",
    "password", "passwd", "otp", "secret", "clientsecret", "keysecret", "webhooksecret", "apisecret", "apikey",
    "accesstoken", "refreshtoken", "privatekey", "authorization",
})  # fmt: skip
# These names also occur without card data: forbidden when they hold at least so many digits.
_AMBIGUOUS_NAMES = {"number": 12, "track": 12, "pin": 4}
_SEPARATORS = str.maketrans("", "", " -")
_DIGITS = re.compile(r"[0-9]{13,19}")
_LONGEST = 37  # nineteen digits with a separator between any two


def is_forbidden(name: str, value: object) -> bool:
    """Whether a field of this name may not be kept with this value."""
    plain = re.sub(r"[_\s-]", "", name).lower()
    if plain in _AMBIGUOUS_NAMES:
        return sum(letter.isdigit() for letter in str(value)[:64]) >= _AMBIGUOUS_NAMES[plain]
    return plain in _FORBIDDEN_NAMES


def looks_like_card(text: str) -> bool:
    """Whether a text is a card number and nothing else: 13 to 19 digits with the right check digit."""
    if not 13 <= len(text) <= _LONGEST:
        return False
    digits = text.translate(_SEPARATORS)
    return _DIGITS.fullmatch(digits) is not None and has_check_digit(digits)


def has_check_digit(text: str) -> bool:
    """Luhn's rule over the digits of a text."""
    digits = [int(digit) for digit in text if digit not in " -"]
    doubled = (sum(divmod(digit * 2, 10)) for digit in digits[-2::-2])
    return sum(digits[-1::-2], sum(doubled)) % 10 == 0
