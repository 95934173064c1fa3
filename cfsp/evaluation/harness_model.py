"""The model in memory, as the harness asks it: for likelihoods, and for answers that it writes."""

# The harness's decorators hide the signatures of HFLM's base.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportAbstractUsage=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.models.huggingface import HFLM

from cfsp import bars
from cfsp.evaluation.answers import Answer, write_answers
from cfsp.evaluation.likelihoods import Continuation, Score, score

LONGEST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names by which a task gives the most new tokens of an answer; the harness takes the first that there is."""


class HarnessModel(HFLM):
    """The harness's model with this package's passes.

    asked: answers that were scored; cut: those whose questions lost their beginnings to the window.
    written: the answers that the model wrote, in the order of the questions.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked = self.cut = 0
        self.written: list[Answer] = []

    @property
    def window(self) -> int:
        """The most tokens that the model reads."""
        return int(self.max_length)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Score]:
        """Return the score of each (texts, context, continuation)."""
        given = [Continuation((*context,), (*tokens,)) for _, context, tokens in requests]
        whole = [one.cut(self.window) for one in given]
        self.asked += len(given)
        self.cut += sum(one is not before for one, before in zip(whole, given, strict=True))
        with bars.task("zero-shot", "answer", len(requests)) as shown:
            return score(self.model, whole, override_bs or int(self.batch_size), shown.advance)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the answer to each request, written by greedy decoding up to one of its stops."""
        found: dict[int, Answer] = {}
        with bars.task("generation", "answer", len(requests)) as shown:
            for options, places in by_options(requests).items():
                stops, new_tokens = options
                answers = write_answers(
                    self.model,
                    self.tokenizer,
                    [self.tok_encode(requests[place].args[0]) for place in places],
                    stops,
                    new_tokens or self.max_gen_toks,
                    int(self.batch_size),
                    shown.advance,
                )
                found |= dict(zip(places, answers, strict=True))
        answers = [found[place] for place in range(len(requests))]
        self.written += answers
        return [answer.text for answer in answers]


def by_options(requests: list[Any]) -> dict[tuple[tuple[str, ...], int | None], list[int]]:
    """Return (stops, most new tokens) -> the places of the requests that have these."""
    found: dict[tuple[tuple[str, ...], int | None], list[int]] = {}
    for place, request in enumerate(requests):
        options = request.args[1]
        until = options.get("until") or []
        stops = (until,) if isinstance(until, str) else (*until,)
        found.setdefault((stops, longest_of(options)), []).append(place)
    return found


def longest_of(options: Mapping[str, Any]) -> int | None:
    """Return the most new tokens that a task's options of generation name; None if they name none."""
    return next((int(options[name]) for name in LONGEST if options.get(name) is not None), None)
