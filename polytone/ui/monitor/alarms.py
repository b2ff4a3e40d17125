"""The active alarms, each with a button to acknowledge it."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ..api import Json
from ..confirmation import Confirmation
from ..markup import paragraph
from ..shell import Shell
from .drift import NO_ALARM, acknowledge, alarm_panel, signal_words


@dataclass(frozen=True)
class Alarms:
    """`active` are the alarms of the last GET /admin/drift; None before it, or if it was refused."""

    active: gr.State
    confirmation: Confirmation

    @classmethod
    def build(cls) -> "Alarms":
        active = gr.State()

        def show(alarms: list[Json] | None) -> None:
            if alarms is not None and not alarms:
                gr.HTML(paragraph(NO_ALARM, "empty"))
            for alarm in alarms or ():
                show_alarm(alarm, confirmation)

        gr.render(inputs=[active], triggers=[active.change], show_progress="hidden")(show)
        confirmation = Confirmation.build()
        return cls(active, confirmation)

    def wire(self, shell: Shell) -> Any:
        return self.confirmation.wire(shell)


def show_alarm(alarm: Json, confirmation: Confirmation) -> None:
    with gr.Column(elem_classes="alarm"):
        gr.HTML(alarm_panel(alarm))
        button = gr.Button(f"Acknowledge {signal_words(alarm['signal'])} of {alarm['version']}", size="sm")
    confirmation.proposes(button.click, partial(acknowledge, alarm), [])
