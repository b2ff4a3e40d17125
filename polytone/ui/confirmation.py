"""Confirmation of a change: a sentence about its effect, Confirm and Cancel, and then the result."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from .api import ApiError, Json
from .markup import Html, failure, joined, paragraph, success
from .plan import Plan, PlanError, carry_out, refusal
from .shell import EVENT, QUIET, Shell, error_text

ANYWAY = "Promote anyway (forced; the audit log says so)"
FORGET = """() => {
  const hidden = { __type__: "update", visible: false };
  return [hidden, "", "", hidden];
}"""


@dataclass(frozen=True)
class Confirmation:
    """`plan` waits to be confirmed; `refused` was refused for failed gates and may be forced."""

    plan: gr.State
    refused: gr.State
    box: gr.Column
    sentence: gr.HTML
    confirm: gr.Button
    cancel: gr.Button
    result: gr.HTML
    anyway: gr.Button

    @classmethod
    def build(cls, confirm: str = "Confirm") -> "Confirmation":
        with gr.Column(visible=False, elem_classes="confirmation") as box:
            sentence = gr.HTML()
            with gr.Row():
                yes = gr.Button(confirm, variant="primary", min_width=120)
                no = gr.Button("Cancel", min_width=120)
        result = gr.HTML()
        anyway = gr.Button(ANYWAY, variant="stop", visible=False, elem_classes="anyway")
        return cls(gr.State(), gr.State(), box, sentence, yes, no, result, anyway)

    @property
    def outputs(self) -> list[Any]:
        return [self.plan, self.refused, self.box, self.sentence, self.result, self.anyway]

    def proposes(self, event: Any, planned: Callable[..., Plan], inputs: list[Any]) -> None:
        """On `event`, show what `planned` would do, or why it is not possible."""

        async def propose(*values: Any) -> tuple[Any, ...]:
            try:
                return asking(planned(*values))
            except PlanError as error:
                return settled(failure(error))

        event(propose, inputs, self.outputs, **QUIET)

    def forgets(self, event: Any) -> None:
        """Discard the plan, made for another voice or version. Done in the browser, so that it is never late."""
        event(None, None, [self.box, self.sentence, self.result, self.anyway], js=FORGET, **QUIET)

    def wire(self, shell: Shell) -> Any:
        """Connect the buttons; returns the event after which the page should reload."""

        async def force(refused: Plan | None) -> tuple[Any, ...]:
            return asking(refused) if refused else settled()

        async def carry(plan: Plan | None, key: str) -> tuple[Any, ...]:
            if plan is None:
                return settled()
            try:
                answer = await carry_out(shell.api(key), plan)
            except ApiError as error:
                return refused(plan, error)
            return settled(success(joined(plan.done, notes(answer))))

        self.forgets(self.cancel.click)
        self.anyway.click(force, self.refused, self.outputs, **QUIET)
        return self.confirm.click(carry, [self.plan, shell.admin], self.outputs, **EVENT)


def asking(plan: Plan) -> tuple[Any, ...]:
    return plan, None, gr.update(visible=True), paragraph(plan.sentence, "preview"), "", gr.update(visible=False)


def settled(result: str = "", forced: Plan | None = None) -> tuple[Any, ...]:
    return None, forced, gr.update(visible=False), "", result, gr.update(visible=forced is not None)


def refused(plan: Plan, error: ApiError) -> tuple[Any, ...]:
    sentence, reasons = refusal(error)
    forced = plan.anyway if error.code == "gates_failed" else None
    if forced is not None:
        forced = replace(forced, sentence=f"{forced.sentence} {' '.join(reasons)}")
    return settled(failure(sentence if reasons else error_text(ApiError(sentence, error.code)), reasons), forced)


def notes(answer: Json) -> Html:
    """What the server adds about a change that it made."""
    sentences = []
    if unknown := answer.get("not_evaluated"):
        verb = "was" if len(unknown) == 1 else "were"
        sentences.append(f" {', '.join(unknown)} {verb} never evaluated on this machine.")
    if answer.get("created") is False:
        sentences.append(f" {answer.get('version')} was already published.")
    elif "created" in answer:
        sentences.append(f" It is {answer['version']}.")
    return joined(*sentences)
