"""Which metrics and labels an expression of PromQL names: a tokenizer, and the few rules that tell names apart.

It refuses what it does not know rather than missing a name.
"""

import re
from dataclasses import dataclass

TOKEN = re.compile(
    r"""
      (?P<space>\s+|\#[^\n]*)
    | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)
    | (?P<range>\[[^\]]*\])
    | (?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?:ms|[smhdwy]|(?=[^\w.]|$)))
    | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    | (?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){},@])
    """,
    re.X,
)
DURATION = re.compile(r"\[(?:(?:\d+(?:ms|[smhdwy]))+|\$__rate_interval|\$__range)\]")

AGGREGATIONS = frozenset(
    {
        *("sum", "min", "max", "avg", "group", "stddev", "stdvar", "count", "count_values"),
        *("bottomk", "topk", "quantile"),
    }
)
FUNCTIONS = frozenset(
    {
        *("abs", "absent", "absent_over_time", "ceil", "changes", "clamp_max", "clamp_min", "delta", "deriv"),
        *("floor", "histogram_quantile", "increase", "irate", "label_replace", "max_over_time"),
        *("min_over_time", "avg_over_time", "sum_over_time", "rate", "resets", "round", "scalar", "sort"),
        *("sort_desc", "time", "timestamp", "vector"),
    }
)
LABEL_LISTS = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
WORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan"})


class NotUnderstood(Exception):
    """An expression that this does not read."""


@dataclass(frozen=True)
class Matcher:
    label: str
    sign: str
    value: str


@dataclass(frozen=True)
class Selector:
    metric: str
    matchers: tuple[Matcher, ...] = ()


@dataclass(frozen=True)
class Expression:
    selectors: tuple[Selector, ...]
    labels: frozenset[str]  # named in by (…), on (…) and the like

    @property
    def metrics(self) -> set[str]:
        return {selector.metric for selector in self.selectors}


def read(text: str) -> Expression:
    """What the expression names, or NotUnderstood."""
    tokens = _tokens(text)
    selectors: list[Selector] = []
    labels: set[str] = set()
    at = 0
    while at < len(tokens):
        kind, value = tokens[at]
        follows = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        at += 1
        if kind == "sign" and value == "{":
            raise NotUnderstood(f"a selector without a name in: {text}")
        if kind != "name" or value.lower() in WORDS:
            continue
        if value in LABEL_LISTS:
            named, at = _label_list(tokens, at, text)
            labels |= named
        elif _is_call(value, follows):
            continue
        elif follows == "(":
            raise NotUnderstood(f"no function that is known here: {value} in: {text}")
        else:
            matchers, at = _matchers(tokens, at, text)
            selectors.append(Selector(value, matchers))
    return Expression(tuple(selectors), frozenset(labels))


def _is_call(name: str, follows: str) -> bool:
    if name in AGGREGATIONS:
        return follows == "(" or follows in LABEL_LISTS
    return name in FUNCTIONS and follows == "("


def _tokens(text: str) -> list[tuple[str, str]]:
    found, at = list[tuple[str, str]](), 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise NotUnderstood(f"{text[at : at + 20]!r} in: {text}")
        if match.lastgroup == "range" and not DURATION.fullmatch(match[0]):
            raise NotUnderstood(f"{match[0]} is no duration in: {text}")
        if match.lastgroup != "space":
            found.append((str(match.lastgroup), match[0]))
        at = match.end()
    return found


def _label_list(tokens: list[tuple[str, str]], at: int, text: str) -> tuple[set[str], int]:
    if at >= len(tokens) or tokens[at][1] != "(":
        return set(), at  # group_left may stand alone
    end = _closing(tokens, at, ")", text)
    names = {value for kind, value in tokens[at + 1 : end] if kind == "name"}
    if any(kind != "name" and value != "," for kind, value in tokens[at + 1 : end]):
        raise NotUnderstood(f"a list of labels in: {text}")
    return names, end + 1


def _matchers(tokens: list[tuple[str, str]], at: int, text: str) -> tuple[tuple[Matcher, ...], int]:
    if at >= len(tokens) or tokens[at][1] != "{":
        return (), at
    end = _closing(tokens, at, "}", text)
    inner = [token for token in tokens[at + 1 : end] if token[1] != ","]
    if len(inner) % 3:
        raise NotUnderstood(f"matchers in: {text}")
    matchers = []
    for (kind, label), (_, sign), (quoted, value) in zip(inner[::3], inner[1::3], inner[2::3], strict=True):
        if kind != "name" or quoted != "string" or sign not in ("=", "!=", "=~", "!~") or label == "__name__":
            raise NotUnderstood(f"a matcher in: {text}")
        matchers.append(Matcher(label, sign, value[1:-1]))
    return tuple(matchers), end + 1


def _closing(tokens: list[tuple[str, str]], at: int, bracket: str, text: str) -> int:
    for end in range(at + 1, len(tokens)):
        if tokens[end] == ("sign", bracket):
            return end
    raise NotUnderstood(f"no {bracket} in: {text}")
