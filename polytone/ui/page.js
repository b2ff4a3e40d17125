// What Gradio's chatbot lacks for a screen reader: a name for the button that copies all, and a line of facts that is one
// button and not one within another.
const mend = () => {
    for (const button of document.querySelectorAll('#transcript button[aria-label=""]')) {
        button.setAttribute("aria-label", "Copy the conversation");
        button.title = "Copy the conversation";
    }
    for (const inner of document.querySelectorAll('#transcript .title[role="button"] button:not([disabled])')) {
        inner.disabled = true;
        inner.setAttribute("aria-hidden", "true");
    }
};
new MutationObserver(mend).observe(document.documentElement, { childList: true, subtree: true });
