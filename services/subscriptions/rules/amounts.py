"""Money: tax on a price, tax inside a price, and how a person reads it."""

GST_RATE_BPS = 1800
# Above this a recurring charge needs the customer each time (RBI e-mandate framework).
MANDATE_CEILING_PAISE = 15_000_00


def gst_on(amount_paise: int) -> int:
    """GST to add to a price before tax, rounded half up."""
    return (amount_paise * GST_RATE_BPS + 5_000) // 10_000


def with_gst(amount_paise: int) -> int:
    """What a customer pays for a price before tax."""
    return amount_paise + gst_on(amount_paise)


def gst_inside(total_paise: int) -> int:
    """GST contained in a price that includes it: the total less the taxable value, rounded half up."""
    divisor = 10_000 + GST_RATE_BPS
    taxable = (total_paise * 10_000 * 2 + divisor) // (divisor * 2)
    return total_paise - taxable


def yearly_discount_pct(monthly_paise: int, yearly_paise: int) -> int:
    """How much less a year costs than twelve months, in whole percent, never promising more than is true."""
    twelve_months = monthly_paise * 12
    return max(0, (twelve_months - yearly_paise) * 100 // twelve_months) if twelve_months else 0


def format_inr(amount_paise: int) -> str:
    """Rupees in Indian grouping: ₹1,23,456.78."""
    rupees, paise = divmod(abs(amount_paise), 100)
    digits = str(rupees)
    head, tail = digits[:-3], digits[-3:]
    groups = [tail]
    while head:
        groups.insert(0, head[-2:])
        head = head[:-2]
    sign = "-" if amount_paise < 0 else ""
    return f"{sign}₹{','.join(groups)}.{paise:02d}"
