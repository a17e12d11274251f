"""A page in the browser: one prompt, dense beside accelerated. `studio` renders, and `page` shows it with Gradio."""
