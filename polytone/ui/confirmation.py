"""Nothing is changed before it was said what will change: a sentence, Confirm and Cancel, and then what came of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from .api import ApiError, Json
from .markup import Safe, joined, paragraph, told_badly, told_well
from .plan import Plan, PlanError, carry_out, refusal
from .shell import EVENT, QUIET, Shell, told

ANYWAY = "Promote anyway (forced; the audit log says so)"
FORGET = """() => {
  const hidden = { __type__: "update", visible: false };
  return [hidden, "", "", hidden];
}"""


@dataclass(frozen=True)
class Confirmation:
    """`plan` is what waits to be confirmed, `refused` what was refused for its gates and may be forced."""

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
        """When `event` comes, say what `planned` would do, or why it cannot be done."""

        async def propose(*given: Any) -> tuple[Any, ...]:
            try:
                return asking(planned(*given))
            except PlanError as error:
                return settled(told_badly(error))

        event(propose, inputs, self.outputs, **QUIET)

    def forgets(self, event: Any) -> None:
        """What waits belongs to what was looked at before. In the browser: it cannot come too late."""
        event(None, None, [self.box, self.sentence, self.result, self.anyway], js=FORGET, **QUIET)

    def wire(self, shell: Shell) -> Any:
        """Returns the event after which the page should look again."""

        async def force(refused: Plan | None) -> tuple[Any, ...]:
            return asking(refused) if refused else settled()

        async def carry(plan: Plan | None, key: str) -> tuple[Any, ...]:
            if plan is None:
                return settled()
            try:
                answer = await carry_out(shell.api(key), plan)
            except ApiError as error:
                return refused(plan, error)
            return settled(told_well(joined(plan.done, notes(answer))))

        self.forgets(self.cancel.click)
        self.anyway.click(force, self.refused, self.outputs, **QUIET)
        return self.confirm.click(carry, [self.plan, shell.admin], self.outputs, **EVENT)


def asking(plan: Plan) -> tuple[Any, ...]:
    return plan, None, gr.update(visible=True), paragraph(plan.sentence, "preview"), "", gr.update(visible=False)


def settled(result: str = "", forced: Plan | None = None) -> tuple[Any, ...]:
    return None, forced, gr.update(visible=False), "", result, gr.update(visible=forced is not None)


def refused(plan: Plan, error: ApiError) -> tuple[Any, ...]:
    said, reasons = refusal(error)
    forced = plan.anyway if error.code == "gates_failed" else None
    if forced is not None:
        forced = replace(forced, sentence=f"{forced.sentence} {' '.join(reasons)}")
    return settled(told_badly(said if reasons else told(ApiError(said, error.code)), reasons), forced)


def notes(answer: Json) -> Safe:
    """What the server adds to a change that it made."""
    said = []
    if unknown := answer.get("not_evaluated"):
        said.append(f" {', '.join(unknown)} {'was' if len(unknown) == 1 else 'were'} never evaluated on this machine.")
    if answer.get("created") is False:
        said.append(f" {answer.get('version')} was published before, so nothing changed.")
    elif "created" in answer:
        said.append(f" It is {answer['version']}.")
    return joined(*said)
