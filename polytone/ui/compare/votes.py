"""The four votes on a pair, as buttons and keys."""

from dataclasses import dataclass

import gradio as gr

from .blind import VOTES

WORDS = {"a": "A is better (a)", "b": "B is better (b)", "tie": "Tie (t)", "both_bad": "Both bad (x)"}
HINT = "Click, or press the key in brackets while no text box is focused."
LISTEN = """() => {
  if (window.polytoneVotes) return;
  window.polytoneVotes = {on: true};
  const buttons = {a: "vote-a", b: "vote-b", t: "vote-tie", x: "vote-both_bad"};
  document.addEventListener("keydown", (event) => {
    if (!window.polytoneVotes.on || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.closest("input:not([type=checkbox]), textarea, select, [contenteditable=true]")) return;
    const button = document.getElementById(buttons[event.key.toLowerCase()]);
    if (button?.checkVisibility()) button.click();
  });
}"""
SWITCH = "(on) => { window.polytoneVotes = window.polytoneVotes || {}; window.polytoneVotes.on = on; }"
LEAVE_THE_TEXT = "() => { document.activeElement?.blur(); }"


@dataclass(frozen=True)
class Votes:
    row: gr.Column
    buttons: tuple[gr.Button, ...]
    by_key: gr.Checkbox

    @classmethod
    def build(cls, by_key: gr.Checkbox) -> "Votes":
        with gr.Column(visible=False, elem_id="votes") as row:
            with gr.Row():
                buttons = tuple(gr.Button(WORDS[vote], elem_id=f"vote-{vote}", min_width=130) for vote in VOTES)
            gr.Markdown(HINT, elem_classes="hint")
        return cls(row, buttons, by_key)

    def listen(self, page: gr.Blocks) -> None:
        """Listen for keys; testers who dictate can turn that off."""
        page.load(None, js=LISTEN)
        self.by_key.change(None, self.by_key, js=SWITCH)


def vote_of(event: gr.EventData) -> str:
    """The vote of a click on one of the buttons."""
    return str(event.target.elem_id).removeprefix("vote-")
