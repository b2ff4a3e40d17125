"""The Gradio pages. They know the HTTP API only."""
