"""The reader of expressions misses no metric: it would let a rule name one that nobody exports."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.deploy.promql import AGGREGATIONS, FUNCTIONS, LABEL_LISTS, WORDS, Matcher, NotUnderstood, read

CASES = [
    ("up", {"up"}, set()),
    ('up{job="billing"} == 0', {"up"}, set()),
    ("rate(a_total[5m]) / rate(b_total[5m])", {"a_total", "b_total"}, set()),
    ("sum by (le, room) (rate(c_bucket[$__rate_interval]))", {"c_bucket"}, {"le", "room"}),
    ("sum(rate(c_bucket[5m])) by (le)", {"c_bucket"}, {"le"}),
    ('sum without (instance) (x{a="sum(y)",b!~"z.*|w{}"})', {"x"}, {"instance"}),
    ("time() - (t_seconds > 0)", {"t_seconds"}, set()),
    ("a unless on (job) b == 1 or c offset 5m and ignoring(x) d", {"a", "b", "c", "d"}, {"job", "x"}),
    ("a * on (room) group_left (version) build_info", {"a", "build_info"}, {"room", "version"}),
    ("a * on (room) group_left b", {"a", "b"}, {"room"}),
    ("sum + max{a='b'} # rate(nothing[5m])", {"sum", "max"}, set()),
    ("rate > bool 1e3 + 0x1F + .5 - 3h", {"rate"}, set()),
    ("{__name__=~'x'}", None, None),
    ("made_up(x)", None, None),
    ("x[5 parsecs]", None, None),
    ("x{a='b'", None, None),
    ('x{a="b}', None, None),
    ('x{__name__="y"}', None, None),
    ("x $variable", None, None),
    ("billing:recorded:rate5m > 1", {"billing:recorded:rate5m"}, set()),
]


@pytest.mark.parametrize(("text", "metrics", "labels"), CASES, ids=[case[0] for case in CASES])
def test_what_an_expression_names(text: str, metrics: set[str] | None, labels: set[str] | None) -> None:
    if metrics is None:
        with pytest.raises(NotUnderstood):
            read(text)
    else:
        assert (read(text).metrics, read(text).labels) == (metrics, labels)


def test_matchers_are_read_as_they_are_written() -> None:
    [selector] = read("""x{a="1",b!='2',c=~"3|4",d!~`5`,}""").selectors

    assert selector.matchers == (
        Matcher("a", "=", "1"),
        Matcher("b", "!=", "2"),
        Matcher("c", "=~", "3|4"),
        Matcher("d", "!~", "5"),
    )


reserved = AGGREGATIONS | FUNCTIONS | LABEL_LISTS | WORDS
names = st.from_regex(r"[a-z][a-z_]{2,12}", fullmatch=True).filter(lambda name: name not in reserved)
quoted = st.from_regex(r'[^"\\\n]{0,10}', fullmatch=True)


@st.composite
def selectors(draw: st.DrawFn) -> tuple[str, set[str]]:
    name = draw(names)
    matchers = draw(st.lists(st.tuples(names, st.sampled_from(["=", "!=", "=~", "!~"]), quoted), max_size=3))
    inside = ",".join(f'{label}{sign}"{value}"' for label, sign, value in matchers)
    return f"{name}{{{inside}}}" if inside or draw(st.booleans()) else name, {name}


def wrapped(inner: st.SearchStrategy[tuple[str, set[str]]]) -> st.SearchStrategy[tuple[str, set[str]]]:
    return st.one_of(
        st.tuples(st.sampled_from(sorted(FUNCTIONS)), inner).map(
            lambda drawn: (f"{drawn[0]}({drawn[1][0]}[5m])", drawn[1][1])
        ),
        st.tuples(st.sampled_from(sorted(AGGREGATIONS)), names, inner).map(
            lambda drawn: (f"{drawn[0]} by ({drawn[1]}) ({drawn[2][0]})", drawn[2][1])
        ),
        st.tuples(inner, st.sampled_from(["+", "/", ">=", "and", "unless", "or on (x)"]), inner).map(
            lambda drawn: (f"{drawn[0][0]} {drawn[1]} {drawn[2][0]}", drawn[0][1] | drawn[2][1])
        ),
    )


@given(st.recursive(selectors(), wrapped, max_leaves=6))
def test_no_metric_is_missed_however_expressions_are_nested(expression: tuple[str, set[str]]) -> None:
    text, metrics = expression

    assert read(text).metrics == metrics
