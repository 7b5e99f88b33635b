"""Card data and secrets as they look from outside: what no room stores, logs or passes on.

Sources: PCI DSS 4.0.1, 3.3.1 (what may never be kept after authorisation) and ISO/IEC 7812 (lengths, check digit).
"""

import re

# What stands in the place of such a value once it was taken out.
MASK = "[masked]"

# By name, whatever they hold. Compared without case and punctuation: `card[number]`, `Card-Number`, `cardNumber`.
_FORBIDDEN_NAMES = frozenset({
    "cardnumber", "cardno", "accountnumber", "primaryaccountnumber",
    "cvv", "cvv2", "cvvcode", "cvc", "cvc2", "cvccode", "csc", "cardcvv", "cardcvc", "cvn", "cav2",
    "securitycode", "cardsecuritycode", "pinblock", "cardpin", "atmpin", "upipin", "mpin",
    "track1", "track2", "track3", "trackdata", "track1data", "track2data", "track3data",
    "magstripe", "magneticstripe", "magstripedata",
    "password", "passwd", "passphrase", "otp", "secret", "clientsecret", "keysecret", "webhooksecret",
    "apisecret", "secretkey", "apikey", "accesskey", "accesstoken", "refreshtoken", "bearertoken", "authtoken",
    "privatekey", "signingkey", "authorization", "cookie", "gatewaykey", "xgatewaykey",
})  # fmt: skip
# These names also occur without card data: forbidden when they hold at least so many digits.
# A PAN is also the number of an Indian taxpayer: five letters, four digits, a letter.
_AMBIGUOUS_NAMES = {"number": 12, "pan": 12, "track": 12, "pin": 4}
# Blanks and dashes as people, telephones and word processors set them.
_SPACING = " \u00a0\u2007\u2009\u202f-\u2010\u2011\u2012\u2013\u2014\u2212"
_SEPARATORS = str.maketrans("", "", _SPACING)
# The beginnings and lengths that schemes issue, so that moments in milliseconds and numeric ids of our days are none.
_DIGITS = re.compile(
    r"2[2-7][0-9]{14}"  # Mastercard
    r"|3[0-9]{13,18}"  # Diners Club, American Express, JCB
    r"|4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"  # Visa
    r"|5[0-9]{15}|5[0678][0-9]{11,17}"  # Mastercard, Maestro, RuPay
    r"|6[0-9]{12,18}"  # Maestro, Discover, RuPay, UnionPay
    r"|8[12][0-9]{14}"  # RuPay
)
# As it stands on the card, between other words.
_GROUPED = re.compile(
    rf"(?<![0-9A-Za-z])[2-68][0-9]{{3}}([{re.escape(_SPACING)}./_])"
    r"(?:[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{1,3})?|[0-9]{6}\1[0-9]{4,5})(?![0-9A-Za-z])"
)
_SMALLEST, _BEYOND = 10**12, 10**19
_LONGEST = 37  # nineteen digits with a separator between any two


def is_forbidden(name: str, value: object) -> bool:
    """Whether a field of this name may not be kept with this value."""
    plain = _plain(name)
    if plain in _AMBIGUOUS_NAMES:
        return sum(letter.isdigit() for letter in str(value)[:64]) >= _AMBIGUOUS_NAMES[plain]
    return plain in _FORBIDDEN_NAMES


def is_never_kept(name: str) -> bool:
    """Whether a field of this name may not be kept whatever it holds."""
    return _plain(name) in _FORBIDDEN_NAMES


def holds_card(text: str) -> bool:
    """Whether a text is a card number, or has one in it as it is printed on cards, in groups.

    A bare run of digits inside other words is none: one in ten order numbers would pass for it.
    """
    if len(text) < 13:
        return False
    return looks_like_card(text) or any(
        looks_like_card(re.sub("[^0-9]", "", found[0])) for found in _GROUPED.finditer(text)
    )


def looks_like_card(text: str) -> bool:
    """Whether a text is a card number and nothing else: 13 to 19 digits as schemes issue them, with the check digit."""
    if not 13 <= len(text) <= _LONGEST:
        return False
    digits = text.translate(_SEPARATORS)
    return _DIGITS.fullmatch(digits) is not None and has_check_digit(digits)


def number_is_card(number: float) -> bool:
    """Whether a number, as JSON has them, is a card's; no amount, count or moment of ours is that large."""
    return _SMALLEST <= number < _BEYOND and number == int(number) and looks_like_card(str(int(number)))


def has_check_digit(text: str) -> bool:
    """Luhn's rule over the digits of a text."""
    digits = [int(digit) for digit in text if digit in "0123456789"]
    doubled = (sum(divmod(digit * 2, 10)) for digit in digits[-2::-2])
    return sum(digits[-1::-2], sum(doubled)) % 10 == 0


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
