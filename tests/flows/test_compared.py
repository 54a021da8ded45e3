"""A report's page: the verdicts on top, what they rest on at the end."""

from flows.compared import page_with
from steps.report.content import Heading, Text, Verdict


def test_verdicts_stand_under_the_first_part() -> None:
    verdict = Verdict("better", "a is better than b.", ())
    page = [Heading("run"), Text("label"), Heading("Pictures"), Text("rows")]
    beside = [Heading("Beside"), verdict, Text("why")]
    assert page_with(page, beside) == [*page[:2], verdict, *page[2:], beside[0], beside[2]]
    assert page_with(page[:2], beside) == [*page[:2], verdict, beside[0], beside[2]]
